"""Whether what was asked for can be trained on this machine at all, before anything is prepared."""

import torch

from fedglioma.config.run import RunConfig
from fedglioma.counts import has_target
from fedglioma.data.split import Split
from fedglioma.errors import ConfigError
from fedglioma.models.build import least_batch
from fedglioma.training.learner import switches_of
from fedglioma.training.precision import Precision
from fedglioma_server.simulate import Simulation


def require_trainable(simulation: Simulation) -> None:
    """Refuse what every site, or one of them, would refuse in its first round; never a run that is complete.

    Raises
    ------
    ConfigError
        A site's device cannot compute in ``precision``, or a site's smallest batch is too small for batch
        normalisation.
    """
    settings, folder = simulation.settings, simulation.folder
    if folder.exists() and folder.read().status == "completed":  # on another machine, perhaps
        return
    least = least_batch(settings.model, switches_of(settings), settings.crop)
    for hospital in simulation.gathering.hospitals:
        cases = sum(
            simulation.split_of(case) is Split.TRAIN and has_target(case, settings.tasks)
            for case in hospital.cases
        )
        if cases:
            Precision.of(settings.precision, torch.device(hospital.config.device))
            _require_batch(settings, hospital.config.site, cases, least)


def _require_batch(settings: RunConfig, site: str, cases: int, least: int) -> None:
    # A case that is left over joins the batch before it, so that all other batches are whole.
    if min(settings.batch_size, cases) >= least:
        return
    why = "with batch_size 1" if settings.batch_size == 1 else f"of {site}'s only training case"
    raise ConfigError(
        f"preset: {settings.preset}: normalises over the batch, and {why} there is one value per channel at "
        f"crop {settings.crop}; choose a larger batch_size or crop, more patients per site, or preset "
        "recommended"
    )
