"""One round of a site's work: counts for the statistics round, weights for a training round."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import ceil

import numpy as np
import torch

from fedglioma.case import GENES, Gene
from fedglioma.config.privacy import PrivacyTerms
from fedglioma.config.run import RunConfig
from fedglioma.counts import SiteCounts, has_target
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import DataError, Diverged, ProtocolError
from fedglioma.payload import forms, update
from fedglioma.pooled import numbers_of
from fedglioma.seeds import seed_torch
from fedglioma.training.fit import FitSummary
from fedglioma.training.learner import Learner, build_learner, layout_of
from fedglioma.training.local import LocalWork, train_locally
from fedglioma.training.parallel import useful_processes
from fedglioma.training.private import train_privately
from fedglioma.weights import TRUNK, Forms, Packed, digest_of, pack, unpack
from fedglioma.wire import StatisticsReply, StatisticsRequest, TrainReply, TrainRequest
from fedglioma_client.budget import ledger_of
from fedglioma_client.intensities import cases_on_scale, landmarks_of
from fedglioma_client.linkage import name_shared, tags_of
from fedglioma_client.masking import mask_statistics, mask_update, require_company, require_unmasked_before
from fedglioma_client.norms import OwnNorms, norms_of
from fedglioma_client.processes import train_in_processes
from fedglioma_client.published import told_counts
from fedglioma_client.site import Site, agree
from fedglioma_client.spend import Done, PrivateRound, require_room


def statistics_round(request: StatisticsRequest, site: Site) -> StatisticsReply:
    """Return what the site publishes of itself: counts under the small-cell rule and its layout's digest.

    Where the run masks them they are in no field of their own, and only a sum over sites can be read.

    Raises
    ------
    PolicyError
        The site does not agree to the run's terms.
    PrivacyError
        The site's ledger or the masks do not hold.
    BudgetExhausted
        The noised counts of a private run would cost more than is left.
    """
    settings, config = request.settings, site.config
    agree(config, settings)
    terms = settings.privacy_terms
    if terms is not None:
        require_room(site, terms)
    counts = told_counts(site, settings, request.run)
    landmarks, landmark_epsilon = (
        landmarks_of(site, settings, request.run) if request.landmarks else ({}, None)
    )
    layout = layout_of(settings).digest
    common = StatisticsReply(
        site=config.site,
        version=version("fedglioma"),
        layout=layout,
        cases=0,
        labels=dict.fromkeys(GENES, (None, None, None)),
        modalities={},
        masks=None,
        weights={},
        small_cell_limit=config.small_cell_limit,
        synthetic=site.synthetic,
    )
    if settings.secure_statistics:
        masked = None
        if request.masking is not None:
            masked = mask_statistics(config, request.masking, request, numbers_of(counts, landmarks))
        trains = {TRUNK: float(counts.weights[TRUNK] > 0)}
        return common.model_copy(update={"weights": trains, "masked": masked})
    noised = settings.privacy == "site" or landmark_epsilon is not None
    told = {
        "cases": counts.cases,
        "labels": counts.labels,
        "modalities": counts.modalities,
        "masks": counts.masks,
        "weights": counts.weights,
        "landmarks": landmarks,
        "landmark_epsilon": landmark_epsilon,
        "counts_epsilon": settings.counts_epsilon if settings.privacy == "site" else None,
        "linkage": tags_of(site, settings, counts.cases),
        "ledger_head": ledger_of(config).head().digest if noised else "",
    }
    return common.model_copy(update=told)


def expected_weights(settings: RunConfig) -> Forms:
    """Return what the global weights of a run must look like on the road."""
    return forms("float32", layout_of(settings).sizes)


def train_round(request: TrainRequest, weights: Packed, site: Site) -> tuple[TrainReply, Packed]:
    """Train the global weights on the site's cases for one round.

    Returns the report and the site's update as it travels. Only cases with a target of at least one of the
    network's tasks are trained on. The optimizer's state stays here and is forgotten. With FedBN the
    normalisation layers are the site's own and are kept for the next round.

    In a private run the ledger is asked before the first step, and holds the spending before the update
    leaves; a round that was done already is answered with the update of then, and costs nothing again.
    Without a labelled case it consists of noise alone.

    Raises
    ------
    PolicyError
        The site does not agree to the run's terms.
    PrivacyError
        The site's ledger is not as it was written, or the masks do not hold.
    BudgetExhausted
        The round would cost a patient more than the site allows.
    ProtocolError
        The weights are not of the network that this site builds.
    DataError
        The run is not private, and the site has no labelled case or its intensities do not fit the scale.
    ConfigError
        The network cannot be trained in as many processes as the site asks for.
    FedGliomaError
        Training diverged, or one of several processes died.
    """
    settings, config = request.settings, site.config
    agree(config, settings)
    terms = settings.privacy_terms
    if request.masking is None:
        if settings.secure_aggregation:
            raise ProtocolError("secure aggregation: the server sent nothing to mask the update with")
        require_unmasked_before(config, request)
    name_shared(site, settings, request.shared)
    counts = told_counts(site, settings, request.run)
    if request.masking is not None:
        require_company(request.masking, counts.weights)
    book = None if terms is None else PrivateRound.of(request, weights, site, terms)
    kept = None if book is None else book.kept()
    done = kept or _trained(request, weights, site, counts, book)
    if done.norms:
        _norms(request, site).save(done.norms, request.round)
    reply, content = done.reply, done.update
    ledger_head = "" if book is None else book.head()
    if request.masking is not None:
        content = mask_update(
            config, request, request.masking, local=content, received=weights, weights=counts.weights
        )
    return reply.model_copy(update={"digest": digest_of(content), "ledger_head": ledger_head}), content


def _trained(
    request: TrainRequest, weights: Packed, site: Site, counts: SiteCounts, book: PrivateRound | None
) -> Done:
    """Return what a round came to: before masks, where there are any."""
    ready = _ready(request, weights, site)
    if book is None:
        done = _fitted(ready, request, weights, site, counts, None)
    else:
        book.reserve()
        try:
            done = _fitted(ready, request, weights, site, counts, book.terms)
        except Exception:
            # That a round failed is told, and follows from what the steps drew: it is paid for.
            book.lose()
            raise
        book.commit(done)
    return done


def _fitted(
    ready: "_Ready",
    request: TrainRequest,
    weights: Packed,
    site: Site,
    counts: SiteCounts,
    terms: PrivacyTerms | None,
) -> Done:
    settings, config = request.settings, site.config
    started = time.perf_counter()
    summary = _fit(ready, request, site, counts, terms)
    packing = time.perf_counter()
    learner = ready.learner
    arrays = pack(learner.model, learner.loss)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise Diverged("training diverged: the weights are no longer finite numbers")
    content = arrays if settings.payload == "masked" else update(settings.payload, arrays, weights)
    done = {"load": summary.load_s, "train": summary.train_s}
    if terms is not None:  # how they divide follows how many patients each step drew
        done = {"train": packing - started}
    seconds = {"setup": ready.seconds, **done, "pack": time.perf_counter() - packing}
    digits = 4 if terms is None else 0
    reply = TrainReply(
        site=config.site,
        round=request.round,
        layout=request.layout,
        payload=settings.payload,
        digest="",
        weights={} if settings.secure_statistics or terms is not None else counts.weights,
        steps=_told_steps(settings, counts),
        loss=None,
        loss_by_task={},
        seconds={phase: round(value, digits) for phase, value in seconds.items()},
    )
    masked = settings.secure_aggregation or request.masking is not None
    if terms is None and not masked:  # beside masks a hospital's losses would give its counts away
        reply = reply.model_copy(update=told_losses(summary, ready.labelled, config.small_cell_limit))
    return Done(reply, content, norms_of(learner.model) if settings.strategy == "fedbn" else {})


@dataclass(frozen=True)
class _Ready:
    """What a round trains: network with the global weights in it, and the cases."""

    learner: Learner
    labelled: list[PreparedCase]
    seconds: float


def _ready(request: TrainRequest, weights: Packed, site: Site) -> _Ready:
    settings, config = request.settings, site.config
    started = time.perf_counter()
    private = settings.privacy == "site"
    silent = private or settings.secure_statistics
    cases = cases_on_scale(site, request.scale, request.run, silent=silent)
    labelled = [prepared for prepared in cases if has_target(prepared.case, settings.tasks)]
    # A private round without a labelled case is steps of noise: that there is one, nobody may learn for sure.
    if not labelled and not private:
        raise DataError("no case with a known label to train on")
    torch.set_num_threads(config.threads or torch.get_num_threads())
    seed_torch(settings.seed, "train", config.site, request.round)
    learner = build_learner(settings, _class_counts(request, site))
    if layout_of(settings).digest != request.layout:
        raise ProtocolError("weights: the coordinator's network differs from the one that this site builds")
    unpack(weights, learner.model, learner.loss)
    if settings.strategy == "fedbn":
        _norms(request, site).restore(learner.model, request.round)
    return _Ready(learner, labelled, time.perf_counter() - started)


def _norms(request: TrainRequest, site: Site) -> OwnNorms:
    return OwnNorms(site.config.state, request.run, request.layout)


def _fit(
    ready: _Ready, request: TrainRequest, site: Site, counts: SiteCounts, terms: PrivacyTerms | None
) -> FitSummary:
    settings, config = request.settings, site.config
    work = LocalWork(settings, ready.labelled, config.site, request.round, request.proximal_mu)
    device = torch.device(config.device)
    if terms is not None:
        ready.learner.to(device)
        # The published number, which is noised: the size of a step must not tell the exact one.
        return train_privately(ready.learner, work, terms, device, patients=counts.weights[TRUNK])
    processes = useful_processes(settings, len(ready.labelled), config.processes)
    if processes == 1:
        ready.learner.to(device)
        return train_locally(ready.learner, work, device)
    left_s = settings.round_timeout_s - ready.seconds
    class_counts = _class_counts(request, site)
    return train_in_processes(ready.learner, work, config, class_counts, processes=processes, limit_s=left_s)


def _class_counts(request: TrainRequest, site: Site) -> dict[Gene, tuple[float, float]]:
    return local_counts(site) if request.settings.counts == "local" else request.class_counts


def _told_steps(settings: RunConfig, counts: SiteCounts) -> int:
    """Return the steps of as many cases as are published: the true number would give theirs away.

    Where the counts are masked it is 0: not told.
    """
    if settings.privacy == "site":
        return settings.steps_per_round
    if settings.secure_statistics:
        return 0
    batches = ceil(counts.weights[TRUNK] / settings.batch_size)
    return settings.local_epochs * ceil(batches / settings.accumulate)


def told_losses(summary: FitSummary, labelled: Sequence[PreparedCase], limit: int) -> dict[str, object]:
    """Return the losses of a round that may be told beside an update that is neither masked nor noised.

    Under a small-cell limit the total alone, to two significant digits, and nothing of fewer cases than the
    limit: each gene's loss beside the total would tell how many have it measured, and one of a network that
    says the same of everybody how many have which status.
    """
    if limit == 1:
        by_task = {task: _rounded(value, 4) for task, value in summary.loss_by_task().items()}
        return {"loss": _rounded(summary.loss, 4), "loss_by_task": by_task}
    return {"loss": None if len(labelled) < limit else _rounded(summary.loss, 2), "loss_by_task": {}}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


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
