"""One round of a site's work: counts for the statistics round, weights for a training round."""

import time
from importlib.metadata import version

import numpy as np
import torch

from fedglioma.case import GENES, Gene
from fedglioma.config.run import RunConfig
from fedglioma.counts import count_cases, has_target
from fedglioma.errors import DataError, Diverged, ProtocolError
from fedglioma.payload import forms, update
from fedglioma.seeds import seed_torch
from fedglioma.training.learner import build_learner, layout_of
from fedglioma.training.local import LocalWork, train_locally
from fedglioma.training.parallel import useful_processes
from fedglioma.weights import Forms, Packed, digest_of, pack, unpack
from fedglioma.wire import StatisticsReply, StatisticsRequest, TrainReply, TrainRequest
from fedglioma_client.intensities import cases_on_scale, landmarks_of
from fedglioma_client.linkage import name_shared, tags_of
from fedglioma_client.norms import OwnNorms
from fedglioma_client.processes import train_in_processes
from fedglioma_client.site import Site, agree


def statistics_round(request: StatisticsRequest, site: Site) -> StatisticsReply:
    """Return what the site publishes of itself: counts under the small-cell rule and its layout's digest."""
    agree(site.config, request.settings)
    landmarks = landmarks_of(site, request.settings) if request.landmarks else {}
    cases = [prepared.case for prepared in site.cases]
    counts = count_cases(cases, site.config.small_cell_limit, request.settings.tasks)
    return StatisticsReply(
        site=site.config.site,
        version=version("fedglioma"),
        layout=layout_of(request.settings).digest,
        cases=counts.cases,
        labels=counts.labels,
        modalities=counts.modalities,
        masks=counts.masks,
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

    Returns the report and the site's update as it travels. Only cases with a target of at least one of the
    network's tasks are trained on. The optimizer's state stays here and is forgotten. With FedBN the
    normalisation layers are the site's own and are kept for the next round.

    Raises
    ------
    PolicyError
        The site does not agree to the run's terms.
    ProtocolError
        The weights are not of the network that this site builds.
    DataError
        The site has no labelled case, or its intensities do not fit the consortium's scale.
    ConfigError
        The network cannot be trained in as many processes as the site asks for.
    FedGliomaError
        Training diverged, or one of several processes died.
    """
    settings, config = request.settings, site.config
    agree(site.config, settings)
    name_shared(site, settings, request.shared)
    started = time.perf_counter()
    cases = cases_on_scale(site, request.scale)
    labelled = [prepared for prepared in cases if has_target(prepared.case, settings.tasks)]
    if not labelled:
        raise DataError("no case with a known label to train on")
    torch.set_num_threads(config.threads or torch.get_num_threads())
    seed_torch(settings.seed, "train", config.site, request.round)
    counts = request.class_counts if settings.counts == "global" else local_counts(site)
    learner = build_learner(settings, counts)
    if layout_of(settings).digest != request.layout:
        raise ProtocolError("weights: the coordinator's network differs from the one that this site builds")
    unpack(weights, learner.model, learner.loss)
    norms = OwnNorms(config.state, request.run, request.layout) if settings.strategy == "fedbn" else None
    if norms is not None:
        norms.restore(learner.model, request.round)
    work = LocalWork(settings, labelled, config.site, request.round, request.proximal_mu)
    processes = useful_processes(settings, len(labelled), config.processes)
    device = torch.device(config.device)
    if processes == 1:
        learner.to(device)
    prepared_s = time.perf_counter() - started

    if processes == 1:
        summary = train_locally(learner, work, device)
    else:
        left_s = settings.round_timeout_s - prepared_s
        summary = train_in_processes(learner, work, config, counts, processes=processes, limit_s=left_s)

    packing = time.perf_counter()
    arrays = pack(learner.model, learner.loss)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise Diverged("training diverged: the weights are no longer finite numbers")
    packed = update(settings.payload, arrays, weights)
    digest = digest_of(packed)
    if norms is not None:
        norms.save(learner.model, request.round)
    published = count_cases([item.case for item in site.cases], config.small_cell_limit, settings.tasks)
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
        loss_by_task={
            task: publishable_loss(
                value, sum(has_target(item.case, (task,)) for item in labelled), config.small_cell_limit
            )
            for task, value in summary.loss_by_task().items()
        },
        seconds={phase: round(value, 4) for phase, value in seconds.items()},
    )
    return reply, packed


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
