"""Cohorts broken on purpose: each kind of damage, and how a run must end because of it.

``BAD_COHORTS`` is data, so that the library and the command line are held to the same table.
"""

import gzip
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

MODALITIES = ("flair", "t1ce", "t1", "t2")
PATIENTS = ("P1", "P2", "P3")
SHAPE = (24, 27, 21)
SPACING_MM = 8.0
COLUMNS = [
    "participant_id",
    "site",
    "idh",
    "codel_1p19q",
    "atrx",
    "grade",
    "age",
    "sex",
    "os_days",
    "os_event",
    "purpose",
]
ROWS = (
    ("P1", "north", "1", "1", "0", "2", "41", "F", "2100", "0", "research"),
    ("P2", "north", "0", "0", "0", "4", "63", "M", "390", "1", "research"),
    ("P3", "south", "1", "0", "1", "3", "38", "M", "1240", "1", "research"),
)


@dataclass(frozen=True)
class BadCohort:
    """One kind of damage to the cohort that ``write_cohort`` makes.

    ``expected`` is ``excluded:<code>``, ``warned:<code>`` or ``exit:<code>``. A finding is about
    ``patient``, where the empty name means the table as a whole; every other patient stays usable.
    ``cohorts`` are the folders to give to the run, beside each other; ``layout`` is what ``--layout`` says;
    ``usable`` is how many cases can be prepared afterwards.
    """

    name: str
    breaks: Callable[[Path], object]
    expected: str
    patient: str = "P2"
    cohorts: tuple[str, ...] = ("cohort",)
    layout: str | None = None
    usable: int = 3
    holds_for_root: bool = True


def write_cohort(folder: Path) -> None:
    """Write three whole patients from two sites, named as BraTS 2021 does; 8 mm voxels, so it is quick."""
    for number, patient in enumerate(PATIENTS):
        (folder / patient).mkdir(parents=True)
        for channel, modality in enumerate(MODALITIES):
            write_volume(folder / patient / f"{patient}_{modality}.nii.gz", brain(10 * number + channel))
    write_table(folder, [COLUMNS, *ROWS])


def write_table(folder: Path, lines: Any) -> None:
    text = "\n".join("\t".join(line) for line in lines) + "\n"
    (folder / "participants.tsv").write_text(text, encoding="utf-8")


def brain(seed: int) -> npt.NDArray[np.float32]:
    """Return an ellipsoid of about 1.5 litres with texture, zero outside it.

    Seeds of one decade are one patient: they share most of their texture, and the fourth, T2, inverts it.
    """
    axes = [
        (np.arange(n) - (n - 1) / 2) * SPACING_MM / radius
        for n, radius in zip(SHAPE, (66, 82, 64), strict=True)
    ]
    inside = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)) < 1
    shared, own = (np.random.default_rng(n).uniform(100, 900, SHAPE) for n in (1000 + seed // 10, seed))
    texture = 0.7 * (1000 - shared if seed % 10 == MODALITIES.index("t2") else shared) + 0.3 * own
    return np.where(inside, texture, 0).astype(np.float32)


def affine(spacing_mm: float = SPACING_MM) -> npt.NDArray[np.float64]:
    matrix = np.diag([spacing_mm] * 3 + [1.0])
    matrix[:3, 3] = -(np.array(SHAPE) - 1) / 2 * spacing_mm
    return matrix


def write_volume(path: Path, array: npt.NDArray[Any], matrix: npt.NDArray[np.float64] | None = None) -> None:
    nib.save(nib.Nifti1Image(array, affine() if matrix is None else matrix), path)


def volume(folder: Path, modality: str = "t1ce", patient: str = "P2") -> Path:
    return folder / patient / f"{patient}_{modality}.nii.gz"


def _bytes(change: Callable[[bytes], bytes], folder: Path) -> None:
    volume(folder).write_bytes(change(volume(folder).read_bytes()))


def _flip(content: bytes) -> bytes:
    """Change a byte of the checksum: what damage anywhere in the stream comes down to."""
    return content[:-8] + bytes([content[-8] ^ 0xFF]) + content[-7:]


def _array(change: Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]], folder: Path) -> None:
    write_volume(volume(folder), change(brain(11)))


