"""A hospital of a few made-up patients, small enough to train on in seconds."""

from pathlib import Path

import numpy as np

from fedglioma.case import UNKNOWN, Case, Genotype, Modality
from fedglioma.config.run import RunConfig
from fedglioma.config.site import SiteConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.seeds import seed_torch
from fedglioma.training.learner import EQUAL_COUNTS, Learner, build_learner, initial_learner
from fedglioma.training.local import LocalWork
from fedglioma.training.parallel import load_state, state_of

LABELS = ((1, 1, 0), (0, UNKNOWN, 1), (UNKNOWN, 0, UNKNOWN), (1, 0, 0), (0, 1, UNKNOWN))


def made_up_cases(folder: Path, count: int = 5, edge: int = 20, *, masks: bool = False) -> list[PreparedCase]:
    """Return prepared patients of noise; with masks, every second one has a tumour's."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    cases = []
    for number in range(count):
        array, mask = folder / f"{number}.npy", folder / f"{number}-mask.npy"
        np.save(array, rng.normal(size=(4, edge, edge, edge)).astype(np.float16))
        np.save(mask, (rng.random((edge, edge, edge)) < 0.3).astype(np.uint8))
        idh, atrx, codel = LABELS[number % len(LABELS)]
        case = Case(
            patient=f"patient-{number}",
            site="north",
            volumes={Modality.T2: folder / "t2.nii.gz"},
            mask=mask if masks and number % 2 == 0 else None,
            genotype=Genotype(idh=idh, atrx=atrx, codel_1p19q=codel),
        )
        present = (True, number % 3 != 0, True, True)
        cases.append(
            PreparedCase(
                case=case, array=array, present=present, digest=str(number), percentiles={}, mask=case.mask
            )
        )
    return cases


def work_of(cases: list[PreparedCase], settings: RunConfig, mu: float = 0.0) -> LocalWork:
    """Return the second round of a run at the site north."""
    return LocalWork(settings, cases, "north", 2, mu)


def begun(settings: RunConfig) -> Learner:
    """Return a learner as a round begins with it: the run's first weights, the round's random numbers."""
    first = state_of(initial_learner(settings, EQUAL_COUNTS))
    seed_torch(settings.seed, "train", "north", 2)
    learner = build_learner(settings, EQUAL_COUNTS)
    load_state(learner, first)
    return learner


def site_config(folder: Path, processes: int = 1) -> SiteConfig:
    """Return the settings of the site north, whose state lies in the folder."""
    return SiteConfig(
        site="north", data=folder / "data", state=folder / "state", threads=processes, processes=processes
    )
