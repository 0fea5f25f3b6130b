"""The start command up to where the hospitals come: the settings, the centre's patients, the record."""

import csv
import re
import stat
from pathlib import Path

import pytest

from fedglioma.nodekey import create_private_key, public_line
from fedglioma.payload import packed_bytes
from fedglioma.training.learner import layout_of
from fedglioma_server import gather
from fedglioma_server.run_server import start
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.runstatus import Stopped
from fedglioma_server.serve import Server
from tests.bad_cohorts import COLUMNS, MODALITIES, ROWS, volume, write_cohort, write_table

KEPT, OTHER = "BraTS-GLI-00001-000", "BraTS-GLI-00001-101"
"""Two time points of one person."""


def write_centre(folder: Path, first: str) -> None:
    """Write the cohort of three with another name for its first patient."""
    write_cohort(folder)
    for modality in MODALITIES:
        path = volume(folder, modality, "P1")
        path.rename(path.with_name(path.name.replace("P1", first)))
    (folder / "P1").rename(folder / first)
    write_table(folder, [COLUMNS, (first, *ROWS[0][1:]), *ROWS[1:]])


@pytest.fixture
def settings(tmp_path: Path, monkeypatch) -> Path:
    """A server whose two cohorts hold the same three people."""
    monkeypatch.setattr(Server, "run", stopped)
    write_centre(tmp_path / "first", KEPT)
    write_centre(tmp_path / "second", OTHER)
    (tmp_path / "sites").mkdir()
    key = create_private_key(tmp_path / "henan.key")
    (tmp_path / "sites" / "henan.pub").write_text(public_line(key, "henan"))
    path = tmp_path / "server.yaml"
    path.write_text(
        "address: 127.0.0.1\nport: 0\nout: run\ncohorts: [first, second]\n"
        "run: {width: 1, crop: 16, spacing-mm: 8, payload: int8}\n"
    )
    return path


def stopped(_server: Server) -> None:
    raise Stopped


def begun(settings: Path) -> RunFolder:
    """Start the server, as the command line does without certificates, and give its run."""
    assert start(settings, {"insecure": True, "port": None}, {"rounds": 2})[0]["status"] == "interrupted"
    return RunFolder(settings.parent / "run")


def test_record_names_no_patient_and_the_list_for_the_owner_names_all(settings):
    folder = begun(settings)
    duplicates = [issue for issue in folder.read().issues if issue.code == "duplicate"]
    assert sum(issue.cases for issue in duplicates) == 3
    assert "as another case too" in " ".join(issue.explanation for issue in duplicates)
    words = re.split(r"[^\w-]+", folder.record_file.read_text())
    assert not {KEPT, OTHER, "P2", "P3"} & set(words)
    with (folder.work / "findings.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["patient"] for row in rows if row["code"] == "duplicate"] == [OTHER, "P2", "P3"]


def test_record_tells_the_size_of_an_update_as_it_travels(settings):
    record = begun(settings).read()
    layout = layout_of(record.settings)
    assert record.payload_bytes == packed_bytes("int8", layout.sizes) < layout.payload_bytes
    assert (record.engine, record.settings.rounds, record.settings.spacing_mm) == ("deployed", 2, 8)
    assert set(record.versions) == {"fedglioma", "flwr", "torch", "python"}


def test_start_that_was_killed_before_its_record_was_whole_begins_again(settings, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gather, "write_findings", killed)
        with pytest.raises(KeyboardInterrupt):
            begun(settings)
    folder = begun(settings)
    assert (folder.work / "findings.csv").exists()
    assert stat.S_IMODE(folder.work.stat().st_mode) == 0o700
