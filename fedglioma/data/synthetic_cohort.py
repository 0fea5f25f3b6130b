"""A synthetic cohort on disk: images, masks and tables as a hospital would have them, marked as made up.

The folder appears whole or not at all: it is written under a hidden name beside its place and renamed.
"""

import csv
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from fedglioma.case import GENE_TITLES, GENES, UNKNOWN, Frozen, Modality
from fedglioma.console import Progress, silent
from fedglioma.data.fields import Grid
from fedglioma.data.lesion import ENHANCING
from fedglioma.data.synthetic import DEFAULT_OVERLAP, DEFAULT_SITES, Examination, Recipe, draw_all
from fedglioma.data.synthetic_sites import make_sites
from fedglioma.errors import ConfigError

SCANNER_ANATOMICAL = 1
"""NIfTI code: the affine is that of the scanner, as far as there was one."""


@dataclass(frozen=True)
class _Naming:
    """Where a layout puts a patient's files, how it turns them, and its number for enhancing tumour."""

    name: str
    images: dict[Modality, str]
    mask: str
    axes: str = "RAS"
    enhancing: int = ENHANCING
    folder: str = "{id}"

    def image(self, patient: str, modality: Modality) -> PurePosixPath:
        return self._path(patient, self.images[modality])

    def path_of_mask(self, patient: str) -> PurePosixPath:
        return self._path(patient, self.mask)

    def _path(self, patient: str, name: str) -> PurePosixPath:
        return PurePosixPath(self.folder.format(id=patient), f"{name.format(id=patient)}.nii.gz")


_BIDS = _Naming(
    name="bids",
    images={
        Modality.FLAIR: "sub-{id}_FLAIR",
        Modality.T1CE: "sub-{id}_ce-gadolinium_T1w",
        Modality.T1: "sub-{id}_T1w",
        Modality.T2: "sub-{id}_T2w",
    },
    mask="sub-{id}_dseg",
    folder="sub-{id}/anat",
)
_BRATS_2021 = _Naming(
    name="brats2021", images={m: f"{{id}}_{m.value}" for m in Modality}, mask="{id}_seg", axes="LPS"
)
_BRATS_2023 = _Naming(
    name="brats2023",
    images={
        Modality.FLAIR: "{id}-t2f",
        Modality.T1CE: "{id}-t1c",
        Modality.T1: "{id}-t1n",
        Modality.T2: "{id}-t2w",
    },
    mask="{id}-seg",
    axes="LPS",
    enhancing=3,
)
LAYOUTS = {naming.name: naming for naming in (_BIDS, _BRATS_2021, _BRATS_2023)}


class SyntheticSummary(Frozen):
    """What was written: ``cohorts`` are the folders to read, one, or one for each site."""

    folder: Path
    cohorts: tuple[Path, ...]
    layout: str
    patients: int
    volumes: int
    patients_by_site: dict[str, int]
    mutant: dict[str, int]
    died: int


def synthesize(
    folder: Path,
    *,
    patients: int,
    sites: Sequence[str] = DEFAULT_SITES,
    size: int = 32,
    seed: int = 0,
    overlap: float = DEFAULT_OVERLAP,
    label_noise: float = 0.0,
    unknown_labels: float = 0.0,
    by_site: bool = False,
    layout: str = "bids",
    skull: bool = False,
    progress: Progress = silent,
) -> SyntheticSummary:
    """Return what was written into ``folder``, which must be absent or empty.

    Parameters
    ----------
    sites
        Names for `make_site`; patients are dealt to them in turn.
    size
        Voxels a side of a cube of 176 mm; 0 for 240 x 240 x 155 at 1 mm (seconds per patient).
    by_site
        Write one cohort per site, in a folder of its name.
    layout
        ``bids``, ``brats2021`` or ``brats2023``.

    Raises
    ------
    ConfigError
        The folder holds something, or a setting is out of range; nothing was written.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout: {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    recipe = Recipe(
        patients=patients,
        sites=make_sites(sites),
        size=size,
        seed=seed,
        overlap=overlap,
        label_noise=label_noise,
        unknown_labels=unknown_labels,
        skull=skull,
    )
    if by_site and patients < len(sites):
        raise ConfigError(f"patients: {patients} cannot fill {len(sites)} sites; ask for one each at least")
    folder = folder.resolve()
    with _whole_or_nothing(folder) as partial:
        written = _write_all(partial, recipe, LAYOUTS[layout], by_site, progress)
    places = [folder / name for name in sites] if by_site else [folder]
    return _summary(folder, places, layout, written)


@dataclass(frozen=True)
class _Written:
    """What is remembered of a patient once the images are on disk."""

    site: str
    volumes: int
    row: dict[str, str]


@contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[Path]:
    """Give a folder to fill that takes the asked-for place at the end, or vanishes on any error."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder that does not exist yet")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty; name another folder, or empty this one first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        yield partial
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_all(
    folder: Path, recipe: Recipe, naming: _Naming, by_site: bool, progress: Progress
) -> list[_Written]:
    written = []
    for examination in draw_all(recipe, progress):
        place = folder / examination.site.name if by_site else folder
        _write_images(place, examination, recipe.grid, naming)
        row = _row(examination)
        written.append(_Written(examination.site.name, len(examination.images), row))
    names = [site.name for site in recipe.sites]
    for name in names if by_site else [None]:
        rows = [one.row for one in written if name in (None, one.site)]
        _write_tables(folder / name if name else folder, recipe, rows, [name] if name else names)
    return written


