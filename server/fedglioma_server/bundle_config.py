"""The JSON files of a MONAI bundle: metadata.json, inference.json and logging.conf."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from fedglioma.case import CHANNELS, Task
from fedglioma.config.run import RunConfig
from fedglioma.metrics.small_cells import passed_on
from fedglioma.metrics.tables import Evaluation
from fedglioma.training.bundle_parts import channel_titles
from fedglioma_server.card import intended_use
from fedglioma_server.card_words import reading_text
from fedglioma_server.network_words import TITLES, what_it_reads
from fedglioma_server.report_text import MODALITY_TITLES

SCHEMA: Final = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
TESTED_MONAI: Final = "1.6.1"
"""Named where MONAI itself is not installed; writing a bundle does not need it."""
REQUIRED: Final = ("fedglioma", "fire", "nibabel", "pydantic", "safetensors", "SimpleITK")
REFERENCES: Final[dict[str, list[str]]] = {
    "mdpnet": ["Wang et al. (2025), Frontiers in Oncology, doi:10.3389/fonc.2025.1574861"],
}

LOGGING: Final = """\
[loggers]
keys=root

[handlers]
keys=screen

[formatters]
keys=plain

[logger_root]
level=INFO
handlers=screen

[handler_screen]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)

[formatter_plain]
format=%(asctime)s %(levelname)s %(name)s: %(message)s
"""


def inference_config() -> dict[str, Any]:
    """Return inference.json; paths begin at ``bundle_root``, and everything can be overridden by name."""
    parts, results = "fedglioma.training.bundle_parts", "fedglioma.training.bundle_results"
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "data_list_file": None,
        "output_dir": "$@bundle_root + '/eval'",
        "cache_dir": "$@output_dir + '/cache'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "datalist": {
            "_target_": f"{parts}.datalist",
            "dataset_dir": "@dataset_dir",
            "data_list_file": "@data_list_file",
        },
        "network_def": {"_target_": f"{parts}.load_network", "folder": "$@bundle_root + '/models'"},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": [
                {"_target_": f"{parts}.Prepare", "network": "@network_def", "cache_dir": "@cache_dir"}
            ],
        },
        "dataset": {"_target_": "monai.data.Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "inferer": {"_target_": f"{parts}.Inferer"},
        "postprocessing": {
            "_target_": "monai.transforms.Compose",
            "transforms": [
                {"_target_": f"{results}.Save", "network": "@network_def", "output_dir": "@output_dir"}
            ],
        },
        "evaluator": {
            "_target_": f"{results}.Evaluator",
            "dataset": "@dataset",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "device": "@device",
            "output_dir": "@output_dir",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(
    config: dict[str, Any],
    settings: RunConfig,
    *,
    bundle_version: str,
    authors: str,
    cohorts: str,
    evaluation: Evaluation | None,
) -> dict[str, Any]:
    """Return metadata.json of a released model.

    Parameters
    ----------
    config : dict
        The model's config.json.
    cohorts : str
        Where the training patients come from, in a sentence.
    evaluation : Evaluation, optional
        The held-out result; without it ``eval_metrics`` is empty.
    """
    run, warning = str(config["run_id"]), " Trained on made-up patients." if config["synthetic"] else ""
    title = TITLES[settings.model]
    return {
        "schema": SCHEMA,
        "version": bundle_version,
        "changelog": {bundle_version: f"round {config['round']} of run {run}"},
        "monai_version": _version("monai", TESTED_MONAI),
        "pytorch_version": _version("torch").split("+")[0],
        "numpy_version": _version("numpy"),
        "required_packages_version": {name: _version(name) for name in REQUIRED if _version(name)},
        "name": f"Glioma MRI: {title}",
        "task": f"A network that {what_it_reads(settings)} from brain MRI of a glioma",
        "description": (
            f"{title} of run {run}, trained by {settings.strategy} with fedglioma "
            f"{config['versions'].get('fedglioma', 'unknown')}. Weights {config['digest']}. The network is "
            f"given {reading_text(settings)}.{warning} See docs/README.md."
        ),
        "authors": authors,
        "copyright": f"Copyright (c) {authors}",
        "data_source": cohorts,
        "data_type": "nibabel",
        "image_classes": "4 sequences in this order: " + ", ".join(MODALITY_TITLES[m] for m in CHANNELS),
        "label_classes": "none; measure on labelled patients with fedglioma-server evaluate",
        "pred_classes": "probability of each: " + ", ".join(channel_titles(settings)),
        "eval_metrics": {} if evaluation is None else _figures(evaluation),
        "intended_use": f"Research use only, not a medical device. {intended_use(settings)}",
        "references": REFERENCES.get(settings.model, []),
        "network_data_format": {
            "inputs": {"image": _image(settings)},
            "outputs": {"pred": _answer(settings)},
        },
    }


def _image(settings: RunConfig) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": len(CHANNELS),
        "spatial_shape": [settings.crop] * 3,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": settings.sliding,
        "channel_def": {str(i): MODALITY_TITLES[modality] for i, modality in enumerate(CHANNELS)},
    }


def _answer(settings: RunConfig) -> dict[str, Any]:
    titles = channel_titles(settings)
    outlines = Task.SEGMENTATION in settings.tasks
    return {
        "type": "image" if outlines else "probabilities",
        "format": "segmentation" if outlines else "classes",
        "num_channels": len(titles),
        "spatial_shape": [settings.crop] * 3 if outlines else [1, len(titles)],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": outlines and settings.sliding,
        "channel_def": {str(i): title for i, title in enumerate(titles)},
    }


def _figures(evaluation: Evaluation) -> dict[str, float]:
    """Return the held-out figures that exist and are of enough patients, by name."""
    named = {}
    evaluation = passed_on(evaluation)
    for gene, found in evaluation.overall.items():
        named[f"{gene.value}_auc"] = found.auc.value
        named[f"{gene.value}_accuracy"] = found.accuracy.value
    if evaluation.segmentation is not None:
        named["whole_tumour_mean_dice"] = evaluation.segmentation.mean_dice.value
        named["whole_tumour_mean_hd95_mm"] = evaluation.segmentation.mean_hd95_mm.value
    return {name: round(value, 4) for name, value in named.items() if value is not None}


def _version(package: str, absent: str = "") -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return absent
