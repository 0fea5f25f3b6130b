"""What the model card says of a network: what it is, what it is given, how it was trained, in sentences."""

from collections.abc import Sequence

from fedglioma.case import CHANNELS, CLASS_TITLES, Task
from fedglioma.config.run import RunConfig
from fedglioma.counts import shown, shown_cells
from fedglioma.data.prepare import WHOLE_HEAD_MM, PrepareSettings
from fedglioma.training.inference import Reader
from fedglioma_server.card_tables import plain
from fedglioma_server.network_words import TITLES, what_it_reads
from fedglioma_server.records import RoundRecord, RunRecord
from fedglioma_server.report_headline import STRATEGY_TITLES

FORMS: dict[str, str] = {
    "mdpnet": "two paths that exchange what they saw, a transformer and gated residual blocks, and a 1p/19q "
    "head that is told what the others say",
    "sgpnet": "one encoder and decoder for the tumour's outline and for IDH status",
    "resnet50": "a backbone of MONAI and one linear layer per marker",
    "densenet121": "a backbone of MONAI and one linear layer per marker",
    "senet": "a backbone of MONAI and one linear layer per marker",
    "unet": "a segmentation network of MONAI",
    "segresnet": "a segmentation network of MONAI, without its autoencoder",
    "swinunetr": "a segmentation network of MONAI",
}
TARGETS: dict[str, str] = {
    "both": "",
    "idh": " Its outline was left out (`targets` idh).",
    "seg": " Its IDH block was left out (`targets` seg).",
    "random": " As a control, it learned masks of noise instead of outlines (`targets` random): what it "
    "outlines means nothing.",
}


_OTHER_SWITCHES = ("norm", "guide_mode", "guide_detach", "head_act", "head_1x1")


def network_text(record: RunRecord) -> str:
    """Return which network it is, with the switches that are not the default."""
    settings = record.settings
    switches = [f"width {settings.width}"]
    if settings.model != "sgpnet":
        switches.insert(0, f"{settings.preset} preset")
    if settings.model == "mdpnet":
        switches += [f"{name} {getattr(settings, name)}" for name in ("path2", "attention", "guide")]
    fields = type(settings).model_fields
    switches += [
        f"{name} {getattr(settings, name)}"
        for name in _OTHER_SWITCHES
        if getattr(settings, name) != fields[name].default
    ]
    return (
        f"A {record.parameters:,}-parameter {TITLES[settings.model]} ({', '.join(switches)}): "
        f"{FORMS[settings.model]}. It {what_it_reads(settings)} from brain MRI.{TARGETS[settings.targets]}"
    )


def preparation_text(record: RunRecord) -> str:
    """Return what is done to a patient's images before the network sees them."""
    settings = record.settings
    asked = PrepareSettings.of(settings)
    over = "T2" if asked.reference == "t2" else "the sharpest of them"
    grid = f"resampled once to a {settings.spacing_mm:g} mm grid in RAS orientation"
    if asked.whole_head:
        x, y, z = WHOLE_HEAD_MM
        box = f"cut to {x:g} x {y:g} x {z:g} mm about the brain"
    elif asked.resized:
        box = f"cut to the brain, which is stretched to {asked.resized} voxels per axis"
    else:
        box = f"cut to the brain with {asked.margin_mm:g} mm around it"
    return (
        f"All sequences of a patient are laid over {over}, {grid}, freed of what is not brain, and {box} "
        f"(`preprocessing` {settings.preprocessing}). {intensities_text(record)} Outside the brain is 0. A "
        "missing sequence is a channel of zeros with its presence bit 0; its content never matters."
    )


def intensities_text(record: RunRecord) -> str:
    """Return what was done to intensities."""
    corrected = "bias-corrected (N4) and " if PrepareSettings.of(record.settings).correct_bias else ""
    if record.scale is None:
        inside = "over the whole box" if record.settings.zscore == "volume" else "inside the brain"
        return f"Each volume is {corrected}z-scored {inside}."
    behind = ", ".join(
        f"{modality} {record.scale.cases[modality]} cases of {record.scale.sites[modality]} sites"
        for modality in CHANNELS
    )
    return (
        f"Each volume is {corrected}laid on the consortium's intensity scale (`scale` in config.json, id "
        f"{record.scale.id[:12]}; {behind})."
    )


