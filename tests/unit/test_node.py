"""The site's node: its pauses, and how it ends with its supervisor."""

import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from flwr.supercore import heartbeat
from flwr.supernode import fleet_http_connection, start_client_internal

from fedglioma.audit import BrokenLog
from fedglioma.chain import AUDIT_FILE
from fedglioma.errors import FedGliomaError
from fedglioma.nodekey import create_private_key
from fedglioma_client import node
from fedglioma_client.ends import BROKEN, FAILED
from fedglioma_client.node import (
    HEARTBEAT_S,
    IDLE_POLL_S,
    REPLY_POLL_S,
    connect_plainly,
    hasten,
    installed_app,
)


def test_pauses_of_flowers_loop_are_shortened_there_and_nowhere_else(monkeypatch):
    monkeypatch.setattr(start_client_internal, "time", time)
    for module in (fleet_http_connection, heartbeat):
        monkeypatch.setattr(module, "HEARTBEAT_DEFAULT_INTERVAL", module.HEARTBEAT_DEFAULT_INTERVAL)
    slept: list[float] = []
    monkeypatch.setattr(node.time, "sleep", slept.append)
    hasten()
    for asked in (3, 0.5, 0.01):
        start_client_internal.time.sleep(asked)
    assert slept == [IDLE_POLL_S, REPLY_POLL_S, 0.01]
    assert fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL == HEARTBEAT_S
    assert heartbeat.HEARTBEAT_DEFAULT_INTERVAL == HEARTBEAT_S


def test_app_that_answers_is_the_installed_one():
    from fedglioma_client.app import app

    assert installed_app() is app


def test_plain_connection_is_made_with_the_key_that_signs(monkeypatch):
    given: dict[str, object] = {}
    monkeypatch.setattr(start_client_internal, "_init_connection", lambda **facts: given.update(facts))
    connect_plainly()
    start_client_internal._init_connection(
        server_address="a:1", insecure=False, authentication_keys=("k", "p")
    )
    assert given == {"server_address": "a:1", "insecure": True, "authentication_keys": ("k", "p")}


def test_node_whose_supervisor_is_gone_ends(tmp_path):
    create_private_key(tmp_path / "node.key")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = tmp_path / "henan.yaml"
    settings.write_text(f"site: henan\ndata: .\nserver: '{nowhere}'\nkey: node.key\ninsecure: true\n")
    command = [sys.executable, "-m", "fedglioma_client.node", str(settings), "--parent", "1"]
    ended = subprocess.run(command, timeout=300, check=False, capture_output=True)  # noqa: S603 - ours
    assert ended.returncode == FAILED


def ended_with(tmp_path, settings):
    path = tmp_path / "henan.yaml"
    path.write_text(f"site: henan\ndata: .\n{settings}", encoding="utf-8")
    command = [sys.executable, "-m", "fedglioma_client.node", str(path), "--parent", str(os.getpid())]
    ended = subprocess.run(command, timeout=300, check=False, capture_output=True, text=True)  # noqa: S603 - ours
    assert "Traceback" not in ended.stderr
    return ended.returncode, " ".join(ended.stderr.split())


@pytest.mark.parametrize("settings", ["", "server: 127.0.0.1:1\nkey: node.key\n"], ids=["nothing", "no ca"])
def test_node_whose_settings_do_not_suffice_ends_with_2_and_one_line(settings, tmp_path):
    create_private_key(tmp_path / "node.key")
    code, said = ended_with(tmp_path, settings)
    assert code == 2
    assert "henan.yaml: server, ca and key are needed to join" in said


def test_node_whose_audit_log_is_broken_ends_with_a_code_of_its_own(tmp_path):
    create_private_key(tmp_path / "node.key")
    (tmp_path / AUDIT_FILE).write_text("not a line\n")
    code, said = ended_with(tmp_path, "server: 127.0.0.1:1\nkey: node.key\ninsecure: true\nstate: .\n")
    assert code == BROKEN
    assert "move both aside to begin a new log" in said


@pytest.mark.parametrize(
    ("error", "code", "trace"),
    [
        (BrokenLog("broken"), BROKEN, False),
        (FedGliomaError("full"), 1, False),
        (OSError("odd"), FAILED, True),
    ],
)
def test_worker_that_cannot_write_its_log_ends_the_node_in_words(error, code, trace, monkeypatch, caplog):
    def serve():
        raise error

    ends = []
    monkeypatch.setattr(node.os, "_exit", ends.append)
    node._serve(SimpleNamespace(serve=serve))
    assert ends == [code]
    assert str(error) in caplog.text
    assert ("Traceback" in caplog.text) is trace
