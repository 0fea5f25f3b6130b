from pathlib import Path

import pytest

from fedglioma.case import Modality
from fedglioma.data.layout import find_patients, visit_of
from fedglioma.errors import ConfigError, DataError


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _found(folder: Path, layout: str | None = None) -> dict[str, str]:
    (patient,) = find_patients(folder, layout).patients
    return {modality.value: path.name for modality, path in patient.volumes.items()}


BIDS = ("sub-1_FLAIR.nii.gz", "sub-1_ce-gadolinium_T1w.nii.gz", "sub-1_T1w.nii.gz", "sub-1_T2w.nii.gz")
OLD = ("7_flair.nii.gz", "7_t1ce.nii.gz", "7_t1.nii.gz", "7_t2.nii.gz")
NEW = ("7-t2f.nii.gz", "7-t1c.nii.gz", "7-t1n.nii.gz", "7-t2w.nii.gz")


@pytest.mark.parametrize(
    ("layout", "folder", "names", "mask"),
    [
        ("bids", "sub-1/anat", BIDS, "sub-1_dseg.nii.gz"),
        ("brats2021", "7", OLD, "7_seg.nii.gz"),
        ("brats2023", "7", NEW, "7-seg.nii.gz"),
    ],
)
def test_layout_is_recognised_with_every_modality(
    tmp_path: Path, layout: str, folder: str, names: tuple[str, ...], mask: str
) -> None:
    _touch(tmp_path / folder, *names, mask, "notes.txt", ".DS_Store")
    found = find_patients(tmp_path)
    assert found.layout.name == layout
    assert _found(tmp_path) == dict(zip(("flair", "t1ce", "t1", "t2"), names, strict=True))
    assert found.patients[0].mask == tmp_path / folder / mask
    assert not found.patients[0].remarks


def test_any_modality_may_be_missing_and_names_count_exactly(tmp_path: Path) -> None:
    _touch(
        tmp_path / "7", "7_t1.nii.gz", "7_t1_old.nii.gz", "7_T2.nii.gz", "8_flair.nii.gz", "7_segauto.nii.gz"
    )
    assert _found(tmp_path) == {"t1": "7_t1.nii.gz"}
    assert find_patients(tmp_path).patients[0].mask is None


def test_stripped_volume_goes_before_the_other_and_compressed_before_plain(tmp_path: Path) -> None:
    _touch(tmp_path / "7", "7_t1.nii.gz", "7_brain_t1.nii.gz", "7_t2.nii", "7_t2.nii.gz", "7_flair.nii")
    assert _found(tmp_path) == {"flair": "7_flair.nii", "t1": "7_brain_t1.nii.gz", "t2": "7_t2.nii.gz"}
    assert [code for code, _ in find_patients(tmp_path).patients[0].remarks] == ["two_files", "two_files"]


def test_first_session_with_images_counts_and_the_others_are_told(tmp_path: Path) -> None:
    _touch(
        tmp_path / "sub-1",
        "ses-0/anat/readme",
        "ses-1/anat/sub-1_ses-1_T1w.nii.gz",
        "ses-2/anat/sub-1_ses-2_T2w.nii.gz",
    )
    assert _found(tmp_path) == {"t1": "sub-1_ses-1_T1w.nii.gz"}
    (remark,) = find_patients(tmp_path).patients[0].remarks
    assert remark[0] == "more_sessions"
    assert "ses-1" in remark[1]


def test_layout_of_most_patients_is_the_cohorts(tmp_path: Path) -> None:
    _touch(tmp_path, "a/a_t1.nii.gz", "b/b-t1n.nii.gz", "c/c-t1n.nii.gz", "derivatives/x.nii.gz")
    found = find_patients(tmp_path)
    assert found.layout.name == "brats2023"
    assert [bool(patient.volumes) for patient in found.patients] == [False, True, True, False]
    assert find_patients(tmp_path, "brats2021").layout.name == "brats2021"


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    _touch(tmp_path / "store", "x.nii.gz")
    cohort = tmp_path / "cohort"
    (cohort / "7").mkdir(parents=True)
    (cohort / "7" / "7_t1.nii.gz").symlink_to(tmp_path / "store" / "x.nii.gz")
    (cohort / "loop").symlink_to("loop")
    assert _found(cohort) == {"t1": "7_t1.nii.gz"}
    (tmp_path / "link").symlink_to(cohort)
    assert _found(tmp_path / "link") == {"t1": "7_t1.nii.gz"}


def test_name_of_no_layout_is_a_wrong_argument(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layout 'nnunet': unknown; allowed is bids, brats2021, brats2023"):
        find_patients(tmp_path, "nnunet")


def test_folder_of_no_layout_is_told_with_the_patterns(tmp_path: Path) -> None:
    _touch(tmp_path / "7", "t1.nii.gz")
    with pytest.raises(DataError, match=r"sub-<id>/anat/.*<id>/<id>_t1ce.*<id>/<id>-t1c"):
        find_patients(tmp_path)


def test_time_point_is_told_apart_from_the_patient() -> None:
    assert visit_of("BraTS-GLI-00005-100") == ("BraTS-GLI-00005", "100")
    assert visit_of("HN-001-002") == ("HN-001-002", None)


def test_modalities_stand_in_channel_order(tmp_path: Path) -> None:
    _touch(tmp_path / "7", *reversed(OLD))
    assert tuple(find_patients(tmp_path).patients[0].volumes) == tuple(Modality)
