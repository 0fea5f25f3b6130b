"""SiteConfig: what a hospital decides, in ``site_config/<site>.yaml``.

Paths in the file are relative to the file, so that a folder of settings can be moved as a whole.
"""

import re
from pathlib import Path
from typing import Literal, Self, get_args
from unicodedata import combining, normalize

from pydantic import Field, field_validator, model_validator

from fedglioma.case import Frozen
from fedglioma.config.privacy import LARGEST_DELTA, AccountantName, PrivacyTerms
from fedglioma.config.reading import checked, read_yaml
from fedglioma.config.run import MODEL_NAMES, Payload, Strategy
from fedglioma.errors import ConfigError, PolicyError

SITE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
SMALL_CELL_LIMIT = 5
MOST_PROCESSES = 256
MOST_EPSILON = 100.0
"""Above it noise would be said to protect what it does not."""
FEWEST_MASKED, MOST_MASKED = 3, 128
"""Hospitals in a masked sum (``privacy/masked_wire.py``)."""
SERVER_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):(\d{1,5})")


class Policy(Frozen):
    """What the site agrees to do, whatever the coordinator asks for."""

    models: tuple[str, ...] = MODEL_NAMES
    strategies: tuple[str, ...] = get_args(Strategy)
    payloads: tuple[str, ...] = get_args(Payload)
    purposes: tuple[str, ...] = ("research",)
    max_rounds: int = Field(default=1000, ge=1)
    max_local_epochs: int = Field(default=20, ge=1)

    def check(
        self, *, model: str, strategy: str, payload: str, purpose: str, rounds: int, local_epochs: int
    ) -> None:
        """Raise ``PolicyError`` for the first thing that the site does not agree to."""
        asked = (
            ("model", model, self.models),
            ("strategy", strategy, self.strategies),
            ("payload", payload, self.payloads),
            ("purpose", purpose, self.purposes),
        )
        for what, value, agreed in asked:
            if value not in agreed:
                raise PolicyError(f"policy: {what} {value} is not among {', '.join(agreed) or 'none'}")
        if rounds > self.max_rounds:
            raise PolicyError(f"policy: {rounds} rounds asked for, at most {self.max_rounds} allowed")
        if local_epochs > self.max_local_epochs:
            raise PolicyError(
                f"policy: {local_epochs} local epochs asked for, at most {self.max_local_epochs} allowed"
            )


class PrivacyLimits(Frozen):
    """What the hospital allows its patients to lose, whatever the coordinator offers."""

    required: bool = False
    max_epsilon: float | None = Field(default=10.0, gt=0, le=MOST_EPSILON)
    max_delta: float = Field(default=1e-5, gt=0, le=LARGEST_DELTA)
    accountant: AccountantName = "prv"
    min_noise_multiplier: float = Field(default=0.3, gt=0, le=1000)
    max_clip_norm: float | None = Field(default=None, gt=0)
    max_sampling_rate: float = Field(default=1.0, gt=0, le=1)
    max_counts_epsilon: float = Field(default=2.0, gt=0, le=MOST_EPSILON)
    require_secure_aggregation: bool = False
    head_copy: Path | None = None

    def check(self, terms: PrivacyTerms | None, *, secure_aggregation: bool) -> None:
        """Raise ``PolicyError`` for the first thing that the site does not agree to.

        Parameters
        ----------
        terms : PrivacyTerms or None
            What the run offers; None where it is not differentially private.
        secure_aggregation : bool
            Whether the server sees sums of several sites alone.
        """
        if self.require_secure_aggregation and not secure_aggregation:
            raise PolicyError(
                "privacy: this site sends its updates into secure aggregation only, and the run has none"
            )
        if terms is None:
            if self.required:
                raise PolicyError(
                    "privacy: this site takes part in differentially private runs only; the run is not one"
                )
            return
        if terms.noise_multiplier < self.min_noise_multiplier:
            raise PolicyError(
                f"privacy: noise multiplier {terms.noise_multiplier:g} offered, "
                f"at least {self.min_noise_multiplier:g} allowed"
            )
        for what, offered, most in (
            ("delta", terms.delta, self.max_delta),
            ("clip norm", terms.clip_norm, self.max_clip_norm),
            ("sampling rate", terms.sampling_rate, self.max_sampling_rate),
            ("counts epsilon", terms.counts_epsilon, self.max_counts_epsilon),
        ):
            if most is not None and offered > most:
                raise PolicyError(f"privacy: {what} {offered:g} offered, at most {most:g} allowed")


