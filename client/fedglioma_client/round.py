"""One round of a site's work: counts for the statistics round, weights for a training round."""

import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version

import numpy as np
import torch

from fedglioma.case import GENES, UNKNOWN, Gene
from fedglioma.config.run import RunConfig
from fedglioma.counts import count_cases
from fedglioma.data.augment import Augmentation
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.loader import train_batches
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import DataError, FedGliomaError, ProtocolError
from fedglioma.losses.proximal import proximal_penalty
from fedglioma.payload import forms, update
from fedglioma.seeds import derive_seed, seed_torch
from fedglioma.training.fit import FitSummary, fit_epoch, parameter_groups
from fedglioma.training.learner import Learner, build_learner, layout_of
from fedglioma.weights import Forms, Packed, digest_of, pack, unpack
from fedglioma.wire import StatisticsReply, StatisticsRequest, TrainReply, TrainRequest
from fedglioma_client.intensities import cases_on_scale, landmarks_of
from fedglioma_client.linkage import name_shared, tags_of
from fedglioma_client.norms import OwnNorms
from fedglioma_client.site import Site, agree

FLIP = 0.5
INTENSITY = 0.1
"""Probability of a flip per axis; half-width of scale and shift (MDPNet's published code)."""


def statistics_round(request: StatisticsRequest, site: Site) -> StatisticsReply:
    """Return what the site publishes of itself: counts under the small-cell rule and its layout's digest."""
    agree(site.config, request.settings)
    landmarks = landmarks_of(site, request.settings) if request.landmarks else {}
    counts = count_cases([prepared.case for prepared in site.cases], site.config.small_cell_limit)
    return StatisticsReply(
        site=site.config.site,
        version=version("fedglioma"),
        layout=layout_of(request.settings).digest,
        cases=counts.cases,
        labels=counts.labels,
        modalities=counts.modalities,
        weights=counts.weights,
        small_cell_limit=counts.limit,
        landmarks=landmarks,
        landmark_epsilon=site.config.landmark_epsilon if landmarks else None,
        synthetic=site.synthetic,
        linkage=tags_of(site, request.settings, counts.cases),
    )


def expected_weights(settings: RunConfig) -> Forms:
    """Return what the global weights of a run must look like on the road."""
    return forms("float32", layout_of(settings).sizes)


def train_round(request: TrainRequest, weights: Packed, site: Site) -> tuple[TrainReply, Packed]:
    """Train the global weights on the site's cases for one round.

    Returns the report and the site's update as it travels. Only cases with at least one known label are
    trained on. The optimizer starts afresh each round; its state stays here and is forgotten. With FedBN
    the normalisation layers are the site's own and are kept for the next round.

    Raises
    ------
    PolicyError
        The site does not agree to the run's terms.
    ProtocolError
        The weights are not of the network that this site builds.
    DataError
        The site has no labelled case, or its intensities do not fit the consortium's scale.
    FedGliomaError
        Training diverged.
    """
    settings, config = request.settings, site.config
    agree(site.config, settings)
    name_shared(site, settings, request.shared)
    started = time.perf_counter()
    cases = cases_on_scale(site, request.scale)
    labelled = [prepared for prepared in cases if prepared.case.genotype.known]
    if not labelled:
        raise DataError("no case with a known label to train on")
    torch.set_num_threads(config.threads or torch.get_num_threads())
    seed_torch(settings.seed, "train", config.site, request.round)
    device = torch.device(config.device)
    counts = request.class_counts if settings.counts == "global" else local_counts(site)
    learner = build_learner(settings, counts)
    if layout_of(settings).digest != request.layout:
        raise ProtocolError("weights: the coordinator's network differs from the one that this site builds")
    unpack(weights, learner.model, learner.loss)
    norms = OwnNorms(config.state, request.run, request.layout) if settings.strategy == "fedbn" else None
    if norms is not None:
        norms.restore(learner.model, request.round)
    learner.to(device)
    prepared_s = time.perf_counter() - started

    summary = _train(request, labelled, config.site, learner, device)

    packing = time.perf_counter()
    arrays = pack(learner.model, learner.loss)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise FedGliomaError("training diverged: the weights are no longer finite numbers")
    packed = update(settings.payload, arrays, weights)
    digest = digest_of(packed)
    if norms is not None:
        norms.save(learner.model, request.round)
    published = count_cases([prepared.case for prepared in site.cases], config.small_cell_limit)
    seconds = {
        "setup": prepared_s,
        "load": summary.load_s,
        "train": summary.train_s,
        "pack": time.perf_counter() - packing,
    }
    reply = TrainReply(
        site=config.site,
        round=request.round,
        layout=request.layout,
        payload=settings.payload,
        digest=digest,
        weights=published.weights,
        steps=summary.steps,
        loss=publishable_loss(summary.loss, len(labelled), config.small_cell_limit),
        loss_by_gene={
            gene: publishable_loss(
                value,
                sum(item.case.genotype.label(gene) != UNKNOWN for item in labelled),
                config.small_cell_limit,
            )
            for gene, value in summary.loss_by_gene().items()
        },
        seconds={phase: round(value, 4) for phase, value in seconds.items()},
    )
    return reply, packed


def _train(
    request: TrainRequest,
    labelled: Sequence[PreparedCase],
    site: str,
    learner: Learner,
    device: torch.device,
) -> FitSummary:
    settings, model, loss = request.settings, learner.model, learner.loss
    dataset = CaseDataset(
        labelled,
        crop=settings.crop,
        augment=Augmentation(
            flip=FLIP if settings.flips else 0.0,
            scale=INTENSITY if settings.intensity else 0.0,
            shift=INTENSITY if settings.intensity else 0.0,
        ),
        seed=derive_seed(settings.seed, "crops", site),
    )
    optimizer = torch.optim.Adam(parameter_groups(model, loss, settings.weight_decay), lr=settings.lr)
    penalty = None
    if request.proximal_mu > 0:
        parameters = [*model.parameters(), *loss.parameters()]
        anchors = [parameter.detach().clone() for parameter in parameters]
        penalty = partial(proximal_penalty, parameters, anchors, request.proximal_mu)
    summary = FitSummary()
    for local_epoch in range(settings.local_epochs):
        epoch = (request.round - 1) * settings.local_epochs + local_epoch
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate(epoch)
        batches = train_batches(
            dataset,
            batch_size=settings.batch_size,
            seed=derive_seed(settings.seed, "order", site),
            epoch=epoch,
        )
        fit_epoch(model, loss, optimizer, batches, device=device, penalty=penalty, summary=summary)
    return summary


def local_counts(site: Site) -> dict[Gene, tuple[float, float]]:
    """Return the site's own class counts, which then never leave it."""
    labels = [prepared.case.genotype for prepared in site.cases]
    return {
        gene: (
            float(sum(genotype.label(gene) == 0 for genotype in labels)),
            float(sum(genotype.label(gene) == 1 for genotype in labels)),
        )
        for gene in GENES
    }


def publishable_loss(value: float | None, cases: int, limit: int) -> float | None:
    """Return a mean loss to four significant digits, or nothing where it is of fewer cases than the limit.

    The mean over a single case would be that case's own loss, which a membership attack asks for.
    """
    return None if value is None or cases < limit else float(f"{value:.4g}")
