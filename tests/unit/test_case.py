import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedglioma.case import Case, Finding, Modality

NAMES = st.binary(min_size=1, max_size=40).filter(lambda raw: not set(raw) & set(b"/\0"))


@given(names=st.lists(NAMES, min_size=1, max_size=4))
def test_a_case_with_any_names_of_files_survives_json(names: list[bytes]) -> None:
    paths = tuple(Path(os.fsdecode(b"/data/" + name)) for name in names)
    case = Case(patient="P1", site="north", volumes={Modality.T1: paths[0]}, series={Modality.T2: paths})
    again = Case.model_validate_json(case.model_dump_json())
    assert again == case
    assert [os.fsencode(path) for path in again.series[Modality.T2]] == [os.fsencode(path) for path in paths]


def test_names_that_are_text_stand_in_json_as_they_are() -> None:
    case = Case(
        patient="P1", site="north", volumes={Modality.T1: Path("/data/头 %41 ö.nii")}, mask="/data/m.nii"
    )
    assert case.mask == Path("/data/m.nii")
    assert '"/data/头 %41 ö.nii"' in case.model_dump_json()
    assert Case.model_validate_json(case.model_dump_json()) == case


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(ValidationError, match="a path is text"):
        Case(patient="P1", site="north", volumes={Modality.T1: 7})


@given(st.text() | st.binary().map(os.fsdecode))
def test_a_finding_is_one_printable_line_whatever_it_is_about(text: str) -> None:
    finding = Finding(patient=text, site=text, code="x", message=text)
    assert finding.patient.isprintable()
    assert finding.message.isprintable()
    assert Finding.model_validate_json(finding.model_dump_json()) == finding
