"""The selected model as a folder that stands alone: weights, and how to build the network."""

from pathlib import Path
from typing import Any

from fedglioma.case import CHANNELS, GENES
from fedglioma.data.prepare import PIPELINE_VERSION
from fedglioma.privacy.accounting import Spent
from fedglioma.tensorfile import write_safetensors
from fedglioma.training.released import CONFIG, FORMAT, SCHEMA_VERSION, WEIGHTS, config_digest
from fedglioma.weights import FlatArrays, Layout, digest_of
from fedglioma_server.records import RoundRecord, RunRecord, write_json


def model_config(
    record: RunRecord, chosen: RoundRecord, arrays: FlatArrays, layout: Layout, spent: Spent | None = None
) -> dict[str, Any]:
    """Return config.json: enough to build the network and to refuse another one's weights.

    ``spent`` is what training did to the patients' privacy, for whoever goes on from the model.
    """
    config: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "format": FORMAT,
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
        "pipeline": PIPELINE_VERSION,
        "versions": record.versions,
        "spent": None if spent is None else spent.model_dump(mode="json"),
    }
    return {**config, "config_digest": config_digest(config)}


def write_model(
    folder: Path,
    record: RunRecord,
    chosen: RoundRecord,
    arrays: FlatArrays,
    layout: Layout,
    spent: Spent | None = None,
) -> None:
    """Write ``model.safetensors`` and ``config.json``."""
    config = model_config(record, chosen, arrays, layout, spent)
    metadata = {"layout": layout.digest, "digest": config["digest"], "scale": record.scale_id or "none"}
    write_safetensors(folder / WEIGHTS, layout.named(arrays), metadata)
    write_json(folder / CONFIG, config)
