"""Heads whose truth is known, for the benchmarks of images: real co-registered cases, or made-up ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.anatomy import Label
from fedglioma.data.harmonize import to_ras
from fedglioma.data.phantom import Tissue, render_tissue
from fedglioma.data.scanner import Scanner, acquire
from fedglioma.data.synthetic import FULL_SIZE, Recipe
from fedglioma.data.synthetic_sites import make_sites
from fedglioma.data.volume import Mask, Volume, read_volume

SITE = "zhengzhou"


@dataclass(frozen=True)
class Subject:
    """One patient's modalities in one space, RAS order, and the brain's voxels on the grid of each."""

    volumes: Mapping[Modality, Volume]
    brain: Mapping[Modality, Mask]


@dataclass(frozen=True)
class Phantom:
    """A made-up head's tissue, and the scanner that takes its images."""

    tissue: Tissue
    scanner: Scanner
    seed: int

    def subject(self, *, skull: bool = True) -> Subject:
        """Return four modalities as the scanner makes them, 240 x 240 x 155 voxels of 1 mm."""
        affine = self.tissue.grid.affine()
        brain = to_ras(Volume(self.tissue.whole(self.tissue.brain_voxels()).astype(np.float32), affine))
        volumes = {}
        for modality in CHANNELS:
            levels = acquire(self.tissue, modality, self.scanner, self.seed, prepared=not skull)
            volumes[modality] = to_ras(Volume(levels.astype(np.float32), affine))
        return Subject(volumes, dict.fromkeys(CHANNELS, brain.array > 0))

    def white(self) -> Mask:
        """Return the voxels, in the tissue's box, that are all white matter and no tumour."""
        pure = self.tissue.voxels(self.tissue.labels == Label.WHITE) > 0.99
        white: Mask = pure & self.tissue.brain_voxels() & (self.tissue.mask_voxels() == 0)
        return white


def phantoms(count: int, *, skull: bool) -> Iterator[Phantom]:
    """Yield made-up heads of full size."""
    recipe = Recipe(patients=count, sites=make_sites([SITE]), size=FULL_SIZE, skull=skull)
    for number in range(count):
        patient = recipe.sample(number)
        tissue = render_tissue(patient, recipe.grid, skull=skull)
        yield Phantom(tissue, recipe.sites[0].scanner, patient.seed)


def patients_of(folder: Path) -> list[Path]:
    """Return the folders of the patients that have all four modalities.

    Raises
    ------
    SystemExit
        There is none.
    """
    found = [
        one
        for one in sorted(folder.glob("*"))
        if all(file_of(one, modality).is_file() for modality in CHANNELS)
    ]
    if not found:
        raise SystemExit(f"{folder}: no folder with four modalities, as <id>/<id>_t1.nii.gz")
    return found


def file_of(patient: Path, modality: Modality) -> Path:
    """Return the path of a patient's modality."""
    return patient / f"{patient.name}_{modality}.nii.gz"


def read_subject(patient: Path) -> Subject:
    """Return a patient whose skull was stripped: what is not 0 is brain."""
    volumes = {modality: to_ras(read_volume(file_of(patient, modality))) for modality in CHANNELS}
    return Subject(volumes, {modality: volume.array != 0 for modality, volume in volumes.items()})


def tumour_of(patient: Path) -> Mask:
    """Return the voxels of a patient's outlined tumour, by experts or else by algorithms; RAS order."""
    files = [patient / f"{patient.name}_{name}.nii.gz" for name in ("seg", "segauto")]
    volume = to_ras(read_volume(next(file for file in files if file.is_file())))
    tumour: Mask = volume.array > 0
    return tumour
