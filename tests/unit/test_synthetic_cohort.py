import csv
import hashlib
import json

import nibabel as nib
import numpy as np
import pytest

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.synthetic import synthetic_cases
from fedglioma.data.synthetic_cohort import synthesize
from fedglioma.errors import ConfigError

COLUMNS = [
    *("participant_id", "idh", "atrx", "codel_1p19q", "grade", "age", "sex", "os_days", "os_event"),
    *("site", "scanner", "field_strength_t", "purpose"),
]


def rows(folder):
    with (folder / "participants.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_cohort_is_bids_with_the_agreed_columns(tmp_path):
    summary = synthesize(tmp_path / "cohort", patients=3, size=16)
    table = rows(tmp_path / "cohort")
    assert list(table[0]) == COLUMNS
    assert [row["participant_id"] for row in table] == ["SYN0001", "SYN0002", "SYN0003"]
    assert [row["site"] for row in table] == ["ningxia", "zhengzhou", "henan"]
    complete = tmp_path / "cohort" / "sub-SYN0002" / "anat"
    assert sorted(path.name for path in complete.iterdir()) == [
        "sub-SYN0002_FLAIR.nii.gz",
        "sub-SYN0002_T1w.nii.gz",
        "sub-SYN0002_T2w.nii.gz",
        "sub-SYN0002_ce-gadolinium_T1w.nii.gz",
        "sub-SYN0002_dseg.nii.gz",
    ]
    assert summary.patients == 3
    assert summary.volumes == len(list((tmp_path / "cohort").rglob("*.nii.gz"))) - 3


def test_everything_says_that_it_is_synthetic(tmp_path):
    synthesize(tmp_path / "c", patients=1, size=16)
    description = json.loads((tmp_path / "c" / "dataset_description.json").read_text())
    assert description["Synthetic"] is True
    assert description["Name"].startswith("SYNTHETIC")
    assert description["GeneratedBy"][0]["Name"].startswith("fedglioma")
    assert (tmp_path / "c" / "README").read_text().startswith("SYNTHETIC DATA. NOT REAL PATIENTS.")


@pytest.mark.parametrize(
    ("layout", "t1ce", "mask", "axes", "enhancing"),
    [
        (
            "bids",
            "sub-SYN0002/anat/sub-SYN0002_ce-gadolinium_T1w",
            "sub-SYN0002/anat/sub-SYN0002_dseg",
            "RAS",
            4,
        ),
        ("brats2021", "SYN0002/SYN0002_t1ce", "SYN0002/SYN0002_seg", "LPS", 4),
        ("brats2023", "SYN0002/SYN0002-t1c", "SYN0002/SYN0002-seg", "LPS", 3),
    ],
)
def test_layouts_name_turn_and_label_as_their_collections_do(tmp_path, layout, t1ce, mask, axes, enhancing):
    synthesize(tmp_path / "c", patients=2, layout=layout, overlap=0.0)
    image = nib.load(tmp_path / "c" / f"{t1ce}.nii.gz")
    labels = nib.load(tmp_path / "c" / f"{mask}.nii.gz")
    case = synthetic_cases(2, overlap=0.0)[1]
    assert nib.aff2axcodes(image.affine) == tuple(axes)
    assert image.get_data_dtype() == np.int16
    assert image.header.get_zooms() == pytest.approx((5.5, 5.5, 5.5))
    assert np.array_equal(image.affine, labels.affine)
    upright = np.asarray(nib.as_closest_canonical(labels).dataobj)
    assert np.array_equal(upright > 0, case.mask > 0)
    assert np.array_equal(upright == enhancing, case.mask == 4)
    head = np.asarray(nib.as_closest_canonical(image).dataobj)
    assert np.array_equal(head > 0, case.image[CHANNELS.index(Modality.T1CE)] != 0)


def test_same_settings_write_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        synthesize(tmp_path / name, patients=2, size=16, seed=4)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_more_patients_leave_the_first_ones_as_they_were(tmp_path):
    for count in (2, 3):
        synthesize(tmp_path / str(count), patients=count, size=16)
    few, more = digests(tmp_path / "2"), digests(tmp_path / "3")
    assert {name: more[name] for name in few if name.endswith(".gz")} == {
        name: few[name] for name in few if name.endswith(".gz")
    }
    assert rows(tmp_path / "3")[:2] == rows(tmp_path / "2")


def test_by_site_writes_a_cohort_for_each_hospital(tmp_path):
    summary = synthesize(tmp_path / "all", patients=5, size=16, sites=("ningxia", "henan"), by_site=True)
    assert summary.cohorts == (tmp_path / "all" / "ningxia", tmp_path / "all" / "henan")
    assert {row["site"] for row in rows(summary.cohorts[1])} == {"henan"}
    assert summary.patients_by_site == {"ningxia": 3, "henan": 2}
    ids = [row["participant_id"] for cohort in summary.cohorts for row in rows(cohort)]
    assert sorted(ids) == [f"SYN000{n}" for n in range(1, 6)]


def test_unknown_labels_are_written_as_not_available(tmp_path):
    synthesize(tmp_path / "c", patients=2, size=16, unknown_labels=1.0)
    assert {row[gene] for row in rows(tmp_path / "c") for gene in ("idh", "atrx", "codel_1p19q")} == {"n/a"}


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "c").mkdir()
    synthesize(tmp_path / "c", patients=1, size=16)
    assert rows(tmp_path / "c")


def test_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        synthesize(tmp_path, patients=1, size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_file_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        synthesize(tmp_path / "c", patients=1, size=16)
    assert (tmp_path / "c").read_text() == "mine"


def test_interrupted_cohort_leaves_nothing_behind(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "c", patients=2, size=16, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"layout": "dicom"}, "'dicom' is unknown; choose one of bids, brats2021, brats2023"),
        ({"patients": 0}, "patients: 0"),
        ({"by_site": True, "patients": 2}, "2 cannot fill 3 sites"),
        ({"sites": ()}, "none named"),
    ],
)
def test_impossible_wishes_are_refused_before_anything_is_written(tmp_path, wrong, words):
    with pytest.raises(ConfigError, match=words):
        synthesize(tmp_path / "c", **{"patients": 3, "size": 16} | wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_full_size_cohort_is_on_the_grid_of_brats(tmp_path):
    synthesize(tmp_path / "c", patients=1, sites=("zhengzhou",), size=0, layout="brats2021", skull=True)
    image = nib.load(tmp_path / "c" / "SYN0001" / "SYN0001_flair.nii.gz")
    assert image.shape == (240, 240, 155)
    assert image.header.get_zooms() == (1, 1, 1)
