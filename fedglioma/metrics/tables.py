"""The tables of one evaluation, as ``evaluation/metrics.json`` holds them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from fedglioma.case import GENE_TITLES, GENES, Frozen, Gene
from fedglioma.metrics.bootstrap import CONFIDENCE, RESAMPLES
from fedglioma.metrics.genotype import MIN_PATIENTS, GeneMetrics, gene_metrics
from fedglioma.metrics.predictions import Predictions
from fedglioma.metrics.segmentation import SegmentationMetrics, segmentation_metrics
from fedglioma.metrics.who import WhoTable, who_table
from fedglioma.newfile import replacing

SCHEMA_VERSION = 1


class Evaluation(Frozen):
    """Everything measured on the cases of one split.

    ``reliable`` is false where the patients with a known status are too few for the figures to mean
    anything, in any marker that was measured at all (limits in ``metrics/genotype.py``); ``caution``
    then says so in a sentence that stands beside every table made from this one.
    """

    schema_version: int = SCHEMA_VERSION
    split: str
    n_cases: int = Field(ge=0)
    n_patients: int = Field(ge=0)
    synthetic: bool
    reliable: bool
    caution: str | None
    resamples: int
    confidence: float = CONFIDENCE
    overall: dict[Gene, GeneMetrics]
    by_site: dict[str, dict[Gene, GeneMetrics]]
    by_modalities: dict[str, dict[Gene, GeneMetrics]]
    who: WhoTable | None = Field(description="None where the network was not asked all markers")
    segmentation: SegmentationMetrics | None = None
    segmentation_by_site: dict[str, SegmentationMetrics] = Field(default={})

    def write(self, path: Path) -> None:
        """Write ``metrics.json``; a value that does not exist is ``null`` with its reason beside it."""
        with replacing(path) as file:
            file.write(self.model_dump_json(indent=2).encode() + b"\n")


def evaluate(
    predictions: Predictions, *, split: str, synthetic: bool, resamples: int = RESAMPLES, seed: int = 0
) -> Evaluation:
    """Return the tables of the cases of ``split``: overall, by site, by modality subset, by WHO class."""
    cases = predictions.select(np.array([s == split for s in predictions.split], dtype=bool))
    overall = _genes(cases, resamples, seed)
    tumours = _tumours(cases, resamples, seed)
    caution = caution_of(len(cases), overall, tumours)
    return Evaluation(
        split=split,
        n_cases=len(cases),
        n_patients=len(np.unique(cases.patients)),
        synthetic=synthetic,
        reliable=caution is None,
        caution=caution,
        resamples=resamples,
        overall=overall,
        by_site=_by(cases, cases.sites, resamples, seed),
        by_modalities=_by(cases, cases.modalities, resamples, seed),
        who=who_table(cases, resamples=resamples, seed=seed) if cases.genes == GENES else None,
        segmentation=tumours,
        segmentation_by_site={
            site: found
            for site in sorted(set(cases.sites))
            if (found := _tumours(cases.select(np.array(cases.sites) == site), resamples, seed)) is not None
        },
    )


def _genes(cases: Predictions, resamples: int, seed: int) -> dict[Gene, GeneMetrics]:
    return {
        gene: gene_metrics(
            cases.labels[:, i], cases.probabilities[:, i], cases.patients, resamples=resamples, seed=seed
        )
        for i, gene in enumerate(GENES)
        if gene in cases.genes
    }


def _tumours(cases: Predictions, resamples: int, seed: int) -> SegmentationMetrics | None:
    if cases.tumours is None:
        return None
    dice, hd95, found, outlined = cases.tumours.T
    return segmentation_metrics(dice, hd95, found, outlined, cases.patients, resamples=resamples, seed=seed)


def _by(
    cases: Predictions, keys: Sequence[str], resamples: int, seed: int
) -> dict[str, dict[Gene, GeneMetrics]]:
    column = np.array(keys, dtype=object)
    return {key: _genes(cases.select(column == key), resamples, seed) for key in sorted(set(keys))}


def caution_of(
    n_cases: int, overall: Mapping[Gene, GeneMetrics], tumours: SegmentationMetrics | None
) -> str | None:
    """Return the sentence that stands beside tables of too few patients; None where they are enough."""
    if not n_cases:
        return "No case was held out, so nothing was measured."
    measured = {gene: m for gene, m in overall.items() if m.n}
    if overall and not measured:
        return "No held-out patient has a known marker, so nothing could be measured."
    weak = [f"{GENE_TITLES[gene]}: {m.caution}" for gene, m in measured.items() if m.caution is not None]
    what = "accuracy of these markers"
    if tumours is not None and tumours.n - tumours.no_dice < MIN_PATIENTS:
        weak.append(f"outlines: {tumours.n - tumours.no_dice} cases that somebody outlined")
        what = "figure of these"
    if not weak:
        return None
    return (
        f"Too few patients to judge the model ({'; '.join(weak)}): "
        f"no {what} means anything beyond its interval."
    )
