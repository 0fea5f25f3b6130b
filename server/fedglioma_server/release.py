"""The selected model as a folder that stands alone: weights, how to build it, and a card."""

from pathlib import Path
from typing import Any

from fedglioma.case import CHANNELS, GENE_TITLES, GENES
from fedglioma.metrics.bootstrap import Measure
from fedglioma.metrics.tables import Evaluation
from fedglioma.tensorfile import write_safetensors
from fedglioma.weights import FlatArrays, Layout, digest_of
from fedglioma_server.records import RoundRecord, RunRecord, write_json, write_text

CARD = """\
---
tags: [medical, mri, glioma, federated-learning]
license: other
---
# {title}

**Research use only. Not a medical device.**{synthetic}

A {parameters:,}-parameter MDPNet ({preset} preset, width {width}) that reads IDH, ATRX and 1p/19q status
from brain MRI. It was trained by {strategy} over {sites} in {rounds} rounds with fedglioma
{version}; round {chosen} had the lowest held-out loss and is the one released here.

## Input
Channels, in this order: {channels}. {intensities} on a
{spacing:g} mm grid in RAS orientation, background 0; a centre crop of {crop} voxels per axis. A missing
sequence is a channel of zeros with its presence bit 0.

## Output
Per gene two logits in the order wild-type or intact, mutant or codeleted: {genes}.

## Held-out result (split `{split}`, {cases} cases)
{results}
{caution}

## Privacy
{privacy}

## Files
`model.safetensors` holds the shared tensors by name (`model.` the network, `loss.` the learned task
weights), `config.json` how to build it. Load with `fedglioma_server.release.load_model(folder)`.
"""


def model_config(
    record: RunRecord, chosen: RoundRecord, arrays: FlatArrays, layout: Layout
) -> dict[str, Any]:
    """Return config.json: enough to build the network and to refuse another one's weights."""
    return {
        "schema_version": 1,
        "format": "fedglioma-model",
        "run_id": record.run_id,
        "round": chosen.round,
        "synthetic": record.synthetic,
        "settings": record.settings.model_dump(mode="json"),
        "channels": [modality.value for modality in CHANNELS],
        "genes": [gene.value for gene in GENES],
        "scale": None if record.scale is None else record.scale.model_dump(mode="json"),
        "scale_id": record.scale_id,
        "class_counts": {gene.value: list(counts) for gene, counts in record.class_counts.items()},
        "layout": layout.digest,
        "digest": digest_of(arrays),
        "versions": record.versions,
    }


def write_model(
    folder: Path, record: RunRecord, chosen: RoundRecord, arrays: FlatArrays, layout: Layout
) -> None:
    """Write ``model.safetensors`` and ``config.json``."""
    config = model_config(record, chosen, arrays, layout)
    metadata = {"layout": layout.digest, "digest": config["digest"], "scale": record.scale_id or "none"}
    write_safetensors(folder / "model.safetensors", layout.named(arrays), metadata)
    write_json(folder / "config.json", config)


def intensities_text(record: RunRecord) -> str:
    """Return what was done to intensities, for the card."""
    corrected = "bias-corrected (N4) and " if record.settings.bias_correction else ""
    if record.scale is None:
        return f"Each volume is {corrected}z-scored inside the brain,"
    behind = ", ".join(
        f"{modality} {record.scale.cases[modality]} cases of {record.scale.sites[modality]} sites"
        for modality in CHANNELS
    )
    return (
        f"Each volume is {corrected}laid on the consortium's intensity scale (`scale` in config.json, id "
        f"{record.scale.id[:12]}; {behind}),"
    )


def write_card(
    folder: Path, record: RunRecord, chosen: RoundRecord, evaluation: Evaluation, privacy: str
) -> None:
    """Write the model card, README.md."""
    settings = record.settings
    synthetic = (
        "\n\n**Trained on SYNTHETIC patients: made-up images, no clinical evidence of any kind.**"
        if record.synthetic
        else ""
    )
    text = CARD.format(
        title=f"fedglioma model of run {record.run_id}",
        synthetic=synthetic,
        parameters=record.parameters,
        preset=settings.preset,
        width=settings.width,
        strategy=settings.strategy,
        sites=f"{len(record.sites)} sites ({', '.join(sorted(record.sites))})",
        rounds=settings.rounds,
        version=record.versions.get("fedglioma", "unknown"),
        chosen=chosen.round,
        channels=", ".join(m.value for m in CHANNELS),
        spacing=settings.spacing_mm,
        intensities=intensities_text(record),
        crop=settings.crop,
        genes=", ".join(g.value for g in GENES),
        split=evaluation.split,
        cases=evaluation.n_cases,
        results=results_text(evaluation),
        caution=f"\n**{evaluation.caution}**" if evaluation.caution else "",
        privacy=privacy,
    )
    write_text(folder / "README.md", text)


def results_text(evaluation: Evaluation) -> str:
    """Return a Markdown table: per gene AUC and accuracy with intervals, the majority class beside."""
    lines = ["| gene | known | AUC | accuracy | majority class |", "|---|---|---|---|---|"]
    for gene, found in evaluation.overall.items():
        lines.append(
            f"| {GENE_TITLES[gene]} | {found.n} | {measure_text(found.auc)} | {measure_text(found.accuracy)} "
            f"| {measure_text(found.majority, interval=False)} |"
        )
    return "\n".join(lines)


def measure_text(measure: Measure, *, interval: bool = True) -> str:
    """Return ``0.86 [0.78-0.93]``, or a dash where the measure is undefined."""
    if measure.value is None:
        return "-"
    if not interval or measure.low is None or measure.high is None:
        return f"{measure.value:.2f}"
    return f"{measure.value:.2f} [{measure.low:.2f}-{measure.high:.2f}]"
