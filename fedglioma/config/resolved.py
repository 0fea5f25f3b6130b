"""What a run's settings come to: two runs that resolve to the same are the same training."""

from typing import Any, Final

from fedglioma.config.effect import without_effect
from fedglioma.config.run import RunConfig

_BESIDE_TRAINING: Final = ("bootstrap", "purpose", "keep_updates")
"""Settings of what is done with a trained network."""


def resolved(settings: RunConfig) -> dict[str, Any]:
    """Return the settings that decide what is trained, each as what it stands for.

    Settings without effect are left out, and values that name the same thing are one: ``auto`` and what it
    chooses, the strategy's own ``server_lr`` and 0, of ``attention`` what there is a path for.
    """
    values = settings.model_dump() | {
        "weighting": settings.task_weighting,
        "server_lr": settings.server_learning_rate,
        "inference": "sliding" if settings.sliding else "centre",
    }
    if settings.path2 == "none":
        values["attention"] = settings.attention.partition("+")[0]
    idle = {*without_effect(settings), *_BESIDE_TRAINING}
    if settings.model == "sgpnet":
        idle.add("preset")
    return {name: value for name, value in values.items() if name not in idle}
