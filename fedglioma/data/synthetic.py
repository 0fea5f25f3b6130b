"""Synthetic cohorts: made-up patients from made-up hospitals, in memory or as a cohort on disk.

For tests, demonstrations and simulation where no hospital's data are at hand. Nothing measured on them is
clinical evidence, and everything written says so.

The patient of number 17 is the same whatever number of patients is asked for: each has random streams of
its own, derived from the cohort's seed and its number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedglioma.case import CHANNELS, Genotype, Modality, Outcome
from fedglioma.console import Progress, silent
from fedglioma.data.fields import FloatArray, Grid, stream
from fedglioma.data.lesion import MaskArray
from fedglioma.data.patients import Patient, sample_patient
from fedglioma.data.phantom import render_tissue
from fedglioma.data.scanner import IntArray, acquire
from fedglioma.data.synthetic_sites import SyntheticSite, make_sites
from fedglioma.errors import ConfigError

DEFAULT_SITES = ("ningxia", "zhengzhou", "henan")
DEFAULT_OVERLAP = 0.5
FULL_SIZE = 0
_SIZES_MM = (16, 176)


@dataclass(frozen=True)
class Recipe:
    """Everything that a synthetic cohort follows from.

    Parameters
    ----------
    patients
        How many, dealt to the sites in turn.
    size
        Voxels a side of a cube of 176 mm, 16 to 176; 0 for 240 x 240 x 155 at 1 mm.
    overlap
        1 shows imaging signs as often as the literature has them, 0 shows every sign of the genotype.
    label_noise, unknown_labels
        Probability, per marker, that pathology erred or that the marker was not measured.
    skull
        Whether scalp, bone and face are in the images, and the coil's full shading. Without, everything
        outside the brain is 0 and the shading is what a bias correction leaves.

    Raises
    ------
    ConfigError
        A value is out of its range.
    """

    patients: int
    sites: tuple[SyntheticSite, ...]
    size: int = 32
    seed: int = 0
    overlap: float = DEFAULT_OVERLAP
    label_noise: float = 0.0
    unknown_labels: float = 0.0
    skull: bool = False

    def __post_init__(self) -> None:
        low, high = _SIZES_MM
        if self.patients < 1:
            raise ConfigError(f"patients: {self.patients} asked for; ask for at least 1")
        if self.size != FULL_SIZE and not low <= self.size <= high:
            raise ConfigError(f"size: {self.size} voxels; choose {low} to {high}, or {FULL_SIZE} for 1 mm")
        if self.seed < 0:
            raise ConfigError(f"seed: {self.seed} is negative; choose 0 or more")
        for name in ("overlap", "label_noise", "unknown_labels"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}: {value} is not a share; choose 0 to 1")

    @property
    def grid(self) -> Grid:
        """The grid that all images of the cohort share."""
        return Grid.full() if self.size == FULL_SIZE else Grid.cube(self.size)

    def site_of(self, number: int) -> SyntheticSite:
        """Return the site of the patient of that number, counted from 0."""
        return self.sites[number % len(self.sites)]

    def sample(self, number: int) -> Patient:
        """Return the patient of that number, without images."""
        return sample_patient(
            stream(self.seed, "patient", number),
            prevalence=self.site_of(number).prevalence,
            overlap=self.overlap,
            label_noise=self.label_noise,
            unknown_labels=self.unknown_labels,
        )

    def draw(self, number: int) -> "Examination":
        """Return the patient of that number with images."""
        site, patient = self.site_of(number), self.sample(number)
        tissue = render_tissue(patient, self.grid, skull=self.skull)
        images = {
            modality: acquire(tissue, modality, site.scanner, patient.seed, prepared=not self.skull)
            for modality in site.draw_present(patient.seed)
        }
        return Examination(
            name=f"SYN{number + 1:04d}",
            site=site,
            patient=patient,
            images=images,
            brain=tissue.whole(tissue.brain_voxels()),
            mask=tissue.whole(tissue.mask_voxels()),
        )


@dataclass(frozen=True)
class Examination:
    """One made-up patient as the hospital has it: images on one grid, in the scanner's grey levels."""

    name: str
    site: SyntheticSite
    patient: Patient
    images: dict[Modality, IntArray]
    brain: npt.NDArray[np.bool_]
    mask: MaskArray


@dataclass(frozen=True)
class SyntheticCase:
    """One made-up patient ready for a network.

    ``image`` has shape (4, D, H, W), channels in the order of ``CHANNELS``, mean 0 and standard deviation 1
    in the brain, 0 outside it and in absent channels. ``mask`` has the labels of BraTS 2021.
    """

    name: str
    site: str
    image: FloatArray
    present: tuple[bool, bool, bool, bool]
    mask: MaskArray
    genotype: Genotype
    outcome: Outcome
    patient: Patient


def synthetic_cases(
    patients: int,
    *,
    sites: Sequence[str] = DEFAULT_SITES,
    size: int = 32,
    seed: int = 0,
    overlap: float = DEFAULT_OVERLAP,
    label_noise: float = 0.0,
    unknown_labels: float = 0.0,
    progress: Progress = silent,
) -> list[SyntheticCase]:
    """Return a synthetic cohort in memory, skull-stripped, bias-corrected and standardised.

    The parameters are those of `Recipe`; ``sites`` are names for `make_site`.
    """
    recipe = Recipe(
        patients=patients,
        sites=make_sites(sites),
        size=size,
        seed=seed,
        overlap=overlap,
        label_noise=label_noise,
        unknown_labels=unknown_labels,
    )
    return [_standardise(examination) for examination in draw_all(recipe, progress)]


def draw_all(recipe: Recipe, progress: Progress = silent) -> Iterator[Examination]:
    """Yield the patients of a recipe one by one."""
    for number in range(recipe.patients):
        yield recipe.draw(number)
        progress(number + 1, recipe.patients)


def _standardise(examination: Examination) -> SyntheticCase:
    image = np.zeros((len(CHANNELS), *examination.mask.shape), np.float32)
    for channel, modality in enumerate(CHANNELS):
        if modality in examination.images:
            grey = examination.images[modality][examination.brain].astype(np.float32)
            image[channel, examination.brain] = (grey - grey.mean()) / grey.std()
    flair, t1ce, t1, t2 = (modality in examination.images for modality in CHANNELS)
    return SyntheticCase(
        name=examination.name,
        site=examination.site.name,
        image=image,
        present=(flair, t1ce, t1, t2),
        mask=examination.mask,
        genotype=examination.patient.reported,
        outcome=examination.patient.outcome,
        patient=examination.patient,
    )
