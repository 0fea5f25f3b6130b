"""The ``bundle`` command: a released model as a folder that ``python -m monai.bundle`` verifies and runs.

Weights stay safetensors, copied as they are; no pickle is written or read. The network is built by an
installed function of fedglioma, so whoever runs the bundle installs ``fedglioma[bundle]``.
"""

import re
from pathlib import Path
from typing import Any, Final

from fedglioma.data.smallfile import read_small
from fedglioma.errors import ConfigError
from fedglioma.metrics.tables import Evaluation
from fedglioma.newfile import new_folder
from fedglioma.training.released import CONFIG, WEIGHTS, load_model, model_digest, read_config
from fedglioma_server.attack_report import UNTRIED, attack_on, attack_words, require_releasable
from fedglioma_server.bundle_config import LOGGING, inference_config, metadata
from fedglioma_server.card_tables import plain
from fedglioma_server.records import RunRecord, read_json, write_json, write_text
from fedglioma_server.report_text import listing
from fedglioma_server.stated_privacy import stated_privacy

CARD: Final = "README.md"
_MOST_TEXT_BYTES: Final = 1 << 20
_VERSION: Final = re.compile(r"\d+\.\d+\.\d+", re.ASCII)

LICENSE: Final = """\
The weights in models/ were trained by {authors}. This file grants no licence for them: who may use them for
what is decided by those who trained them and by the hospitals whose patients they were trained on. Ask them,
or put their licence in place of this text.

The files in configs/ were written by fedglioma and may be used under the Apache License, Version 2.0:
https://www.apache.org/licenses/LICENSE-2.0

Research use only. Not a medical device.
"""
DATA_LICENSE: Final = """\
{cohorts}

No patient's image or table is part of this bundle, and none can be asked for through it. The data stay at
the hospitals, under their own terms.
"""
HOW_TO: Final = """
## As a MONAI bundle

    pip install 'fedglioma[bundle]'
    python -m monai.bundle run --bundle_root . --config_file configs/inference.json \\
        --meta_file configs/metadata.json --dataset_dir COHORT --output_dir OUT

`COHORT` has a folder per patient in BIDS or BraTS names; other names are given by `--data_list_file FILE`, a
JSON list of `{"id": ..., "flair": ..., "t1ce": ..., "t1": ..., "t2": ...}` with paths that begin at
`COHORT`. Leave a missing sequence out. `OUT` gets `predictions.json`, `predictions.csv` and, of a network
that outlines, `<id>_seg.nii.gz`; its `cache` holds prepared images of the patients. As with every bundle, the
files in `configs/` decide which code runs: take them only from whom you trust.
"""


def write_bundle(
    model: Path,
    out: Path,
    *,
    bundle_version: str,
    authors: str | None,
    license_file: Path | None,
    without_attack: bool = False,
) -> tuple[dict[str, Any], str]:
    """Return what was written as data and text: a new folder, there whole or not at all.

    Raises
    ------
    ConfigError
        ``out`` is there already, the version is not three numbers, the model has no card, or the licence
        cannot be read.
    ProtocolError
        The model is damaged or not one of fedglioma.
    FedGliomaError
        What is stated of the model's privacy does not hold, or nobody tried it (``require_releasable``).
    """
    if not model.is_dir():
        raise ConfigError(f"{model}: no such folder; name the model folder of a run")
    if out.exists():
        raise ConfigError(f"--out {out}: is there already and is never overwritten; name a new folder")
    if not _VERSION.fullmatch(bundle_version):
        raise ConfigError(f"--bundle-version {bundle_version}: give three numbers with points, such as 1.0.0")
    _, settings, _ = load_model(model)
    config = read_config(model)
    run, evaluation = _run_around(model, config)
    place = None if run is None else model.resolve().parent
    attacked = None if place is None else attack_on(place, model_digest(model))
    stated = stated_privacy(model, settings, place)
    require_releasable(model, stated, attacked, without_attack=without_attack)
    who = authors or f"the consortium of run {config['run_id']}"
    cohorts = _cohorts(run)
    described = metadata(
        config,
        settings,
        bundle_version=bundle_version,
        authors=who,
        cohorts=cohorts,
        evaluation=evaluation,
    )
    license_text = (
        LICENSE.format(authors=who)
        if license_file is None
        else _text(license_file, "name a text file by --license")
    )
    card = _text(model / CARD, "the model card is missing or unreadable; copy the whole model folder")
    tried = attack_words(attacked) if attacked is not None else [UNTRIED] if without_attack else []
    if tried:
        card += "\n## Attacks\n\n" + "\n".join(f"- {sentence}" for sentence in tried) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out) as folder:
        folder.chmod(0o755)
        write_text(folder / "LICENSE", license_text)
        write_json(folder / "configs" / "metadata.json", described)
        write_json(folder / "configs" / "inference.json", inference_config())
        write_text(folder / "configs" / "logging.conf", LOGGING)
        write_text(folder / "docs" / CARD, card + HOW_TO)
        write_text(folder / "docs" / "data_license.txt", DATA_LICENSE.format(cohorts=cohorts))
        (folder / "models").mkdir()
        for name in (CONFIG, WEIGHTS):
            (folder / "models" / name).write_bytes((model / name).read_bytes())
        load_model(folder / "models")
    data = {"folder": str(out), "version": bundle_version, "digest": config["digest"]}
    return data, f"bundle {bundle_version} of run {config['run_id']}, round {config['round']}: {out}"


def _run_around(model: Path, config: dict[str, Any]) -> tuple[RunRecord | None, Evaluation | None]:
    """Return record and held-out result of the run folder that a model still lies in; None elsewhere."""
    try:
        record = read_json(model.resolve().parent / "run.json", RunRecord)
        evaluation = read_json(model.resolve().parent / "evaluation" / "metrics.json", Evaluation)
    except (ConfigError, OSError):
        return None, None
    return (record, evaluation) if record.run_id == config["run_id"] else (None, None)


def _cohorts(run: RunRecord | None) -> str:
    if run is None:
        return "Patients of the hospitals that docs/README.md names; their data are not published."
    if run.synthetic:
        return "Made-up patients (fedglioma-server synthesize); no real patient."
    sites = listing([plain(name) for name in sorted(run.sites)])
    return f"Patients of {sites}; their data stay at the hospitals and are not published."


def _text(path: Path, why: str) -> str:
    try:
        return read_small(path, _MOST_TEXT_BYTES).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; {why}") from None
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise ConfigError(f"{path}: {reason}; {why}") from None