def reading_text(settings: RunConfig) -> str:
    """Return how an image is given to the network."""
    reader = Reader.of(settings)
    if settings.preprocessing == "sgpnet":
        text = f"the whole brain's box, stretched to {settings.crop} voxels along each axis"
    elif reader.window is None:
        text = f"a centre crop of {settings.crop} voxels per axis, zero-padded where the image is smaller"
    else:
        text = (
            f"windows of {reader.window} voxels per axis that overlap by half; a voxel's probability is the "
            "mean over the windows that see it (Gaussian weights), a marker's that over all windows"
        )
    return f"{text}; averaged over the eight mirror images" if reader.flips else text


def output_text(settings: RunConfig) -> str:
    """Return what comes out, task by task."""
    lines = []
    for gene in settings.genes:
        negative, positive = CLASS_TITLES[gene]
        lines.append(f"- `{gene.value}`: two logits, {negative} then {positive}.")
    if Task.SEGMENTATION in settings.tasks:
        lines.append(
            "- `segmentation`: two logits per voxel, background then whole tumour (necrosis, oedema and "
            "enhancing tumour together), on the grid of the input."
        )
    if settings.genes:
        lines.append("\nProbabilities are the softmax of the logits. They are not calibrated.")
    return "\n".join(lines)


def training_text(record: RunRecord, chosen: RoundRecord, rounds_done: int) -> str:
    """Return how the weights came about."""
    settings = record.settings
    sites = ", ".join(plain(name) for name in sorted(record.sites))
    said = [
        f"Trained by {settings.strategy} ({STRATEGY_TITLES[settings.strategy]}) over {len(record.sites)} "
        f"sites ({sites}) in {rounds_done} rounds with fedglioma "
        f"{plain(record.versions.get('fedglioma', 'unknown'))}; {_choice(chosen)}",
        *_circumstances(record, rounds_done),
        f"Adam, learning rate {settings.lr:g} ({settings.schedule}), batch {settings.batch_size}, "
        f"{settings.local_epochs} local epoch(s) a round, seed {settings.seed}; all settings are in "
        "config.json.",
        *_excluded(record),
    ]
    return "\n".join(f"- {line}" for line in said)


def _choice(chosen: RoundRecord) -> str:
    if chosen.heldout.loss is None:
        return (
            f"no loss was defined on held-out patients, so the last, round {chosen.round}, is released here."
        )
    return (
        f"round {chosen.round} had the lowest held-out loss, on {shown(chosen.heldout.cases)} cases that "
        "chose the round and are not reported on, and is the one released here."
    )


def _taken(record: RunRecord) -> str:
    return "the intensity scale is that model's, " if record.scale_from_model else ""


def _counted(record: RunRecord) -> str:
    return "of this run's sites" if record.settings.given_counts is None else "as `counts` says"


def _circumstances(record: RunRecord, rounds_done: int) -> Sequence[str]:
    settings, said = record.settings, []
    if record.initial_digest is not None:
        said.append(
            f"It started from another released model (weights {record.initial_digest[:12]}), so that model's "
            f"training patients count as this one's; {_taken(record)}class counts are {_counted(record)}."
        )
    if record.division is not None:
        said.append(
            f"Patients were divided by a file: {plain(record.division)} (digest "
            f"{(record.division_digest or 'unknown')[:12]})."
        )
    if settings.ema:
        said.append(
            f"The weights are a running mean over the rounds (decay {settings.ema:g}), not those of one."
        )
    if rounds_done < settings.rounds:
        said.append(
            f"The run ended early: {settings.rounds} rounds were planned, and none of the last "
            f"{settings.early_stopping} had a lower held-out loss."
            if settings.early_stopping
            else f"Of {settings.rounds} planned rounds {rounds_done} were done."
        )
    if settings.strategy == "fedbn":
        said.append(
            "Normalisation layers stayed at the sites; the released ones have statistics of the selection "
            "patients."
        )
    return said


def _excluded(record: RunRecord) -> Sequence[str]:
    left_out: dict[str, int] = {}
    for issue in record.issues:
        if issue.kind == "excluded":
            left_out[issue.code] = left_out.get(issue.code, 0) + issue.cases
    if not left_out:
        return []
    numbers = shown_cells(list(left_out.values()))
    reasons = ", ".join(f"{plain(code)} {n}" for code, n in sorted(zip(left_out, numbers, strict=True)))
    return [f"Cases left out that the coordinator knows of, by reason: {reasons}."]
