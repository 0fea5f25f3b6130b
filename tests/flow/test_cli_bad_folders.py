"""Folders that are none, or are somebody else's, end a command in words and are left alone."""

from pathlib import Path

import pytest

from tests.cli_fixture import SYNTHETIC, TINY, call, reason_of


@pytest.mark.parametrize("command", ["simulate", "simulate --dry-run"])
def test_out_that_is_a_file_is_refused(command: str, tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("notes")
    result = call(*command.split(), *SYNTHETIC, *TINY, "--out", file)
    assert result.exit_code == 2
    assert "is a file; name a folder" in reason_of(result)
    assert file.read_text() == "notes"


def test_out_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    result = call("simulate", *SYNTHETIC, *TINY, "--out", tmp_path)
    assert result.exit_code == 2
    assert "holds thesis.docx but no run" in reason_of(result)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"schema_version": 99}'])
def test_run_record_that_is_damaged_is_told_in_words(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(content)
    for words in (("simulate", *SYNTHETIC, *TINY, "--out", tmp_path), ("report", tmp_path)):
        result = call(*words)
        assert result.exit_code == 2
        assert "run.json: no run's record of this version" in reason_of(result)


@pytest.mark.parametrize("content", ["{", "{}", '[{"accuracy": 0.9}]'])
def test_results_of_something_else_are_no_studys(content: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content)
    result = call("report", tmp_path)
    assert result.exit_code == 2
    reason = reason_of(result)
    assert "results.json: no study's result of this version of fedglioma (" in reason
    assert "; name another folder, restore the file, or use the version that wrote it" in reason
    assert "StudyResult" not in reason
    assert "validation error" not in reason


def test_out_below_a_file_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = call("simulate", *SYNTHETIC, *TINY, "--out", tmp_path / "file" / "run")
    assert result.exit_code in (1, 2)
    assert "Not a directory" in reason_of(result)


def test_report_of_a_folder_without_a_run_ends_with_2(tmp_path: Path) -> None:
    for folder, said in ((tmp_path, "is this a run folder?"), (tmp_path / "gone", "no such run folder")):
        result = call("report", folder)
        assert result.exit_code == 2
        assert said in reason_of(result)
    assert list(tmp_path.iterdir()) == []