def _write_images(folder: Path, examination: Examination, grid: Grid, naming: _Naming) -> None:
    for modality, image in examination.images.items():
        _save(image, grid, folder / naming.image(examination.name, modality), naming.axes)
    mask = np.where(examination.mask == ENHANCING, np.uint8(naming.enhancing), examination.mask)
    _save(mask, grid, folder / naming.path_of_mask(examination.name), naming.axes)


def _save(array: npt.NDArray[Any], grid: Grid, path: Path, axes: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, grid.affine())
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    )
    image = image.as_reoriented(turn)
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code=SCANNER_ANATOMICAL)
    image.set_qform(image.affine, code=SCANNER_ANATOMICAL)
    nib.save(image, path)


def _row(examination: Examination) -> dict[str, str]:
    patient = examination.patient
    labels = {
        gene.value: "n/a" if (label := patient.reported.label(gene)) == UNKNOWN else str(label)
        for gene in GENES
    }
    return {
        "participant_id": examination.name,
        **labels,
        "grade": str(patient.grade),
        "age": f"{patient.age:.1f}",
        "sex": patient.sex,
        "os_days": f"{patient.outcome.os_days:.0f}",
        "os_event": str(patient.outcome.os_event),
        "site": examination.site.name,
        "scanner": examination.site.scanner.name,
        "field_strength_t": f"{examination.site.scanner.field_t:g}",
        "purpose": "research",
    }


def _write_tables(folder: Path, recipe: Recipe, rows: list[dict[str, str]], sites: list[str]) -> None:
    with (folder / "participants.tsv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    settings = {
        "seed": recipe.seed,
        "patients": recipe.patients,
        "sites": [site.name for site in recipe.sites],
        "size": recipe.size,
        "overlap": recipe.overlap,
        "label_noise": recipe.label_noise,
        "unknown_labels": recipe.unknown_labels,
        "skull": recipe.skull,
    }
    description = {
        "Name": f"SYNTHETIC glioma cohort of {', '.join(sites)}: no real patient",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "Synthetic": True,
        "GeneratedBy": [{"Name": "fedglioma synthesize", "Version": _version()}],
        "SyntheticSettings": settings,
    }
    text = json.dumps(description, indent=2) + "\n"
    (folder / "dataset_description.json").write_text(text, encoding="utf-8")
    (folder / "README").write_text(_readme(len(rows), sites, settings), encoding="utf-8")


def _readme(count: int, sites: list[str], settings: dict[str, Any]) -> str:
    known = ", ".join(GENE_TITLES[gene] for gene in GENES)
    return f"""SYNTHETIC DATA. NOT REAL PATIENTS. NOT CLINICAL EVIDENCE.

{count} made-up patients of {", ".join(sites)}, drawn by fedglioma for tests and demonstrations.
Heads, tumours, scanners, genotypes ({known}) and survival all come from a random number generator.
The hospitals' names stand for kinds of scanners and of missing sequences; none of them gave any data.

No figure measured on this folder says anything about patients, about a hospital, or about how well a
model would do on real images. Do not mix it with real data, and say so wherever a result of it is shown.

The same settings write the same images again: {json.dumps(settings)}
"""


def _version() -> str:
    try:
        return version("fedglioma")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


def _summary(folder: Path, places: list[Path], layout: str, written: list[_Written]) -> SyntheticSummary:
    return SyntheticSummary(
        folder=folder,
        cohorts=tuple(places),
        layout=layout,
        patients=len(written),
        volumes=sum(one.volumes for one in written),
        patients_by_site=dict(Counter(one.site for one in written)),
        mutant={gene.value: _ones(written, gene.value) for gene in GENES},
        died=_ones(written, "os_event"),
    )


def _ones(written: list[_Written], column: str) -> int:
    return sum(one.row[column] == "1" for one in written)
