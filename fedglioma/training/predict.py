"""The only inference loop: batches in, logits and labels out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedglioma.case import GENES
from fedglioma.data.dataset import Sample


@dataclass(frozen=True)
class Scores:
    """Outputs of a model for n cases, in the order of the batches.

    ``logits`` is (n, genes, 2) float32, ``labels`` (n, genes) int64 with -1 for unknown.
    """

    logits: Tensor
    labels: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Probability of mutant or codeleted, (n, genes)."""
        return self.logits.softmax(2)[..., 1]


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: Iterable[Sample],
    *,
    device: torch.device,
    done: Callable[[int], None] | None = None,
) -> Scores:
    """Return the model's outputs for every case; ``done`` is told how many are through."""
    model.eval()
    logits, labels = [], []
    count = 0
    for batch in batches:
        image, present, genotype, _ = batch
        output = model(image.to(device), present.to(device))
        logits.append(torch.stack([output[gene.value].float() for gene in GENES], dim=1).cpu())
        labels.append(genotype)
        count += genotype.shape[0]
        if done is not None:
            done(count)
    if not logits:
        return Scores(torch.zeros(0, len(GENES), 2), torch.zeros(0, len(GENES), dtype=torch.int64))
    return Scores(torch.cat(logits), torch.cat(labels))
