"""The process that keeps a site's node running: when it waits, when it starts again, when it gives up."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedglioma.config.site import SiteConfig
from fedglioma.errors import ConfigError, FedGliomaError, IdentityError, PolicyError
from fedglioma_client import supervise
from fedglioma_client.ends import BROKEN, FAILED, FINISHED
from fedglioma_client.reach import Door, Knock
from fedglioma_client.supervise import LONGEST_S, SHORTEST_S, STABLE_S, Backoff, join, require_welcome

OPEN = Knock(Door.OPEN, "server:1 knows this site", told={"run": "seven"})
AWAY = Knock(Door.AWAY, "server:1 does not answer (refused)", "is the server running?")


def test_waits_double_from_a_second_to_a_minute_with_a_fifth_of_chance():
    backoff = Backoff()
    usual = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    for expected in usual:
        assert 0.8 * expected <= backoff.draw() <= 1.2 * expected
    backoff.reset()
    assert backoff.draw() <= 1.2 * SHORTEST_S
    assert usual[-1] == LONGEST_S


def test_hospitals_do_not_return_in_step():
    assert len({Backoff().draw() for _ in range(20)}) > 10


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    return SiteConfig(site="henan", data=tmp_path)


class Scene:
    """What a site finds when it knocks, how its node ends each time, and how long it lived."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, knocks: list[Knock], ends: list[tuple[int, float]]):
        self.waits: list[float] = []
        self.started = 0
        self._now = 0.0
        found, ended = iter(knocks), iter(ends)

        def watch(*_: object, **__: object) -> int:
            self.started += 1
            code, lived = next(ended)
            self._now += lived
            return code

        monkeypatch.setattr(supervise, "knock", lambda _config: next(found))
        monkeypatch.setattr(supervise, "_watch", watch)
        monkeypatch.setattr(supervise.time, "monotonic", lambda: self._now)

    def join(self, config: SiteConfig, *, once: bool = True) -> None:
        join(config, Path("henan.yaml"), once=once, wait=self.waits.append)


def test_site_waits_until_the_server_is_there_and_says_so_once(config, monkeypatch, caplog):
    caplog.set_level("INFO")
    scene = Scene(monkeypatch, [AWAY, AWAY, AWAY, OPEN], [(FINISHED, 1)])
    scene.join(config)
    assert scene.started == 1
    assert len(scene.waits) == 3
    assert scene.waits[0] < scene.waits[1] < scene.waits[2]
    assert caplog.text.count("server:1 does not answer (refused); trying again") == 1
    assert "server:1 knows this site; waiting for work in run seven" in caplog.text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (FAILED, "the server or the network closed it"),
        (0, "the server or the network closed it"),
        (-signal.SIGKILL, "killed by SIGKILL, out of memory?"),
        (-signal.SIGTERM, "killed by SIGTERM"),
        (1, "this site cannot go on; the reason stands above"),
        (305, "exit code 305; the reason stands above"),
    ],
)
def test_node_that_ends_is_started_again_with_its_reason(code, words, config, monkeypatch, caplog):
    scene = Scene(monkeypatch, [OPEN, OPEN], [(code, 1), (FINISHED, 1)])
    scene.join(config)
    assert scene.started == 2
    assert f"the connection ended ({words}); joining again in" in caplog.text


def test_node_that_was_well_for_long_is_back_soon_and_one_that_was_not_is_not(config, monkeypatch):
    scene = Scene(
        monkeypatch,
        [OPEN] * 5,
        [(FAILED, 1), (FAILED, 1), (FAILED, STABLE_S + 1), (FAILED, 1), (FINISHED, 1)],
    )
    scene.join(config)
    assert scene.waits[1] > 1.2 * SHORTEST_S
    assert scene.waits[2] <= 1.2 * SHORTEST_S


def test_node_whose_audit_log_is_broken_is_not_started_again(config, monkeypatch):
    scene = Scene(monkeypatch, [OPEN], [(BROKEN, 1)])
    with pytest.raises(FedGliomaError, match="the audit log is broken") as raised:
        scene.join(config, once=False)
    assert raised.value.exit_code == 1


@pytest.mark.parametrize("kind", [ConfigError, IdentityError])
def test_node_that_cannot_start_for_a_reason_of_the_site_is_not_started_again(kind, config, monkeypatch):
    scene = Scene(monkeypatch, [OPEN], [(kind.exit_code, 1)])
    with pytest.raises(kind, match="the node cannot start"):
        scene.join(config, once=False)


