"""RunConfig: what the coordinator decides for all sites of one run.

One flat table of scalars; keys in YAML may be written with hyphens or underscores. Defaults are the
MDPNet paper's recipe with the decisions of its specification (batch 2, Adam, 1e-4, crop 128, width 16,
group normalisation); where another network is chosen, ``RECIPES`` has what its paper does differently.
"""

import re
from collections.abc import Mapping
from math import ceil, cos, pi
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from fedglioma.case import GENES, Frozen, Gene, Modality, Task
from fedglioma.config.effect import OWN_SWITCHES, require_effect
from fedglioma.config.privacy import (
    FEWEST_MASKED,
    LARGEST_DELTA,
    AccountantName,
    Clipping,
    PrivacyName,
    PrivacyTerms,
    require_whole,
)
from fedglioma.config.reading import checked, read_yaml
from fedglioma.errors import ConfigError

ModelName = Literal["mdpnet", "sgpnet", "resnet50", "densenet121", "senet", "unet", "segresnet", "swinunetr"]
Preset = Literal["recommended", "reference"]
Path2 = Literal["t2+flair", "t2", "flair", "none"]
Attention = Literal["vit+rda", "rda+vit", "rda+rda", "vit+vit"]
Guide = Literal["idh+atrx", "idh", "atrx", "none"]
LearningTargets = Literal["both", "idh", "random", "seg"]
Inference = Literal["auto", "centre", "sliding"]
PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]
Strategy = Literal[
    "fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedbn", "median", "trimmed_mean", "multikrum"
]
Preprocessing = Literal["standard", "mdpnet", "sgpnet", "fusion"]
Payload = Literal["float32", "bfloat16", "int8", "masked"]
Weighting = Literal["auto", "uncertainty", "fixed"]
WeightingForm = Literal["reference", "kendall"]
NormName = Literal["auto", "group", "batch"]
GuideMode = Literal["auto", "p_mut", "max_prob"]
HeadAct = Literal["auto", "leaky_relu", "none"]
LdamInput = Literal["auto", "prob", "double_softmax", "logit"]
Head1x1 = Literal["shortcut", "none"]
ZScore = Literal["brain", "volume"]

SERVER_LR: dict[str, float] = {"fedavgm": 1.0, "fedadam": 0.1, "fedyogi": 0.01}
"""Flower's own server learning rates; FedAdam's and FedYogi's are the papers' starting points."""


MODEL_NAMES: tuple[str, ...] = get_args(ModelName)
SEGMENTERS: tuple[str, ...] = ("unet", "segresnet", "swinunetr")
"""Networks that outline the tumour and do nothing else."""

CROP_STEP: dict[str, int] = {"sgpnet": 16, "unet": 16, "segresnet": 8, "swinunetr": 32}
"""Of what the crop must be a multiple: how often the network halves it."""
LEAST_CROP: dict[str, int] = {"sgpnet": 32, "densenet121": 29, "swinunetr": 32}

WIDTH_STEP: dict[str, int] = {"senet": 4, "swinunetr": 12}
"""Of what the width must be a multiple."""

RECIPES: dict[str, dict[str, Any]] = {
    "sgpnet": {
        "width": 8,
        "crop": 144,
        "preprocessing": "sgpnet",
        "schedule": "cosine",
        "head_lr": 0.5,
        "weight_decay": 0.0,
        "one_flip": True,
        "channels_last": True,
    },
    "resnet50": {"width": 64},
    "densenet121": {"width": 32},
    "senet": {"width": 64},
    "unet": {"width": 16},
    "segresnet": {"width": 32},
    "swinunetr": {"width": 48},
}
"""Defaults of the other networks: SGPNet's paper, and the sizes that MONAI's networks were published in."""

SGPNET_SHIFT = 10 / 144
"""How far a training image is moved at most, in edges of the cube; its paper names no range."""