def _one_infinite(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    array[12, 13, 10] = np.inf
    return array


def _colour(array: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    return np.zeros(array.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])


def _matrix(change: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], folder: Path) -> None:
    image = nib.Nifti1Image(brain(11), affine())
    image.header.set_qform(None, code=0)
    image.header.set_sform(change(affine()), code=1)
    _save(image, folder)


def _sheared(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    matrix[0, 1] = 2.0
    return matrix


def _scaled(factor: float, matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    matrix[:3, :3] *= factor
    return matrix


def _far_away(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    matrix[0, 3] += 5000.0
    return matrix


def _not_a_number(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    matrix[1, 1] = np.nan
    return matrix


def _save(image: nib.Nifti1Image, folder: Path) -> None:
    """Write past nibabel's own repairs: the header as it stands, then the voxels."""
    content = image.header.binaryblock + b"\0\0\0\0" + np.asarray(image.dataobj).tobytes(order="F")
    volume(folder).write_bytes(gzip.compress(content))


def _header(change: Callable[[Any], object], folder: Path) -> None:
    image = nib.Nifti1Image(brain(11), affine())
    image.header["vox_offset"] = 352
    image.header.set_sform(affine(), code=1)
    image.header.set_qform(affine(), code=1)
    change(image.header)
    _save(image, folder)


def _no_codes(header: Any) -> None:
    header["sform_code"] = header["qform_code"] = 0


def _conflict(header: Any) -> None:
    header["qoffset_x"] = float(header["qoffset_x"]) + 30


def _too_many_voxels(header: Any) -> None:
    header["dim"][1:4] = (50, 50, 50)


def _negative(header: Any) -> None:
    header["dim"][1] = -24


def _unknown_type(header: Any) -> None:
    header["datatype"] = 12345


def _broken_scale(header: Any) -> None:
    header["scl_slope"], header["scl_inter"] = 1.0, np.inf


def _folder_instead(folder: Path) -> None:
    volume(folder).unlink()
    volume(folder).mkdir()


def _link(target: str, folder: Path) -> None:
    volume(folder).unlink()
    volume(folder).symlink_to(target)


def _truncated_plain(folder: Path) -> None:
    content = gzip.decompress(volume(folder).read_bytes())
    volume(folder).unlink()
    volume(folder).with_suffix("").write_bytes(content[:-1000])


def _no_modality(folder: Path) -> None:
    for modality in MODALITIES:
        volume(folder, modality).unlink()


def _misnamed(folder: Path) -> None:
    for modality in MODALITIES:
        volume(folder, modality).rename(volume(folder, modality).with_name(f"other_{modality}.nii.gz"))


def _file_instead_of_folder(folder: Path) -> None:
    shutil.rmtree(folder / "P2")
    (folder / "P2").write_text("moved to the archive")


def _copy_images(folder: Path, *, again: Callable[[bytes], bytes] = bytes) -> None:
    for modality in MODALITIES:
        volume(folder, modality).write_bytes(again(volume(folder, modality, "P1").read_bytes()))


def _recompressed(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content), compresslevel=1)


def _flat_brain(folder: Path) -> None:
    write_volume(volume(folder), np.where(brain(11) > 0, np.float32(500), np.float32(0)))


def _skull(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number, modality in enumerate(MODALITIES):
        write_volume(
            volume(folder, modality), brain(10 + number) + rng.uniform(1, 9, SHAPE).astype(np.float32)
        )


def _broken_mask(folder: Path) -> None:
    (folder / "P2" / "P2_seg.nii.gz").write_bytes(b"\x1f\x8b not a mask")


def _second_visit(folder: Path) -> None:
    rename = {"P1": "BraTS-GLI-00001-000", "P2": "BraTS-GLI-00001-001", "P3": "BraTS-GLI-00002-000"}
    words = {"flair": "t2f", "t1ce": "t1c", "t1": "t1n", "t2": "t2w"}
    for old, new in rename.items():
        (folder / old).rename(folder / new)
        for modality, word in words.items():
            path = folder / new
            (path / f"{old}_{modality}.nii.gz").rename(path / f"{new}-{word}.nii.gz")
    write_table(folder, [COLUMNS, *((rename[row[0]], *row[1:]) for row in ROWS)])


def _cell(column: str, value: str, folder: Path) -> None:
    """Write another value into P2's row."""
    at = COLUMNS.index(column)
    rows = [(*row[:at], value, *row[at + 1 :]) if row[0] == "P2" else row for row in ROWS]
    write_table(folder, [COLUMNS, *rows])


def _contradiction(folder: Path) -> None:
    _cell("codel_1p19q", "1", folder)


def _oligo_without_atrx(folder: Path) -> None:
    rows = [(*row[:2], "1", "1", "1", *row[5:]) if row[0] == "P2" else row for row in ROWS]
    write_table(folder, [COLUMNS, *rows])


def _lines(change: Callable[[list[str]], list[str]], folder: Path) -> None:
    path = folder / "participants.tsv"
    path.write_text("\n".join(change(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")


def _table(content: bytes, folder: Path) -> None:
    (folder / "participants.tsv").write_bytes(content)


def _table_is_folder(folder: Path) -> None:
    (folder / "participants.tsv").unlink()
    (folder / "participants.tsv").mkdir()


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _is_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a list")


def _unknown_names(folder: Path) -> None:
    for path in folder.glob("*/*.nii.gz"):
        path.rename(path.with_name(f"series-{path.name}"))


def _every_label_wrong(folder: Path) -> None:
    write_table(folder, [COLUMNS, *((*row[:2], "yes", *row[3:]) for row in ROWS)])


def _every_volume_constant(folder: Path) -> None:
    for path in folder.glob("*/*.nii.gz"):
        write_volume(path, np.ones(SHAPE, np.float32))


def _same_patient_elsewhere(folder: Path) -> None:
    second = folder.parent / "second"
    write_cohort(second)
    for patient in ("P1", "P3"):
        shutil.rmtree(second / patient)
    write_table(second, [COLUMNS, ROWS[1]])


def _second_cohort_elsewhere(folder: Path) -> None:
    """A second cohort of other people, in which one patient's images are those of P2."""
    second = folder.parent / "second"
    (second / "Q7").mkdir(parents=True)
    for modality in MODALITIES:
        shutil.copy(volume(folder, modality), second / "Q7" / f"Q7_{modality}.nii.gz")
    write_table(second, [COLUMNS, ("Q7", *ROWS[1][1:])])


_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
_BOTH = ("cohort", "second")

BAD_COHORTS: tuple[BadCohort, ...] = (
    BadCohort(
        "gzip stream cut off", partial(_bytes, lambda b: b[: len(b) // 2]), "excluded:truncated", usable=2
    ),
    BadCohort("gzip checksum cut off", partial(_bytes, lambda b: b[:-4]), "excluded:truncated", usable=2),
    BadCohort("gzip stream with a flipped byte", partial(_bytes, _flip), "excluded:damaged", usable=2),
    BadCohort("not gzip", partial(_bytes, gzip.decompress), "excluded:not_gzip", usable=2),
    BadCohort(
        "a pointer of a version control system",
        partial(_bytes, lambda _: _LFS),
        "excluded:not_gzip",
        usable=2,
    ),
    BadCohort("file of 0 bytes", partial(_bytes, lambda _: b""), "excluded:empty", usable=2),
    BadCohort(
        "gzip of text", partial(_bytes, lambda _: gzip.compress(b"x" * 999)), "excluded:not_nifti", usable=2
    ),
    BadCohort(
        "header of the wrong magic",
        partial(_header, lambda h: h.__setitem__("magic", b"n+9")),
        "excluded:not_nifti",
        usable=2,
    ),
    BadCohort("uncompressed file cut off", _truncated_plain, "excluded:truncated", usable=2),
    BadCohort(
        "header asks for more voxels", partial(_header, _too_many_voxels), "excluded:truncated", usable=2
    ),
    BadCohort(
        "4-D volume", partial(_array, lambda a: np.stack([a, a], axis=-1)), "excluded:dimensions", usable=2
    ),
    BadCohort("2-D picture", partial(_array, lambda a: a[:, :, 10]), "excluded:dimensions", usable=2),
    BadCohort("axis of negative length", partial(_header, _negative), "excluded:dimensions", usable=2),
    BadCohort("colour picture", partial(_array, _colour), "excluded:dtype", usable=2),
    BadCohort(
        "complex voxels", partial(_array, lambda a: a.astype(np.complex64)), "excluded:dtype", usable=2
    ),
    BadCohort("voxels of no known type", partial(_header, _unknown_type), "excluded:header", usable=2),
    BadCohort("scale that is not finite", partial(_header, _broken_scale), "excluded:header", usable=2),
    BadCohort(
        "every voxel NaN", partial(_array, lambda a: np.full_like(a, np.nan)), "excluded:non_finite", usable=2
    ),
    BadCohort("one voxel infinite", partial(_array, _one_infinite), "excluded:non_finite", usable=2),
    BadCohort(
        "constant volume", partial(_array, lambda a: np.full_like(a, 7)), "excluded:constant", usable=2
    ),
    BadCohort("volume of zeros", partial(_array, np.zeros_like), "excluded:constant", usable=2),
    BadCohort("constant inside the brain", _flat_brain, "excluded:constant", usable=2),
    BadCohort("neither sform nor qform", partial(_header, _no_codes), "excluded:no_orientation", usable=2),
    BadCohort("sform against qform", partial(_header, _conflict), "excluded:orientation_conflict", usable=2),
    BadCohort("sheared axes", partial(_matrix, _sheared), "excluded:sheared", usable=2),
    BadCohort("affine with NaN", partial(_matrix, _not_a_number), "excluded:affine", usable=2),
    BadCohort("affine of zeros", partial(_matrix, partial(_scaled, 0.0)), "excluded:spacing", usable=2),
    BadCohort("voxels of 24 mm", partial(_matrix, partial(_scaled, 3.0)), "excluded:spacing", usable=2),
    BadCohort(
        "voxels of 8 micrometres", partial(_matrix, partial(_scaled, 0.001)), "excluded:spacing", usable=2
    ),
    BadCohort("modality five metres away", partial(_matrix, _far_away), "excluded:registration", usable=2),
    BadCohort("folder where a file belongs", _folder_instead, "excluded:not_a_file", usable=2),
    BadCohort("link to nothing", partial(_link, "gone.nii.gz"), "excluded:unreadable", usable=2),
    BadCohort("link in a circle", partial(_link, "P2_t1ce.nii.gz"), "excluded:unreadable", usable=2),
    BadCohort(
        "file without permission",
        lambda f: volume(f).chmod(0),
        "excluded:unreadable",
        holds_for_root=False,
        usable=2,
    ),
    BadCohort(
        "folder without permission",
        lambda f: (f / "P2").chmod(0),
        "excluded:unreadable",
        holds_for_root=False,
        usable=2,
    ),
    BadCohort("broken tumour mask", _broken_mask, "warned:mask"),
    BadCohort("modality cut off", partial(_array, lambda a: a[:, :, :9]), "excluded:brain_volume", usable=2),
    BadCohort("skull still there", _skull, "warned:not_stripped"),
    BadCohort(
        "T1 copied over T2",
        lambda f: shutil.copy(volume(f, "t1"), volume(f, "t2")),
        "excluded:same_contents",
        usable=2,
    ),
    BadCohort("no modality", _no_modality, "excluded:no_modality", usable=2),
    BadCohort("files of another name", _misnamed, "excluded:no_modality", usable=2),
    BadCohort("no folder", lambda f: shutil.rmtree(f / "P2"), "excluded:no_modality", usable=2),
    BadCohort("file instead of a folder", _file_instead_of_folder, "excluded:no_modality", usable=2),
    BadCohort(
        "patient not in the table",
        partial(_lines, lambda t: t[:2] + t[3:]),
        "excluded:not_in_table",
        usable=2,
    ),
    BadCohort("same image under two ids", _copy_images, "excluded:duplicate_image", usable=2),
    BadCohort(
        "same image, compressed anew",
        partial(_copy_images, again=_recompressed),
        "excluded:duplicate_image",
        usable=2,
    ),
    BadCohort("same image in two cohorts", _second_cohort_elsewhere, "excluded:duplicate_image", "Q7", _BOTH),
    BadCohort("same patient in two cohorts", _same_patient_elsewhere, "excluded:duplicate", cohorts=_BOTH),
    BadCohort("second time point", _second_visit, "excluded:second_visit", "BraTS-GLI-00001-001", usable=2),
    BadCohort("patient in two rows", partial(_lines, lambda t: [*t, t[2]]), "excluded:duplicate"),
    BadCohort(
        "patient in two spellings",
        partial(_lines, lambda t: [*t, t[2].replace("P2", "sub-p2")]),
        "excluded:duplicate",
        "p2",
    ),
    BadCohort("label 2", partial(_cell, "idh", "2"), "excluded:label", usable=2),
    BadCohort("label in words nobody knows", partial(_cell, "atrx", "maybe"), "excluded:label", usable=2),
    BadCohort("IDH wild-type with codeletion", _contradiction, "warned:genotype"),
    BadCohort("codeletion with ATRX mutant", _oligo_without_atrx, "warned:genotype"),
    BadCohort("negative follow-up", partial(_cell, "os_days", "-30"), "warned:outcome"),
    BadCohort("event 3", partial(_cell, "os_event", "3"), "warned:outcome"),
    BadCohort("follow-up without event", partial(_cell, "os_event", "n/a"), "warned:outcome"),
    BadCohort("age in words", partial(_cell, "age", "abc"), "warned:age"),
    BadCohort("grade 7", partial(_cell, "grade", "7"), "warned:grade"),
    BadCohort("sex 3", partial(_cell, "sex", "3"), "warned:sex"),
    BadCohort("purpose none", partial(_cell, "purpose", "none"), "excluded:consent", usable=2),
    BadCohort("purpose nobody knows", partial(_cell, "purpose", "advertising"), "excluded:consent", usable=2),
    BadCohort(
        "row cut short", partial(_lines, lambda t: [*t[:2], "P2\tnorth\t1", t[3]]), "excluded:row", usable=2
    ),
    BadCohort(
        "row without an id",
        partial(_lines, lambda t: [*t, t[2].replace("P2", " ")]),
        "excluded:patient_id",
        "",
    ),
    BadCohort(
        "id that is a path",
        partial(_lines, lambda t: [*t, t[2].replace("P2", "../P2")]),
        "excluded:patient_id",
        "",
    ),
    BadCohort("id in lower case", partial(_cell, "participant_id", "p2"), "warned:spelling", "p2"),
    BadCohort(
        "no ATRX column",
        partial(_lines, lambda t: [line.replace("atrx", "p53") for line in t]),
        "warned:no_column",
        "",
    ),
    BadCohort("no table", lambda f: (f / "participants.tsv").unlink(), "exit:4"),
    BadCohort("empty table", partial(_table, b""), "exit:4"),
    BadCohort("table of a header only", partial(_lines, lambda t: t[:1]), "exit:4"),
    BadCohort(
        "table without ids",
        partial(_lines, lambda t: [line.replace("participant_id", "name") for line in t]),
        "exit:4",
    ),
    BadCohort(
        "table with commas", partial(_lines, lambda t: [line.replace("\t", ",") for line in t]), "exit:4"
    ),
    BadCohort(
        "table with a column twice",
        partial(_lines, lambda t: [line.replace("atrx", "idh") for line in t]),
        "exit:4",
    ),
    BadCohort(
        "table not in UTF-8", partial(_table, "participant_id\tidh\nMüller\t1\n".encode("latin-1")), "exit:4"
    ),
    BadCohort("table that is a spreadsheet", partial(_table, b"PK\x03\x04\x14\0\x06\0\xff\xfe"), "exit:4"),
    BadCohort("table that is a folder", _table_is_folder, "exit:4"),
    BadCohort(
        "description that is not JSON",
        lambda f: (f / "dataset_description.json").write_text("{"),
        "warned:description",
        "",
    ),
    BadCohort("no such folder", shutil.rmtree, "exit:4"),
    BadCohort("empty folder", _empty, "exit:4"),
    BadCohort("file instead of a cohort", _is_file, "exit:4"),
    BadCohort("names of no layout", _unknown_names, "exit:4"),
    BadCohort("another layout named", lambda _: None, "exit:4", layout="bids"),
    BadCohort("no such layout", lambda _: None, "exit:2", layout="brats2042"),
    BadCohort("every label wrong", _every_label_wrong, "exit:4"),
    BadCohort("every volume constant", _every_volume_constant, "exit:4"),
)
