"""How the losses of the genes become one number: masked, weighted by learned uncertainty, summed."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from fedglioma.case import GENES, UNKNOWN, Frozen, Gene, Task
from fedglioma.errors import ConfigError
from fedglioma.losses.genotype import LMF, LdamInput
from fedglioma.losses.tasks import Targets, TaskLoss, at_least_float

Weighting = Literal["uncertainty", "fixed"]
Form = Literal["reference", "kendall"]

INITIAL = (5.0, 6.0, 6.0)
"""Log-variances to start from, in task order."""
FACTORS: dict[Form, tuple[float, float]] = {"reference": (0.5, 1.0), "kendall": (1.0, 0.5)}
"""Factors of exp(-s) loss and of s: MDPNet's code, and Kendall et al. for classification."""
ON_LOSS = FACTORS["reference"][0]


class LossSettings(Frozen):
    """The switches of ``GenotypeLoss`` that a preset decides; the defaults are ``recommended``.

    Learned weights start at a gradient 300 to 800 times smaller than plain ones. Adam does not
    notice; SGD, FedProx and differential privacy do: they need ``weighting="fixed"``.
    """

    weighting: Weighting = "uncertainty"
    ldam_input: LdamInput = "prob"


def loss_preset(name: str) -> LossSettings:
    """Return the loss settings of a network's preset.

    Raises
    ------
    ConfigError
        There is no preset of that name.
    """
    if name == "recommended":
        return LossSettings()
    if name == "reference":
        return LossSettings(ldam_input="double_softmax")
    raise ConfigError(f"loss: preset {name!r} is unknown: choose recommended or reference")


class LearnedWeight(nn.Module):
    """One gene's weight, learned as the log-variance s of its task.

    Takes and returns one tensor and has no children, so that per-case gradients of s can be taken.
    """

    def __init__(self, initial: float, form: Form = "reference") -> None:
        super().__init__()
        self.on_loss, self.on_s = FACTORS[form]
        self.log_variance = nn.Parameter(torch.tensor([float(initial)]))

    def forward(self, loss_and_known: Tensor) -> Tensor:
        """Return known * (exp(-s) loss / 2 + s) of the reference, shape (B,), from the columns of (B, 2)."""
        loss, known = loss_and_known.unbind(1)
        s = self.log_variance
        # The mask takes the whole bracket: else a site without labels would push s down for nothing.
        return known * (self.on_loss * torch.exp(-s) * loss + self.on_s * s)


class FixedWeight(nn.Module):
    """The same for s held at 0: every gene weighs alike and nothing is learned."""

    def forward(self, loss_and_known: Tensor) -> Tensor:
        """Return known * loss / 2, shape (B,), from the columns of (B, 2)."""
        loss, known = loss_and_known.unbind(1)
        return known * ON_LOSS * loss


class GenotypeLoss(TaskLoss):
    """The sum over genes of weighted LMF losses, divided by the number of cases.

    Learned weights are the parameters ``weights.<gene>.log_variance``; they belong to that gene when sites
    are averaged, and want no weight decay.

    Parameters
    ----------
    counts : mapping from Gene to (float, float)
        Training cases of class 0 and 1 over all sites, known labels only.
    weighting : str
        ``uncertainty`` learns a weight per gene, ``fixed`` gives all genes the same.
    form : str
        Of learned weights s and losses L: ``reference``, exp(-s) L / 2 + s, as MDPNet's code has it, or
        ``kendall``, exp(-s) L + s / 2.
    ldam_input : str
        See ``LMF``.
    max_weight : float, optional
        Largest class weight; ``LOCAL_WEIGHT_CAP`` where a site's own counts are used.

    Raises
    ------
    ConfigError
        The counts lack a gene, or a setting is unknown.

    References
    ----------
    Kendall, Gal and Cipolla (2018), Multi-task learning using uncertainty to weigh losses, CVPR.
    """

    def __init__(
        self,
        counts: Mapping[Gene, tuple[float, float]],
        weighting: Weighting = "uncertainty",
        ldam_input: LdamInput = "prob",
        *,
        form: Form = "reference",
        max_weight: float | None = None,
    ) -> None:
        super().__init__()
        if form not in FACTORS:
            raise ConfigError(f"loss: form {form!r} is unknown: choose {' or '.join(FACTORS)}")
        if weighting not in ("uncertainty", "fixed"):
            raise ConfigError(f"loss: weighting {weighting!r} is unknown: choose uncertainty or fixed")
        missing = [gene.value for gene in GENES if gene not in counts]
        if missing:
            raise ConfigError(f"loss: class counts lack {', '.join(missing)}: count every gene, 0 if unknown")
        self.tasks = tuple(Task(gene) for gene in GENES)
        self.lmf = nn.ModuleDict()
        self.weights = nn.ModuleDict()
        for gene, start in zip(GENES, INITIAL, strict=True):
            self.lmf[gene.value] = LMF(counts[gene], ldam_input=ldam_input, max_weight=max_weight)
            learned = weighting == "uncertainty"
            self.weights[gene.value] = LearnedWeight(start, form) if learned else FixedWeight()

    def per_task(self, outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """Return the LMF of each case and gene, before the genes are weighed, shape (B, 3).

        Parameters
        ----------
        outputs : mapping from gene name to Tensor of shape (B, 2)
        """
        losses = [
            self.lmf[gene.value](at_least_float(outputs[gene.value]), targets.genotype[:, column])
            for column, gene in enumerate(GENES)
        ]
        return torch.stack(losses, dim=1)

    def per_sample(self, outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """Return the weighted sum over genes of each case, shape (B,)."""
        losses = self.per_task(outputs, targets)
        known = (targets.genotype != UNKNOWN).to(losses.dtype)
        pairs = torch.stack((losses, known), dim=2)  # (B, 3, 2)
        weighted = [self.weights[gene.value](pairs[:, column]) for column, gene in enumerate(GENES)]
        return torch.stack(weighted, dim=1).sum(1)
