"""What a run's settings come to: two runs that resolve to the same are the same training."""

from typing import Any, Final

from fedglioma.config.effect import without_effect
from fedglioma.config.run import RunConfig

_BESIDE_TRAINING: Final = ("bootstrap", "purpose", "keep_updates")
"""Settings of what is done with a trained network."""
PRESETS: Final = {
    "recommended": {"guide_mode": "p_mut", "head_act": "leaky_relu", "ldam_input": "prob"},
    "reference": {"guide_mode": "max_prob", "head_act": "none", "ldam_input": "double_softmax"},
}
"""What ``auto`` chooses under each preset, as ``models/mdpnet.py`` and ``losses/multitask.py`` have it."""


def resolved(settings: RunConfig) -> dict[str, Any]:
    """Return the settings that decide what is trained, each as what it stands for.

    Settings without effect are left out, and values that name the same thing are one: ``auto`` and what it
    chooses, the strategy's own ``server_lr`` and 0, of ``attention`` what there is a path for. So is a preset
    that decides nothing that is not there by itself.
    """
    values = settings.model_dump() | {
        "weighting": settings.task_weighting,
        "server_lr": settings.server_learning_rate,
        "inference": "sliding" if settings.sliding else "centre",
        "norm": "batch" if settings.batch_norm else "group",
    }
    values |= {name: own for name, own in PRESETS[settings.preset].items() if values[name] == "auto"}
    idle = {*without_effect(settings), *_BESIDE_TRAINING}
    if settings.model == "mdpnet" and settings.path2 == "none":
        values["attention"] = settings.attention.partition("+")[0]
        idle.discard("attention")  # idle is what is built without it, too, and here it is named
    # By itself a preset decides what the transformer drops by chance; all else has a setting.
    if settings.model != "mdpnet" or "vit" not in values["attention"]:
        idle.add("preset")
    return {name: value for name, value in values.items() if name not in idle}
