"""Cohorts that ``synthesize`` cannot make, in words."""

from pathlib import Path

import pytest

from tests.cli_fixture import call, reason_of


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--sites", "0"], 2, "at least one hospital"),
        (["--sites", "a b"], 2, "letters, digits, - and _ only"),
        (["--layout", "dicom"], 2, "layout: 'dicom' is unknown"),
        (["--size", "8"], 2, "size"),
        (["--patients", "2", "--by-site"], 2, "cannot fill 3 sites"),
    ],
)
def test_synthesize_tells_what_it_cannot_make(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    result = call("synthesize", tmp_path / "out", *words)
    assert result.exit_code == code
    assert said in reason_of(result)
    assert list(tmp_path.iterdir()) == []


def test_synthesize_never_writes_into_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    result = call("synthesize", tmp_path)
    assert result.exit_code == 2
    assert "is not empty" in reason_of(result)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]
