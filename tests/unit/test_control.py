"""The server's own control: a port of this computer, and a secret that only its owner can read."""

import json
import os
import socket
import stat
from typing import Any

import httpx
import pytest

from fedglioma.errors import ConfigError, FedGliomaError
from fedglioma_server import run_control
from fedglioma_server.control import Control
from fedglioma_server.gate import answer
from fedglioma_server.handle import Handle, ask, handle_file
from fedglioma_server.link import Address, serving
from fedglioma_server.runfolder import RunFolder

SECRET = "of another start"  # noqa: S105 - nobody's
TOLD = {"run_id": "seven", "rounds": 3}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def stopped() -> list[None]:
    return []


@pytest.fixture
def running(folder, stopped):
    control = Control(lambda: TOLD, lambda: stopped.append(None))
    with control.listening(folder) as port:
        yield control, port


def test_owner_is_told_the_status(running, folder):
    assert ask(folder, "GET", "status") == TOLD


def test_owner_can_stop_the_server(running, folder, stopped):
    assert ask(folder, "POST", "stop") == {}
    assert stopped == [None]


def test_secret_lies_in_a_file_for_its_owner_alone(running, folder):
    control, port = running
    path = handle_file(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    handle = Handle.model_validate_json(path.read_text())
    assert (handle.port, handle.secret, handle.pid) == (port, control.secret, os.getpid())
    assert len(control.secret) >= 32


def test_each_start_has_a_secret_of_its_own():
    assert len({Control(lambda: {}, lambda: None).secret for _ in range(10)}) == 10


@pytest.mark.parametrize("call", [("GET", "/status"), ("POST", "/stop"), ("GET", "/"), ("GET", "/docs")])
def test_caller_without_the_secret_gets_an_empty_404_and_stops_nothing(call, running, stopped):
    control, port = running
    for secret in (
        None,
        "",
        "Bearer",
        f"Bearer {control.secret}x",
        f"bearer {control.secret}",
        control.secret,
    ):
        headers = {} if secret is None else {"authorization": secret}
        answer = httpx.request(call[0], f"http://127.0.0.1:{port}{call[1]}", headers=headers, timeout=60)
        assert (answer.status_code, answer.content) == (404, b"")
    assert stopped == []


@pytest.mark.parametrize("call", [("POST", "/status"), ("GET", "/stop"), ("GET", "/"), ("DELETE", "/stop")])
def test_owner_who_calls_something_else_gets_404(call, running, stopped):
    control, port = running
    headers = {"authorization": f"Bearer {control.secret}"}
    answer = httpx.request(call[0], f"http://127.0.0.1:{port}{call[1]}", headers=headers, timeout=60)
    assert answer.status_code == 404
    assert stopped == []


def test_port_is_open_on_the_loopback_address_alone(running):
    _, port = running
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=60)


def test_handle_goes_with_the_server(folder):
    with Control(lambda: TOLD, lambda: None).listening(folder):
        assert handle_file(folder).exists()
    assert not handle_file(folder).exists()
    assert ask(folder, "GET", "status") is None


def write_handle(folder: RunFolder, **facts: object) -> None:
    handle_file(folder).parent.mkdir(parents=True)
    handle_file(folder).write_text(json.dumps(facts))


def test_handle_of_a_server_that_was_killed_is_no_server(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        write_handle(folder, port=probe.getsockname()[1], secret=SECRET, pid=1)
        assert ask(folder, "GET", "status") is None  # while nobody else can listen there


def test_port_that_now_belongs_to_another_program_is_no_server(folder, running, tmp_path):
    _, port = running
    other = RunFolder(tmp_path / "other")
    write_handle(other, port=port, secret=SECRET, pid=1)
    assert ask(other, "GET", "status") is None


async def foreign(_scope: Any, _receive: Any, send: Any) -> None:
    await answer(send, 200, b"hello", media="text/plain")


def test_port_where_another_program_says_something_else_is_no_server(folder):
    with serving(foreign, Address("127.0.0.1", 0)) as port:
        write_handle(folder, port=port, secret=SECRET, pid=1)
        assert ask(folder, "GET", "status") is None


def test_server_that_fails_to_do_it_is_told_and_not_taken_for_none(folder):
    def fail() -> None:
        raise FedGliomaError("the disk is full")

    with Control(lambda: TOLD, fail).listening(folder):
        with pytest.raises(FedGliomaError, match=rf"process {os.getpid()}\) failed to answer stop \(500\)"):
            ask(folder, "POST", "stop")
        assert ask(folder, "GET", "status") == TOLD


@pytest.mark.parametrize("port", ["?", 0, 70000])
def test_damaged_handle_is_told(port, folder):
    write_handle(folder, port=port, secret=SECRET, pid=1)
    with pytest.raises(ConfigError, match=r"control\.json: cannot be read \(ValidationError\)"):
        ask(folder, "GET", "status")


def test_stop_and_status_need_no_certificate(tmp_path):
    (tmp_path / "server.yaml").write_text("out: run\n")
    assert run_control.status(tmp_path / "server.yaml")[0] == {"running": False, "run_id": None}
    with Control(lambda: TOLD, lambda: None).listening(RunFolder(tmp_path / "run")):
        assert run_control.stop(tmp_path / "server.yaml")[0] == {"run_id": "run", "stopping": True}


def test_server_that_does_not_answer_is_told_with_its_number(folder, monkeypatch):
    monkeypatch.setattr("fedglioma_server.handle._WAIT_S", 0.3)
    with socket.socket() as dumb:
        dumb.bind(("127.0.0.1", 0))
        dumb.listen()
        write_handle(folder, port=dumb.getsockname()[1], secret=SECRET, pid=4711)
        with pytest.raises(FedGliomaError, match=r"process 4711\) does not answer \(ReadTimeout\)"):
            ask(folder, "GET", "status")