class SiteConfig(Frozen):
    """A hospital's settings; nothing in it ever leaves the hospital."""

    site: str
    data: Path
    layout: Literal["auto", "bids", "brats2021", "brats2023", "dicom"] = "auto"
    cache: Path = Path("cache")
    device: str = "cpu"
    processes: int = Field(default=1, ge=1, le=MOST_PROCESSES)
    workers: int = Field(default=1, ge=1, le=MOST_PROCESSES)
    brain_extractor: str = Field(default="auto", min_length=1)
    threads: int = Field(default=0, ge=0, le=MOST_PROCESSES)
    small_cell_limit: int = Field(default=SMALL_CELL_LIMIT, ge=1)
    landmark_epsilon: float | None = Field(default=None, gt=0, le=MOST_EPSILON)
    server: str | None = None
    ca: Path | None = None
    key: Path | None = None
    insecure: bool = False
    state: Path = Path("state")
    linkage_key: Path | None = None
    peers: Path | None = None
    least_masked: int | None = Field(default=None, ge=FEWEST_MASKED, le=MOST_MASKED)
    metrics_port: int = Field(default=0, ge=0, le=65535)
    policy: Policy = Policy()
    privacy: PrivacyLimits = PrivacyLimits()

    @property
    def lasting_state(self) -> Path:
        """Where the site's secret and privacy ledger lie, which outlast every run."""
        return self.state

    @field_validator("site")
    @classmethod
    def _short_name(cls, value: str) -> str:
        if not SITE_NAME.fullmatch(value):
            raise ValueError("a site's name is 1-32 lower-case letters, digits, - or _")
        return value

    @field_validator("server")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        if value is None:
            return value
        match = SERVER_ADDRESS.fullmatch(value)
        if match is None or not 0 < int(match.group(2)) < 65536:
            raise ValueError("write the server as host:port, without https://")
        return value

    @model_validator(mode="after")
    def _processes_choose_their_gpus(self) -> Self:
        if self.processes > 1 and self.device not in ("cpu", "cuda"):
            raise ValueError(
                f"processes: {self.processes}: write device: cuda, not {self.device}: each process takes the "
                "GPU of its number, from 0 on"
            )
        return self


def load_site_config(path: Path) -> SiteConfig:
    """Return a hospital's settings, with absolute paths; ``state`` is ``state/<site>`` unless it is set.

    Raises
    ------
    ConfigError
        The file is absent, not YAML, or a key or value is not allowed.
    """
    table = read_yaml(path)
    config = checked(SiteConfig, table, str(path))
    if config.site != path.stem and path.stem != "example":
        raise ConfigError(f"{path}: site: {config.site!r} does not match the file's name; rename one of them")
    base = path.resolve().parent
    state = config.state if "state" in table else config.state / config.site
    names = ("data", "cache", "ca", "key", "linkage_key", "peers")
    places = {"state": state} | {name: getattr(config, name) for name in names}
    copy = config.privacy.head_copy
    privacy = config.privacy.model_copy(update={"head_copy": None if copy is None else base / copy})
    found = {name: None if place is None else base / place for name, place in places.items()}
    return config.model_copy(update=found | {"privacy": privacy})


def site_name(text: str) -> str:
    """Return a cohort's free text as a site's name: lower case, accents dropped, the rest as hyphens.

    Raises
    ------
    ConfigError
        There is nothing to make a name of, or letters of another script: left out, they would give two
        hospitals one name.
    """
    plain = "".join(c for c in normalize("NFKD", text.strip().lower()) if not combining(c))
    name = re.sub(r"[^a-z0-9_-]+", "-", plain).strip("-_")[:32].strip("-_")
    if not name or any(c.isalnum() and not c.isascii() for c in plain):
        raise ConfigError(f"site {text!r}: write it in the letters a to z and digits, in the site column")
    return name
