"""A process that dies at any system call of the ledger: no more and no less is counted afterwards."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from fedglioma.errors import PrivacyError
from fedglioma.privacy.accounting import Mechanism, epsilon_of
from fedglioma.privacy.ledger import Ledger
from fedglioma.privacy.ledger_entries import ReleaseKey
from tests.ledger_fixture import AMPLE, DELTA, gaussian_epsilon, key, ledger_in, noise, tags

CALLS = ("open", "write", "pwrite", "fsync", "link", "replace", "rename", "unlink", "mkdir", "ftruncate")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


class Counter:
    """Lets a process die just before, or in the middle of, its n-th call that touches the disk."""

    def __init__(self, last: int, *, torn: bool) -> None:
        self.left = last
        self.torn = torn
        self.real = {name: getattr(os, name) for name in CALLS}

    def call(self, name: str) -> Callable[..., Any]:
        def counted(*words: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                if self.torn and name in ("write", "pwrite"):
                    handle, content, *rest = words
                    self.real[name](handle, content[: len(content) // 2], *rest)
                os._exit(9)
            return self.real[name](*words, **named)

        return counted


def run_until(last: int, work: Callable[[], object], *, torn: bool) -> bool:
    """Do the work in a forked process that dies at its n-th call; return whether it came to the end."""
    child = os.fork()
    if child == 0:
        counter = Counter(last, torn=torn)
        try:
            with patch.multiple(os, **{name: counter.call(name) for name in CALLS}):
                work()
        except BaseException:
            os._exit(8)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), "the work failed by itself"
    return code == 0


def alone(work: Callable[..., None], *given: object) -> None:
    """Run a function of this file in a process of its own: it forks, and this one has threads."""
    called = f"from tests.unit.test_ledger_crashes import {work.__name__} as work\nwork(*{given})"
    program = f"from pathlib import PosixPath\n{called}"
    ended = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/server:{ROOT}/client"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr


def one_round(ledger: Ledger, of: ReleaseKey, sent: Path, mechanism: Mechanism | None = None) -> None:
    """Answer a round as a site does that was perhaps started again: send what was committed, or make it."""
    ledger.settle(keep=of)
    update = ledger.stored(of)
    if update is None:
        parts = noise(5) if mechanism is None else (mechanism,)
        reservation = ledger.reserve(of, parts, tags(1, 2), AMPLE)
        update = os.urandom(8).hex().encode()  # noise: never the same twice
        ledger.commit(reservation, update)
    with (sent / str(of)).open("ab") as file:
        file.write(update + b"\n")


def answers(sent: Path) -> dict[str, set[bytes]]:
    """Return the different updates that left for each release."""
    return {path.name: {line for line in path.read_bytes().split(b"\n") if line} for path in sent.iterdir()}


@pytest.mark.parametrize("torn", [False, True], ids=["before a call", "within a write"])
def test_two_crashes_anywhere_leave_the_epsilon_of_the_undisturbed_run(tmp_path: Path, torn: bool) -> None:
    """Rounds 1 to 3, dying at the n-th call of round 2 and again at the n-th of its restart, for every n."""
    alone(two_crashes, tmp_path, torn)


def two_crashes(tmp_path: Path, torn: bool) -> None:
    part = Mechanism(noise_multiplier=1.5, sampling_rate=0.1, steps=20)
    undisturbed = epsilon_of([part.model_copy(update={"steps": 60})], DELTA, "rdp")
    for last in range(200):
        state, sent = tmp_path / f"state-{last}", tmp_path / f"sent-{last}"
        sent.mkdir()
        copy = tmp_path / f"copy-{last}.head"
        one_round(ledger_in(state, copy), key(1), sent, part)

        def work(state: Path = state, sent: Path = sent, copy: Path = copy) -> None:
            one_round(ledger_in(state, copy), key(2), sent, part)

        finished = run_until(last, work, torn=torn)
        if not finished:
            run_until(max(last - 3, 0), work, torn=torn)
        work()
        one_round(ledger_in(state, copy), key(3), sent, part)
        ledger = ledger_in(state, copy)
        assert ledger.epsilon_spent(None, DELTA, "rdp") == undisturbed
        left = answers(sent)
        assert len(left) == 3
        assert all(len(updates) == 1 for updates in left.values())
        if finished:
            break
    else:
        pytest.fail("the round never came to its end")
    assert last > 15


@pytest.mark.parametrize("torn", [False, True], ids=["before a call", "within a write"])
def test_crash_in_the_very_first_round_leaves_a_ledger_that_goes_on(tmp_path: Path, torn: bool) -> None:
    alone(first_crash, tmp_path, torn)


def first_crash(tmp_path: Path, torn: bool) -> None:
    for last in range(200):
        state, sent = tmp_path / f"state-{last}", tmp_path / f"sent-{last}"
        sent.mkdir()

        def work(state: Path = state, sent: Path = sent) -> None:
            one_round(ledger_in(state), key(1), sent)

        finished = run_until(last, work, torn=torn)
        work()
        spent = ledger_in(state).epsilon_spent(None, DELTA, "prv")
        assert spent == pytest.approx(gaussian_epsilon(5), rel=1e-6)
        assert all(len(updates) == 1 for updates in answers(sent).values())
        if finished:
            return
    pytest.fail("the round never came to its end")


def test_crash_while_reservations_are_given_up_can_be_gone_on_with(tmp_path: Path) -> None:
    alone(crash_in_settling, tmp_path)


def crash_in_settling(tmp_path: Path) -> None:
    for last in range(200):
        state = tmp_path / f"state-{last}"
        for number in (1, 2):
            ledger_in(state).reserve(key(number), noise(5), tags(1), AMPLE)
        finished = run_until(last, ledger_in(state).settle, torn=True)
        ledger_in(state).settle()
        assert ledger_in(state).epsilon_spent(None, DELTA, "prv") == 0
        if finished:
            return
    pytest.fail("settling never came to its end")


@pytest.mark.parametrize("when", range(1, 4))
def test_full_disk_lets_nothing_leave_and_is_mended_by_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    ledger = ledger_in(tmp_path)
    reservation = ledger.reserve(key(1), noise(5), tags(1), AMPLE)
    real, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == when:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(PrivacyError, match="No space left"):
            ledger.commit(reservation, b"update")
    ledger.commit(reservation, b"update")
    assert ledger.stored(key(1)) == b"update"
    assert ledger.epsilon_spent(None, DELTA, "prv") == pytest.approx(gaussian_epsilon(5), rel=1e-6)


def test_line_that_was_cut_short_is_recorded_as_such(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)
    reservation = ledger.reserve(key(1), noise(5), tags(1), AMPLE)
    with ledger.path.open("ab") as file:
        file.write(b'{"seq":3,"time":"2026-01-01')
    ledger.commit(reservation, b"update")
    events = [line.split(b'"event":"')[1].split(b'"')[0] for line in ledger.path.read_bytes().splitlines()]
    assert events == [b"opened", b"reserved", b"torn", b"committed"]
