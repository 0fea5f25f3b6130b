"""How a run that somebody stopped is left and told."""

import errno
from pathlib import Path

import pytest

from fedglioma.case import GENES
from fedglioma.errors import QuorumError
from fedglioma_server.records import HeldOutRound, RoundRecord, write_rounds
from fedglioma_server.run_server import start
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.runstatus import Stopped, recorded
from fedglioma_server.serve import Server


@pytest.mark.parametrize("complete", [0, 2])
def test_stop_while_sites_join_names_the_last_complete_round(complete, tmp_path: Path, monkeypatch):
    nothing = dict.fromkeys(GENES)
    heldout = HeldOutRound(cases=0, loss=None, loss_by_task=nothing, auc=nothing, accuracy=nothing)

    def stopped(server: Server) -> None:
        lines = [RoundRecord(round=number, heldout=heldout) for number in range(complete + 1)]
        write_rounds(server.folder.rounds_file, lines if complete else [])
        raise Stopped

    monkeypatch.setattr(Server, "check", lambda _server: None)
    monkeypatch.setattr(Server, "run", stopped)
    settings = tmp_path / "server.yaml"
    settings.write_text("insecure: true\nout: run\n")
    data, words = start(settings, {}, {})
    assert (data["status"], data["complete"]) == ("interrupted", complete)
    assert f"stopped after round {complete};" in words
    assert RunFolder(tmp_path / "run").read().status == "interrupted"


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), Stopped(), QuorumError("too few")], ids=repr)
def test_end_of_a_run_is_told_even_where_it_cannot_be_recorded(ending, tmp_path, monkeypatch, caplog):
    def update(_folder, **changes):
        if changes["status"] != "running":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "update", update)
    with pytest.raises(type(ending)), recorded(RunFolder(tmp_path)):
        raise ending
    assert "run.json: cannot be brought up to date: [Errno 28] No space left on device" in caplog.text
