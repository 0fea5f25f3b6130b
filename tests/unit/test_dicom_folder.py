"""A patient's folder: the right series, whose it is, and nothing about who it is."""

import dataclasses
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.dicom_folder import PatientSeries, choose_series, compare_patients
from fedglioma.data.dicom_volume import files_digest, read_files
from fedglioma.data.dicom_write import PROTOCOLS, Protocol, write_series
from fedglioma.data.sequence import read_series_map
from fedglioma.data.volume import Volume
from tests.dicom_fixture import SECRET, edit, head, oblique, places, values_at, write_patient, write_t2

T1CE = PROTOCOLS[Modality.T1CE]


def codes(folder: Path) -> list[str]:
    return [remark.code for remark in choose_series(folder, SECRET).remarks]


def volumes_of(patient: PatientSeries) -> dict[Modality, Volume]:
    return {m: read_files(one.files, files_digest(one.files)) for m, one in patient.chosen.items()}


def test_all_four_sequences_are_read(tmp_path: Path) -> None:
    write_patient(tmp_path / "P1")
    patient = choose_series(tmp_path / "P1", SECRET)
    volumes = volumes_of(patient)
    assert tuple(volumes) == CHANNELS
    assert patient.remarks == ()
    for number, modality in enumerate(Modality, 1):
        points = places(head(number))
        np.testing.assert_array_equal(values_at(volumes[modality], points), values_at(head(number), points))
    assert patient.chosen[Modality.FLAIR].header.inversion_ms == 2500
    assert patient.chosen[Modality.T1CE].header.contrast


def fine(seed: int = 7) -> Volume:
    """The same field of view in more and thinner slices."""
    return head(seed, (28, 32, 44), (6.0, 5.5, 2.5))


def test_the_finest_series_counts_then_the_longest(tmp_path: Path) -> None:
    sizes = [
        ((28, 32, 22), (6.0, 5.5, 5.0)),
        ((34, 32, 22), (5.0, 5.0, 5.0)),
        ((34, 32, 26), (5.0, 5.0, 5.0)),
    ]
    for number, (shape, spacing) in enumerate(sizes, 1):
        write_series(
            tmp_path / "P1" / f"s{number}",
            head(number, shape, spacing),
            PROTOCOLS[Modality.T2],
            patient="P1",
            number=number,
        )
    patient = choose_series(tmp_path / "P1", SECRET)
    assert [one.number for one in patient.candidates[Modality.T2]] == [3, 2, 1]
    assert [(r.code, r.message.partition(" ")[0]) for r in patient.remarks] == [
        ("not_chosen", "<s2/IM002_0000.dcm>"),
        ("not_chosen", "<s1/IM001_0000.dcm>"),
    ]


@pytest.mark.parametrize(("modality", "chosen"), [(Modality.T1CE, 2), (Modality.T1, 1)])
def test_of_equals_the_later_t1ce_and_the_earlier_of_the_others_count(
    tmp_path: Path, modality: Modality, chosen: int
) -> None:
    for number, clock in ((1, "100000"), (2, "101000")):
        protocol = dataclasses.replace(PROTOCOLS[modality], acquired=clock)
        write_series(tmp_path / str(number), head(number), protocol, patient="P1", number=number)
    assert choose_series(tmp_path, SECRET).chosen[modality].number == chosen


def test_a_doubtful_choice_is_told_and_an_unclear_one_not_used(tmp_path: Path) -> None:
    write_series(tmp_path / "a", head(), Protocol("s7", 5000.0, 100.0), patient="P1", number=1)
    write_series(tmp_path / "b", head(), Protocol("T2 flair", 500.0, 10.0), patient="P1", number=2)
    patient = choose_series(tmp_path, SECRET)
    assert list(patient.chosen) == [Modality.T2]
    assert sorted(remark.code for remark in patient.remarks) == ["sequence_doubt", "unclear"]


def test_the_hospitals_table_admits_a_derived_series(tmp_path: Path) -> None:
    for path in write_t2(tmp_path / "P1"):
        edit(path, ImageType=["DERIVED", "SECONDARY"])
    table = tmp_path / "series_map.csv"
    table.write_text("description,modality\nt2_tse_tra,t2\n")
    assert codes(tmp_path / "P1") == ["derived"]
    patient = choose_series(tmp_path / "P1", SECRET, series_map=read_series_map(table))
    assert (list(patient.chosen), patient.remarks) == ([Modality.T2], ())