@pytest.mark.parametrize(
    ("door", "kind"),
    [(Door.IDENTITY, IdentityError), (Door.REVOKED, IdentityError), (Door.VERSION, PolicyError)],
)
def test_what_another_try_cannot_mend_ends_the_site(door, kind, config, monkeypatch):
    with pytest.raises(kind, match="so it is; do this"):
        require_welcome(Knock(door, "so it is", "do this"))
    scene = Scene(monkeypatch, [Knock(door, "so it is", "do this")], [])
    with pytest.raises(kind):
        scene.join(config)
    assert scene.waits == []


@pytest.mark.parametrize("door", [Door.OPEN, Door.AWAY, Door.CLOCK])
def test_what_mends_itself_does_not_end_the_site(door):
    require_welcome(Knock(door, "so it is"))


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[subprocess.Popen[bytes]]]]:
    """Let the supervisor start a program of ours in place of the node."""
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def program(text: str) -> list[subprocess.Popen[bytes]]:
        def popen(command: list[str], **options: object) -> subprocess.Popen[bytes]:
            assert command[1:3] == ["-m", "fedglioma_client.node"]
            assert command[command.index("--parent") + 1] == str(os.getpid())
            started.append(real([sys.executable, "-c", text], **options))  # type: ignore[call-overload]
            return started[-1]

        monkeypatch.setattr(supervise.subprocess, "Popen", popen)
        return started

    yield program
    for process in started:
        process.kill()
        process.wait()


def watch(config: SiteConfig) -> int:
    return supervise._watch(config, Path("henan.yaml"), once=True, log_level="INFO")


def test_how_the_node_ended_is_known(config, node):
    node(f"raise SystemExit({FINISHED})")
    assert watch(config) == FINISHED


def test_node_goes_with_its_supervisor(config, node, monkeypatch):
    started = node("import time; time.sleep(600)")
    monkeypatch.setattr(supervise, "LOOK_S", 0.0)
    monkeypatch.setattr(supervise, "_STOP_S", 60.0)

    def interrupt(_config: SiteConfig) -> Knock:
        raise KeyboardInterrupt

    monkeypatch.setattr(supervise, "knock", interrupt)
    with pytest.raises(KeyboardInterrupt):
        watch(config)
    assert started[0].poll() == -signal.SIGTERM


def test_node_that_does_not_hear_is_ended_for_good(config, node, monkeypatch, tmp_path):
    deaf = tmp_path / "deaf"
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    started = node(f"{ignore}; open({str(deaf)!r}, 'w').close(); time.sleep(600)")

    def look(_config: SiteConfig) -> Knock:
        if deaf.exists():
            raise KeyboardInterrupt
        return OPEN

    monkeypatch.setattr(supervise, "_STOP_S", 0.2)
    monkeypatch.setattr(supervise, "LOOK_S", 0.0)
    monkeypatch.setattr(supervise, "POLL_S", 0.01)
    monkeypatch.setattr(supervise, "knock", look)
    with pytest.raises(KeyboardInterrupt):
        watch(config)
    assert started[0].poll() == -signal.SIGKILL


def test_server_that_goes_and_comes_back_is_told_once_each(config, node, monkeypatch, caplog):
    caplog.set_level("INFO")
    found = iter([OPEN, AWAY, AWAY, OPEN, OPEN])
    started = node("import time; time.sleep(600)")

    def look(_config: SiteConfig) -> Knock:
        try:
            return next(found)
        except StopIteration:
            started[0].kill()
            return OPEN

    monkeypatch.setattr(supervise, "LOOK_S", 0.0)
    monkeypatch.setattr(supervise, "POLL_S", 0.01)
    monkeypatch.setattr(supervise, "knock", look)
    assert watch(config) == -signal.SIGKILL
    assert caplog.text.count("waiting for it") == 1
    assert caplog.text.count("server:1 knows this site again") == 1


def test_site_that_is_revoked_while_its_node_runs_ends_it(config, node, monkeypatch):
    started = node("import time; time.sleep(600)")
    monkeypatch.setattr(supervise, "LOOK_S", 0.0)
    monkeypatch.setattr(supervise, "knock", lambda _config: Knock(Door.REVOKED, "revoked", "ask"))
    with pytest.raises(IdentityError, match="revoked; ask"):
        watch(config)
    assert started[0].poll() is not None
