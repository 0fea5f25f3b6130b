"""RunConfig: what the coordinator decides for all sites of one run.

One flat table of scalars; keys in YAML may be written with hyphens or underscores. Defaults are the
MDPNet paper's recipe with the decisions of its specification (batch 2, Adam, 1e-4, crop 128, width 16,
group normalisation).
"""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from fedglioma.case import Frozen
from fedglioma.config.reading import checked, read_yaml
from fedglioma.errors import ConfigError

Preset = Literal["recommended", "reference"]
Strategy = Literal[
    "fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedbn", "median", "trimmed_mean", "multikrum"
]
Preprocessing = Literal["standard", "mdpnet", "sgpnet", "fusion"]
Payload = Literal["float32", "bfloat16", "int8"]
Weighting = Literal["auto", "uncertainty", "fixed"]

SERVER_LR: dict[str, float] = {"fedavgm": 1.0, "fedadam": 0.1, "fedyogi": 0.01}
"""Flower's own server learning rates; FedAdam's and FedYogi's are the papers' starting points."""


class RunConfig(Frozen):
    """Settings of a run; every field can be set on the command line, in the environment or in a file."""

    model_config = ConfigDict(allow_inf_nan=False)

    model: Literal["mdpnet"] = Field(default="mdpnet", description="network to train")
    preset: Preset = Field(
        default="recommended",
        description="recommended, or reference: as close to the published code as makes sense",
    )
    width: int = Field(default=16, ge=1, le=64, description="channels of the first layer; 16 is the paper's")
    crop: int = Field(default=128, ge=16, le=256, description="edge of the training crop in voxels")
    spacing_mm: float = Field(
        default=1.0, ge=0.5, le=8.0, description="isotropic voxel edge of the prepared volumes"
    )
    preprocessing: Preprocessing = Field(
        default="standard",
        description="standard, or as a paper has it: mdpnet (240 x 240 x 155 mm, z-score), sgpnet (brain "
        "resized to 144^3, z-score), fusion (all laid over T2)",
    )
    standardize: Literal["federated", "zscore"] = Field(
        default="federated",
        description="intensities: federated lays all sites on one scale that their landmarks decide; "
        "zscore leaves each case on its own",
    )
    bias_correction: bool = Field(default=True, description="divide out the coil's brightness (N4)")
    rounds: int = Field(default=50, ge=1, description="federated rounds")
    local_epochs: int = Field(default=1, ge=1, description="epochs that a site trains in a round")
    batch_size: int = Field(default=2, ge=1, description="cases in a batch")
    lr: float = Field(default=1e-4, gt=0, description="learning rate of Adam at the first epoch")
    weight_decay: float = Field(
        default=1e-5, ge=0, description="L2 penalty; never on norms, biases, positions or loss weights"
    )
    schedule: Literal["poly", "const"] = Field(
        default="poly", description="poly: lr * (1 - epoch / epochs) ** 0.9 over the whole run; const: none"
    )
    strategy: Strategy = Field(default="fedavg", description="how updates become one model")
    proximal_mu: float = Field(
        default=0.01, ge=0, description="pull towards the global weights (fedprox only)"
    )
    server_lr: float = Field(
        default=0.0,
        ge=0,
        description="server's learning rate (fedavgm, fedadam, fedyogi); "
        "0: Flower's own, 1 with fedavgm, 0.1 with fedadam, 0.01 with fedyogi",
    )
    server_momentum: float = Field(
        default=0.9, ge=0, lt=1, description="momentum of the server's steps (fedavgm only)"
    )
    beta_1: float = Field(default=0.9, ge=0, lt=1, description="first moment (fedadam, fedyogi)")
    beta_2: float = Field(default=0.99, ge=0, lt=1, description="second moment (fedadam, fedyogi)")
    tau: float = Field(
        default=1e-3, gt=0, description="added to the root of the second moment (fedadam, fedyogi)"
    )
    trim: float = Field(
        default=0.2, ge=0, lt=0.5, description="share of the sites cut at either end (trimmed_mean only)"
    )
    byzantine: int = Field(
        default=1, ge=0, description="sites that may send anything whatever (multikrum only)"
    )
    payload: Payload = Field(
        default="int8",
        description="what a site sends: float32 weights, or its step rounded to bfloat16 or int8",
    )
    norm_limit: float = Field(
        default=10.0,
        ge=0,
        description="an update longer than this many times the round's median, of three or more, "
        "is left out; 0: none is",
    )
    weighting: Weighting = Field(
        default="auto",
        description="weights of the three tasks: uncertainty (learned), fixed (equal), "
        "or auto: fixed with fedprox, uncertainty with the others",
    )
    counts: Literal["global", "local"] = Field(
        default="global",
        description="class counts behind the loss margins: summed over the sites, or each site's own",
    )
    flips: bool = Field(default=True, description="random flips along each axis in training")
    intensity: bool = Field(default=False, description="random intensity scale and shift in training")
    seed: int = Field(default=1234, ge=0, description="seed of weights, splits, crops, batches")
    selection: float = Field(
        default=0.15, ge=0, lt=1, description="share of patients held out to choose the model (simulation)"
    )
    report: float = Field(
        default=0.25,
        ge=0,
        lt=1,
        description="share of patients held out for the reported figures (simulation)",
    )
    quorum: int = Field(default=1, ge=1, description="sites that must answer for a round to count")
    round_timeout_s: float = Field(default=3600.0, gt=0, description="seconds that a round may take")
    grace_s: float = Field(
        default=-1.0,
        ge=-1,
        description="seconds that a round waits for the others once the quorum has answered; "
        "-1: until round_timeout_s",
    )
    keep_updates: bool = Field(
        default=False,
        description="keep every update and checkpoint, so that anybody can compute the weights again",
    )
    purpose: Literal["research", "clinical"] = Field(
        default="research", description="what the model is for; a site's policy may refuse it"
    )
    find_duplicates: bool = Field(
        default=False,
        description="ask whether a patient is at two hospitals, of those that share a linkage key",
    )
    bootstrap: int = Field(default=1000, ge=100, le=100_000, description="resamples behind every interval")

    @model_validator(mode="after")
    def _shares_leave_patients_to_train_on(self) -> Self:
        if self.selection + self.report >= 0.95:
            raise ValueError("selection + report: at least 5 % of the patients must be left to train on")
        return self

    @model_validator(mode="after")
    def _norm_limit_spares_the_usual(self) -> Self:
        if 0 < self.norm_limit < 1:
            raise ValueError("norm_limit: at least 1, or 0 for none; below 1 the median itself is left out")
        return self

    @property
    def pos_grid(self) -> tuple[int, int, int]:
        """Token grid of the transformer: ceil(crop / 8) per axis; part of what sites must agree on."""
        edge = ceil(self.crop / 8)
        return edge, edge, edge

    @property
    def common_scale(self) -> bool:
        """Whether sites agree on one intensity scale; two of the papers' own preprocessings have none."""
        return self.standardize == "federated" and self.preprocessing not in ("mdpnet", "sgpnet")

    @property
    def task_weighting(self) -> Literal["uncertainty", "fixed"]:
        """``weighting`` with ``auto`` resolved.

        With uncertainty weights the loss starts a few hundred times smaller, so that the proximal term
        of FedProx would drown it; equal fixed weights keep the two on one scale.
        """
        if self.weighting != "auto":
            return self.weighting
        return "fixed" if self.strategy == "fedprox" else "uncertainty"

    @property
    def server_learning_rate(self) -> float:
        """``server_lr`` with 0 resolved to the strategy's own."""
        return self.server_lr or SERVER_LR.get(self.strategy, 1.0)

    @property
    def straggler_wait_s(self) -> float | None:
        """Seconds to wait for the others once the quorum has answered; None until the deadline."""
        return None if self.grace_s < 0 else self.grace_s

    def learning_rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch of the whole run, counted from 0 over all rounds."""
        if self.schedule == "const":
            return self.lr
        return self.lr * float((1 - epoch / (self.rounds * self.local_epochs)) ** 0.9)

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any], place: str) -> Self:
        """Return checked settings; ``place`` is what an error names.

        Raises
        ------
        ConfigError
            A key is unknown or a value is not allowed.
        """
        return checked(cls, _with_underscores(table), place)


def run_table(path: Path) -> dict[str, Any]:
    """Return the run settings in a YAML file, unchecked: its ``run:`` table where there is one.

    Raises
    ------
    ConfigError
        The file cannot be read, or its ``run:`` is no table.
    """
    whole = read_yaml(path)
    table = whole.get("run", whole)
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: run: holds 'key: value' lines, this one holds {type(table).__name__}")
    return _with_underscores(table)


def _with_underscores(table: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key).replace("-", "_"): value for key, value in table.items()}