def test_a_foreign_study_in_a_folder_named_by_its_patient_is_left_out(tmp_path: Path) -> None:
    write_patient(tmp_path / "P1", "P1", Modality.T1, Modality.T2)
    write_series(tmp_path / "P1" / "x", head(), PROTOCOLS[Modality.FLAIR], patient="P2", number=9)
    patient = choose_series(tmp_path / "P1", SECRET)
    assert set(patient.chosen) == {Modality.T1, Modality.T2}
    assert [remark.code for remark in patient.remarks] == ["other_patient"]


def test_two_patients_in_a_folder_of_neither_name_are_both_left_out(tmp_path: Path) -> None:
    write_patient(tmp_path / "case-9", "P1", Modality.T1)
    write_series(tmp_path / "case-9" / "x", head(), PROTOCOLS[Modality.FLAIR], patient="P2", number=9)
    patient = choose_series(tmp_path / "case-9", SECRET)
    assert not patient.chosen
    assert [remark.code for remark in patient.remarks] == ["mixed_patients", "mixed_patients"]


def test_studies_in_wrong_folders_are_found_by_comparing(tmp_path: Path) -> None:
    for folder, patient in (("P1", "P1"), ("P2", "P1"), ("case-3", "P9"), ("case-4", " p9"), ("P5", "P5")):
        write_t2(tmp_path / folder, patient=patient)
    write_t2(tmp_path / "case-6", patient="ANONYMOUS")
    write_t2(tmp_path / "case-7", patient="ANONYMOUS")
    found = [choose_series(folder, SECRET) for folder in sorted(tmp_path.iterdir())]
    doubts = [(folder.name, remark.code) for folder, remark in compare_patients(found)]
    assert doubts == [("P2", "other_patient"), ("case-4", "same_patient")]


PLANTED = ("GEHEIM", "ANNA", "19551224", "PID-777", "235959")


def plant(path: Path) -> None:
    """Put identity into every text of a header, private ones too."""
    dataset = pydicom.dcmread(path)
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "GEHEIM^ANNA", "PID-777", "19551224"
    dataset.InstitutionName = dataset.PatientAddress = dataset.StudyDescription = "GEHEIM ANNA"
    dataset.ImageComments = dataset.ProtocolName = dataset.Manufacturer = "GEHEIM ANNA 19551224"
    dataset.SeriesDescription = "GEHEIM ANNA t2_tse"
    dataset.ManufacturerModelName = "Skyra PID-777"
    dataset.AcquisitionTime = dataset.StudyTime = "235959"
    dataset.add_new(0x00091001, "LO", "GEHEIM")
    dataset.save_as(path)


def test_nothing_of_who_it_is_comes_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    damages = (
        {},
        {"Modality": "CT"},
        {"Rows": None},
        {"ImageOrientationPatient": [0] * 6},
        {"PixelData": b""},
    )
    for number, damage in enumerate(damages):
        for path in write_t2(tmp_path / f"s{number}", number=number):
            plant(path)
            edit(path, **damage)
    gap = write_t2(tmp_path / "gap", number=9)
    for path in gap:
        plant(path)
    gap[7].unlink()
    chosen = choose_series(tmp_path, SECRET)
    volumes = volumes_of(chosen)
    out, err = capfd.readouterr()
    shown = repr((chosen, volumes)).replace(str(tmp_path), "") + out + err + caplog.text
    assert set(volumes) == {Modality.T2}
    assert len(chosen.remarks) == len(damages)
    assert not [text for text in PLANTED if text in shown.upper()]
    assert not [text for text in PLANTED if text.encode() in volumes[Modality.T2].array.tobytes()]


def test_geometry_of_chosen_series_is_that_of_the_files(tmp_path: Path) -> None:
    write_t2(tmp_path)
    assert choose_series(tmp_path, SECRET).chosen[Modality.T2].geometry.affine == pytest.approx(
        oblique(), abs=1e-5
    )
