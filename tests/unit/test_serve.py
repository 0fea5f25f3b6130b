"""The deployed server around its run: what keeps it from starting, how it is asked to stop, how it ends."""

import socket

import pytest

from fedglioma.audit import AuditLog
from fedglioma.config.server import ServerConfig
from fedglioma.errors import ConfigError, FedGliomaError, QuorumError
from fedglioma.nodekey import create_private_key, public_line
from fedglioma_server import serve
from fedglioma_server.evaluation_cohort import EvaluationCohort
from fedglioma_server.handle import ask
from fedglioma_server.serve import Server


@pytest.fixture
def config(tmp_path, monkeypatch) -> ServerConfig:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    sites = tmp_path / "sites"
    sites.mkdir()
    (sites / "henan.pub").write_text(public_line(create_private_key(tmp_path / "henan.key"), "henan"))
    table = {"insecure": True, "address": "127.0.0.1", "port": 0, "sites": sites, "out": tmp_path / "run"}
    return ServerConfig.model_validate(table)


def checked(config: ServerConfig, **changes: object) -> None:
    Server(config.model_copy(update=changes), EvaluationCohort()).check()


def test_metrics_port_that_is_taken_is_told_before_anything_begins(config):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.listen()
        with pytest.raises(ConfigError, match=f"metrics_port {port} on 127.0.0.1: cannot be opened"):
            checked(config, metrics_port=port)
    checked(config, metrics_port=port)
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: cannot listen there"):
        checked(config, metrics_port=port, port=port)
    assert not config.out.exists()


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), QuorumError("too few sites answered")], ids=repr)
def test_stop_and_the_end_of_a_run_need_no_log_that_can_be_written(ending, config, monkeypatch, caplog):
    server = Server(config, EvaluationCohort())

    def full(_log, event, /, **_facts):
        raise FedGliomaError(f"{event}: no space left")

    def run(_grid, coordinator, _finished):
        monkeypatch.setattr(AuditLog, "append", full)
        assert not coordinator.stop_asked()
        assert ask(server.folder, "POST", "stop") == {}
        assert coordinator.stop_asked()
        raise ending

    monkeypatch.setattr(serve, "run_federation", run)
    with pytest.raises(type(ending)):
        server.run()
    assert "control: no space left" in caplog.text
    assert "run_stopped: no space left" in caplog.text
