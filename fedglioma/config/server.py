"""ServerConfig: what the coordinating centre decides about its server, in ``server.yaml``.

Paths in the file are relative to the file, as in a site's settings.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from fedglioma.case import Frozen
from fedglioma.config.reading import checked, read_yaml
from fedglioma.config.run import RunConfig
from fedglioma.config.site import MOST_PROCESSES, SITE_NAME
from fedglioma.errors import ConfigError

PORT = 8443


class ServerConfig(Frozen):
    """The server's settings; ``run`` is the table of the run that it drives."""

    address: str = Field(default="0.0.0.0", description="address that hospitals connect to")  # noqa: S104
    port: int = Field(default=PORT, ge=0, le=65535, description="the one port that is open; 0: any free one")
    certificate: Path | None = Field(default=None, description="the server's certificate, PEM")
    key: Path | None = Field(default=None, description="its private key, PEM")
    ca: Path | None = Field(default=None, description="the consortium's certificate, PEM")
    insecure: bool = Field(default=False, description="serve without TLS; for tests on one machine")
    sites: Path = Field(default=Path("sites"), description="folder of the hospitals' public keys")
    expected: tuple[str, ...] = Field(
        default=(),
        description="hospitals that the start waits for, others join when they come; none named: all",
    )
    join_timeout_s: float = Field(
        default=600.0, gt=0, description="seconds that the start waits for them; then the quorum is enough"
    )
    out: Path = Field(default=Path("runs/federation"), description="run folder; the same one resumes")
    cohorts: tuple[Path, ...] = Field(
        default=(), description="the centre's own labelled cohorts: selection and report"
    )
    cache: Path = Field(default=Path("cache"), description="prepared volumes of those cohorts")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N, for the evaluation")
    threads: int = Field(default=0, ge=0, le=MOST_PROCESSES, description="cores for the evaluation; 0: all")
    workers: int = Field(default=1, ge=1, le=MOST_PROCESSES, description="processes that prepare images")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="Prometheus on 127.0.0.1; 0: none")
    run: RunConfig = RunConfig()

    @field_validator("expected")
    @classmethod
    def _short_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [name for name in names if not SITE_NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r}: a site's name is 1-32 lower-case letters, digits, - or _")
        return names

    @model_validator(mode="after")
    def _tls_or_none(self) -> Self:
        if not self.insecure and (self.certificate is None or self.key is None):
            raise ValueError(
                "certificate and key are needed (fedglioma-server provision makes them); "
                "insecure: true serves without TLS, for tests on one machine only"
            )
        return self


def load_server_config(
    path: Path, changes: Mapping[str, Any] | None = None, given: Mapping[str, Any] | None = None
) -> ServerConfig:
    """Return the server's settings, with absolute paths.

    Parameters
    ----------
    path : Path
        server.yaml.
    changes, given : mapping, optional
        Settings of the server and of the run that replace those of the file; None leaves the file's.

    Raises
    ------
    ConfigError
        The file is absent, not YAML, or a key or value is not allowed.
    """
    table = read_yaml(path)
    run = table.get("run")
    if run is not None and not isinstance(run, dict):
        raise ConfigError(f"{path}: run: holds 'key: value' lines, this one holds {type(run).__name__}")
    replaced = {name: value for name, value in (changes or {}).items() if value is not None}
    place = f"{path} with the options given" if replaced or given else str(path)
    settings = RunConfig.from_mapping({**(run or {}), **(given or {})}, f"{place}: run")
    config = checked(ServerConfig, {**table, **replaced, "run": settings}, place)
    base = path.resolve().parent
    places = {name: getattr(config, name) for name in ("certificate", "key", "ca", "sites", "out", "cache")}
    absolute = {name: None if place is None else _below(base, place) for name, place in places.items()}
    cohorts = tuple(_below(base, cohort) for cohort in config.cohorts)
    return config.model_copy(update={**absolute, "cohorts": cohorts})


def _below(base: Path, place: Path) -> Path:
    """Return a path as a person would write it, no ``..`` in it; links stay as they are."""
    return Path(os.path.normpath(base / place))