_COUNTS = re.compile(r"(?P<gene>[a-z0-9_]+)=(?P<wild>\d{1,6}(\.\d{1,3})?)/(?P<mutant>\d{1,6}(\.\d{1,3})?)")
_COUNTS_MEANT = (
    "global, local, or the cases of both classes of every marker, as "
    "idh=109/57,atrx=133/33,codel_1p19q=153/13"
)


class RunConfig(Frozen):
    """Settings of a run; every field can be set on the command line, in the environment or in a file."""

    model_config = ConfigDict(allow_inf_nan=False)

    model: ModelName = Field(default="mdpnet", description="network to train")
    preset: Preset = Field(
        default="recommended",
        description="recommended, or reference: as close to the published code as makes sense",
    )
    path2: Path2 = Field(default="t2+flair", description="sequences of the second path (mdpnet only)")
    attention: Attention = Field(
        default="vit+rda", description="deep parts of the first and the second path (mdpnet only)"
    )
    guide: Guide = Field(
        default="idh+atrx", description="what the 1p/19q head is told of the others (mdpnet only)"
    )
    guide_mode: GuideMode = Field(
        default="auto",
        description="what of the others it is told: p_mut, the probability of mutation; max_prob, that of "
        "the likelier class; auto: as the preset (mdpnet only)",
    )
    guide_detach: bool = Field(
        default=False, description="no gradient through what the 1p/19q head is told (mdpnet only)"
    )
    head_act: HeadAct = Field(
        default="auto",
        description="activation in the heads: leaky_relu, none, or auto: as the preset (mdpnet only)",
    )
    norm: NormName = Field(
        default="auto", description="normalisation: group, batch, or auto: as the preset (not sgpnet)"
    )
    targets: LearningTargets = Field(
        default="both",
        description="what is learned: IDH and tumour, one of them, or IDH beside random masks (sgpnet only)",
    )
    head_1x1: Head1x1 = Field(
        default="shortcut",
        description="the IDH block's 1x1x1 convolution: a shortcut around the finest, or none (sgpnet only)",
    )
    detach_k: bool = Field(
        default=False,
        description="no gradient through the balance of IDH and tumour in the loss (sgpnet only)",
    )
    width: int = Field(
        default=16,
        ge=1,
        le=96,
        description="channels of the first layer; the published size is 16 (mdpnet), 8 (sgpnet)",
    )
    crop: int = Field(
        default=128, ge=16, le=256, description="edge of the training crop in voxels; 144 with sgpnet"
    )
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
    zscore: ZScore = Field(
        default="brain",
        description="statistics of the z-score: of the brain, or of the volume with what is outside "
        "(preprocessing sgpnet only)",
    )
    bias_correction: bool = Field(default=True, description="divide out the coil's brightness (N4)")
    rounds: int = Field(default=50, ge=1, description="federated rounds")
    local_epochs: int = Field(default=1, ge=1, description="epochs that a site trains in a round")
    batch_size: int = Field(default=2, ge=1, description="cases in a batch")
    accumulate: int = Field(
        default=1, ge=1, description="batches whose gradients are added up before the weights move"
    )
    lr: float = Field(default=1e-4, gt=0, description="learning rate of Adam at the first epoch")
    head_lr: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="learning rate of the markers' own layers, as a multiple of lr; 0.5 with sgpnet",
    )
    weight_decay: float = Field(
        default=1e-5, ge=0, description="L2 penalty; never on norms, biases, positions or loss weights"
    )
    schedule: Literal["poly", "cosine", "const"] = Field(
        default="poly",
        description="over the whole run: poly, lr * (1 - epoch / epochs) ** 0.9; cosine, down to 0; const",
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
        description="what a site sends: float32 weights, its step rounded to bfloat16 or int8, or "
        "masked with secure_aggregation",
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
        "or auto: fixed with fedprox and privacy site, uncertainty with the others",
    )
    weighting_form: WeightingForm = Field(
        default="reference",
        description="learned weights s of losses L: reference, exp(-s) L / 2 + s, as MDPNet's code; kendall, "
        "exp(-s) L + s / 2",
    )
    ldam_input: LdamInput = Field(
        default="auto",
        description="what the margins are applied to: prob, logit, double_softmax (probabilities, and in the "
        "focal loss too), or auto: as the preset",
    )
    counts: str = Field(
        default="global",
        description="class counts behind the loss margins: global, summed over the sites; local, each site's "
        "own; or numbers of every marker: idh=109/57,atrx=133/33,codel_1p19q=153/13 (wild-type/mutant)",
    )
    privacy: PrivacyName = Field(
        default="none",
        description="differential privacy: none; site: each site trains with noise, a patient is hidden; "
        "central: the server adds noise to the mean, a hospital is hidden from whoever sees the model",
    )
    noise_multiplier: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="standard deviation of the noise in units of clip_norm; 0: the least that keeps "
        "target_epsilon",
    )
    target_epsilon: float = Field(
        default=0.0, ge=0, le=1000, description="epsilon of the whole run, from which the noise is derived"
    )
    delta: float = Field(
        default=1e-5,
        gt=0,
        le=LARGEST_DELTA,
        description="chance with which privacy may be lost beyond epsilon; well below 1 / patients",
    )
    clip_norm: float = Field(
        default=1.0,
        ge=1e-6,
        le=1000,
        description="length that a patient's gradient (privacy site) or a site's step (central) is cut to",
    )
    clipping: Clipping = Field(
        default="flat",
        description="flat: one length over all layers; per_layer: to each its part (privacy site)",
    )
    sampling_rate: float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="chance of each patient to be in a step (privacy site); an epoch has 1 / rate steps",
    )
    accountant: AccountantName = Field(
        default="prv", description="how epsilon is computed: prv (tighter) or rdp"
    )
    counts_epsilon: float = Field(
        default=0.5,
        gt=0,
        le=100,
        description="epsilon of the noise on the counts of the statistics round (privacy site)",
    )
    secure_aggregation: bool = Field(
        default=False,
        description="the server learns the sum of the sites' updates and no single one; three sites or more",
    )
    secure_statistics: bool = Field(
        default=False,
        description="the same for the counts and intensity landmarks of the statistics round",
    )
    secure_range: float = Field(
        default=4.0,
        ge=0.1,
        le=1e4,
        description="largest change of one weight in a round under secure_aggregation; beyond it a site is "
        "left out",
    )
    secure_wait_s: float = Field(
        default=60.0,
        gt=0,
        description="seconds for each of the short exchanges around a masked sum",
    )
    flips: bool = Field(default=True, description="random flips along each axis in training")
    one_flip: bool = Field(
        default=False, description="mirror one random axis at most, half of the time, as SGPNet does"
    )
    shift_voxels: int = Field(
        default=0,
        ge=0,
        le=32,
        description="random shift, half of the time, of up to so many voxels per axis",
    )
    intensity: bool = Field(default=False, description="random intensity scale and shift in training")
    inference: Inference = Field(
        default="auto",
        description="how held-out patients are read: centre crop, sliding window, or as each paper does",
    )
    average_flips: bool = Field(
        default=False, description="average over the eight mirror images of held-out patients"
    )
    precision: PrecisionName = Field(
        default="auto",
        description="numbers in training; auto: bfloat16 or float16 on a GPU that has them, else float32",
    )
    channels_last: bool = Field(
        default=False, description="lay images out channels last in memory: faster, on for sgpnet"
    )
    compile: bool = Field(default=False, description="compile the network first (torch.compile)")
    checkpointing: bool = Field(
        default=False, description="compute activations twice instead of keeping them: less memory, slower"
    )
    deterministic: bool = Field(
        default=False, description="only operations that give the same bits every time, where there are such"
    )
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay per round of a running mean of the shared weights, which is then what is measured "
        "and released; 0: none",
    )
    early_stopping: int = Field(
        default=0,
        ge=0,
        description="end after this many rounds without a lower loss on the selection patients; 0: never",
    )
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

    @model_validator(mode="before")
    @classmethod
    def _recipe_of_the_model(cls, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        name = table.get("model")
        recipe = RECIPES.get(name, {}) if isinstance(name, str) else {}
        merged = {**recipe, **table}
        if name == "sgpnet" and isinstance(merged["crop"], int):
            merged.setdefault("shift_voxels", max(1, round(SGPNET_SHIFT * merged["crop"])))
        if merged.get("secure_aggregation") is True:
            merged = {"payload": "masked", "norm_limit": 0.0, "quorum": FEWEST_MASKED} | merged
        if merged.get("privacy") == "central":
            merged = {"norm_limit": 0.0, "quorum": FEWEST_MASKED} | merged
        return merged

    @field_validator("counts")
    @classmethod
    def _counts_that_can_be_read(cls, counts: str) -> str:
        words = counts.replace(" ", "")
        if words not in ("global", "local"):
            read_counts(words)
        return words

    @model_validator(mode="after")
    def _switches_belong_to_the_model(self) -> Self:
        for model, names in OWN_SWITCHES.items():
            for name in names:
                if self.model != model and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: a switch of {model} only, this run trains {self.model}")
        return self

    @model_validator(mode="after")
    def _network_takes_the_crop(self) -> Self:
        step, least = CROP_STEP.get(self.model, 1), LEAST_CROP.get(self.model, 16)
        if self.crop % step or self.crop < least:
            multiple = f"a multiple of {step}, " if step > 1 else ""
            raise ValueError(f"crop: {self.crop}: {self.model} needs {multiple}{least} or more")
        if self.width % WIDTH_STEP.get(self.model, 1):
            raise ValueError(
                f"width: {self.width}: {self.model} needs a multiple of {WIDTH_STEP[self.model]}"
            )
        if self.checkpointing and self.model not in ("mdpnet", "sgpnet"):
            raise ValueError(f"checkpointing: {self.model} has no blocks for it; switch it off")
        if self.preprocessing == "sgpnet" and self.inference == "sliding":
            raise ValueError("inference: sliding: with preprocessing sgpnet a case is one window already")
        return self

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

    @model_validator(mode="after")
    def _privacy_holds(self) -> Self:
        require_whole(self)
        return self

    @property
    def steps_per_round(self) -> int:
        """Steps of a site in a round of private training: 1 / sampling_rate in an epoch, rounded."""
        return max(1, round(self.local_epochs / self.sampling_rate))

    @property
    def privacy_terms(self) -> PrivacyTerms | None:
        """Terms of differentially private training at the sites; None where they train without.

        Raises
        ------
        ConfigError
            The noise was not derived from ``target_epsilon`` yet.
        """
        if self.privacy != "site":
            return None
        if self.noise_multiplier == 0:
            raise ConfigError("noise_multiplier: not derived from target_epsilon yet")
        return PrivacyTerms(
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            clipping=self.clipping,
            sampling_rate=self.sampling_rate,
            delta=self.delta,
            accountant=self.accountant,
            steps_per_round=self.steps_per_round,
            rounds=self.rounds,
            counts_epsilon=self.counts_epsilon,
        )

    @property
    def pos_grid(self) -> tuple[int, int, int]:
        """Token grid of the transformer: ceil(crop / 8) per axis; part of what sites must agree on."""
        edge = ceil(self.crop / 8)
        return edge, edge, edge

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the network is asked, in task order."""
        if self.model in SEGMENTERS:
            return (Task.SEGMENTATION,)
        if self.model != "sgpnet":
            return tuple(Task(gene) for gene in GENES)
        asked = {"idh": (Task.IDH,), "seg": (Task.SEGMENTATION,)}
        return asked.get(self.targets, (Task.IDH, Task.SEGMENTATION))

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The markers among the tasks."""
        return tuple(gene for gene in GENES if Task(gene) in self.tasks)

    @property
    def weighs_markers(self) -> bool:
        """Whether the loss is MDPNet's: classes by their counts, tasks by learned or fixed weights."""
        return self.model != "sgpnet" and bool(self.genes)

    @property
    def given_counts(self) -> dict[Gene, tuple[float, float]] | None:
        """``counts`` where it is numbers: cases of class 0 and 1 by marker; None where they are counted."""
        return None if self.counts in ("global", "local") else read_counts(self.counts)

    @property
    def batch_norm(self) -> bool:
        """Whether the network normalises over the cases of a batch; SGPNet never does."""
        by_preset = self.norm == "auto" and self.preset == "reference"
        return self.model != "sgpnet" and (self.norm == "batch" or by_preset)

    @property
    def path2_modalities(self) -> tuple[Modality, ...]:
        """``path2`` as modalities."""
        return tuple(Modality(name) for name in self.path2.split("+") if name != "none")

    @property
    def guide_genes(self) -> tuple[Gene, ...]:
        """``guide`` as genes."""
        return tuple(Gene(name) for name in self.guide.split("+") if name != "none")

    @property
    def sliding(self) -> bool:
        """``inference`` with ``auto`` resolved: networks that only segment were published with windows."""
        if self.inference == "auto":
            return self.model in SEGMENTERS
        return self.inference == "sliding"

    @property
    def common_scale(self) -> bool:
        """Whether sites agree on one intensity scale."""
        return self.standardize == "federated" and not self.own_intensities

    @property
    def own_intensities(self) -> bool:
        """Whether the preparation is a paper's that says what becomes of intensities: no N4, no common scale.

        Then ``bias_correction`` and ``standardize`` have no effect.
        """
        return self.preprocessing in ("mdpnet", "sgpnet")

    @property
    def task_weighting(self) -> Literal["uncertainty", "fixed"]:
        """``weighting`` with ``auto`` resolved.

        With uncertainty weights the loss starts a few hundred times smaller, so that the proximal term
        of FedProx would drown it; equal fixed weights keep the two on one scale. So would the noise of
        private training, and learned weights would follow the labels without noise.
        """
        if self.weighting != "auto":
            return self.weighting
        return "fixed" if self.strategy == "fedprox" or self.privacy == "site" else "uncertainty"

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
        done = epoch / (self.rounds * self.local_epochs)
        if self.schedule == "const":
            return self.lr
        if self.schedule == "cosine":
            return self.lr * (1 + cos(pi * done)) / 2
        return self.lr * float((1 - done) ** 0.9)

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any], place: str) -> Self:
        """Return checked settings as somebody wrote them; ``place`` is what an error names.

        Raises
        ------
        ConfigError
            A key is unknown, a value is not allowed, or one would have no effect.
        """
        settings = cls.recorded(table, place)
        try:
            require_effect(settings)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
        return settings

    @classmethod
    def recorded(cls, table: Mapping[str, Any], place: str) -> Self:
        """Return checked settings of a run or model of before, or made from such; as ``from_mapping``.

        Raises
        ------
        ConfigError
            A key is unknown or a value is not allowed.
        """
        return checked(cls, _with_underscores(table), place)


def read_counts(words: str) -> dict[Gene, tuple[float, float]]:
    """Return the class counts of ``idh=109/57,atrx=133/33,codel_1p19q=153/13`` by gene.

    Raises
    ------
    ValueError
        A gene is absent, unknown or there twice, or its counts are not two numbers of which one is above 0.
    """
    found = {}
    for part in words.split(","):
        match = _COUNTS.fullmatch(part)
        if match is None or match["gene"] not in GENES or match["gene"] in found:
            raise ValueError(_COUNTS_MEANT)
        found[Gene(match["gene"])] = (float(match["wild"]), float(match["mutant"]))
    if set(found) != set(GENES) or not all(max(pair) > 0 for pair in found.values()):
        raise ValueError(_COUNTS_MEANT)
    return {gene: found[gene] for gene in GENES}


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
