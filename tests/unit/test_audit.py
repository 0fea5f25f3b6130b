"""Writing the audit log: one chain whoever writes, whatever is killed, and no content in it."""

import errno
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma import chain
from fedglioma.audit import MOST_CHARACTERS, MOST_ENTRIES, AuditLog, Event, shortened
from fedglioma.errors import ConfigError, FedGliomaError
from fedglioma.verification import verify

ROOT = Path(__file__).resolve().parents[2]
ZEROS = "0" * 64

words = st.text(max_size=40)
plain = (
    st.none()
    | st.booleans()
    | words
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
fields = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True).filter(lambda name: name != "digests"),
    plain | st.lists(plain, max_size=3) | st.dictionaries(words, plain, max_size=3),
    max_size=4,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def assert_chained(path: Path) -> list[dict[str, Any]]:
    """Check the chain by its definition, with nothing of ours, and return the lines."""
    previous, lines = ZEROS, lines_of(path)
    for number, line in enumerate(lines, start=1):
        assert list(line) == ["seq", "time", "event", "data", "previous", "digest"]
        digest = line.pop("digest")
        canonical = json.dumps(line, sort_keys=True, separators=(",", ":")).encode()
        assert digest == hashlib.sha256(canonical).hexdigest()
        assert (line["seq"], line["previous"]) == (number, previous)
        previous = digest
    assert json.loads(path.with_suffix(".head").read_text()) == {"seq": len(lines), "digest": previous}
    return lines


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_chain_is_what_anybody_computes_from_its_definition(path: Path) -> None:
    log = AuditLog(path)
    heads = [log.append(event, site="henan", round=1) for event in Event]
    lines = assert_chained(path)
    assert [line["event"] for line in lines] == list(Event)
    assert [line["digest"] for line in lines_of(path)] == heads
    assert log.head() == heads[-1] == json.loads(path.with_suffix(".head").read_text())["digest"]


def test_line_says_when_it_was_written_in_utc(path: Path) -> None:
    AuditLog(path).append(Event.CONTROL, command="stop")
    when = datetime.fromisoformat(lines_of(path)[0]["time"])
    assert when.utcoffset() == timedelta(0)
    assert abs(when.timestamp() - time.time()) < 60


@settings(deadline=None, max_examples=60)
@given(st.lists(fields, min_size=1, max_size=4))
def test_what_may_be_recorded_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, events: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    log = AuditLog(path)
    for data in events:
        log.append(Event.RECEIVED, **data)
    assert [line["data"] for line in assert_chained(path)] == events
    assert verify(path).broken is None


def test_new_log_makes_its_folder_and_is_not_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "state" / "henan" / "audit.jsonl"
    log = AuditLog(path)
    assert log.head() == ZEROS
    assert path.stat().st_mode & 0o007 == 0


def test_log_goes_on_where_another_start_ended(path: Path) -> None:
    AuditLog(path).append(Event.RUN_STARTED)
    first, second = AuditLog(path), AuditLog(path)
    first.append(Event.RUN_RESUMED)
    second.append(Event.RUN_FINISHED)
    first.append(Event.RUN_STOPPED)
    assert len(assert_chained(path)) == 4


APPENDER = """
import sys
from pathlib import Path
from fedglioma.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    log.append("received", site=sys.argv[2], round=number)
"""


def test_two_processes_write_one_chain_and_lose_no_line(path: Path) -> None:
    both = [python(APPENDER, path, site, 100) for site in ("henan", "ningxia")]
    for process in both:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in both:
        _, errors = process.communicate("go\n", timeout=300)
        assert (process.returncode, errors) == (0, "")
    data = [line["data"] for line in assert_chained(path)]
    for site in ("henan", "ningxia"):
        assert [entry["round"] for entry in data if entry["site"] == site] == list(range(100))


def test_threads_write_one_chain_and_lose_no_line(path: Path) -> None:
    log = AuditLog(path)

    def work(site: str) -> None:
        for number in range(25):
            log.append(Event.SENT, site=site, round=number)

    threads = [threading.Thread(target=work, args=(f"site{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(assert_chained(path)) == 100


KILLED = """
import os, signal, sys
from pathlib import Path
from fedglioma import chain
from fedglioma.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
log.append("run_started")

def die(*_words): os.kill(os.getpid(), signal.SIGKILL)

def half(handle, data):
    write(handle, data[: len(data) // 2])
    die()

write = os.write
stage = sys.argv[2]
if stage == "mid-line": os.write = half
if stage == "unsynced": os.fsync = die
if stage == "before-head": chain.write_head = die
if stage == "mid-head": Path.replace = die
log.append("sent", site="henan", round=1)
"""


@pytest.mark.parametrize(
    ("stage", "lines", "torn"),
    [("mid-line", 1, True), ("unsynced", 2, False), ("before-head", 2, False), ("mid-head", 2, False)],
)
def test_writer_killed_inside_a_line_leaves_a_log_that_is_sound(
    path: Path, stage: str, lines: int, torn: bool
) -> None:
    process = python(KILLED, path, stage)
    _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (-signal.SIGKILL, "")
    seen = verify(path)
    assert (seen.broken, seen.lines, seen.torn_bytes > 0) == (None, lines, torn)
    AuditLog(path).append(Event.RUN_RESUMED)
    events = [line["event"] for line in assert_chained(path)]
    assert events == ["run_started", *(["torn"] if torn else ["sent"]), "run_resumed"]


def test_writers_killed_at_any_moment_leave_a_log_that_is_sound(path: Path) -> None:
    for number in range(8):
        process = python(APPENDER, path, "henan", 10**6)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
        wait_until_it_grows(path, process)
        time.sleep(0.004 * number)
        process.kill()
        process.communicate(timeout=300)
        assert verify(path).broken is None
    AuditLog(path)
    assert len(assert_chained(path)) > 8


def wait_until_it_grows(path: Path, process: subprocess.Popen[str]) -> None:
    end, before = time.monotonic() + 60, path.stat().st_size
    while path.stat().st_size < before + 500:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.001)


def torn_log(path: Path, tail: bytes) -> None:
    AuditLog(path).append(Event.RUN_STARTED)
    path.write_bytes(path.read_bytes() + tail)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_line_cut_short_is_moved_aside_to_the_byte_and_recorded(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    AuditLog(path).append(Event.RUN_STARTED)
    before = path.read_bytes()
    AuditLog(path).append(Event.SENT, site="henan", digests={"update": "a" * 64}, bytes=5)
    line = path.read_bytes()[len(before) :]
    tail = line[: data.draw(st.integers(1, len(line) - 1))] + b"\0" * data.draw(st.integers(0, 3))
    path.unlink()
    path.with_suffix(".head").unlink()
    path.write_bytes(before + tail)

    seen = verify(path)
    assert (seen.broken, seen.lines, seen.torn_bytes) == (None, 1, len(tail))
    AuditLog(path)
    entry = assert_chained(path)[1]
    assert entry["event"] == "torn"
    assert entry["data"] == {
        "file": "audit.torn-1",
        "bytes": len(tail),
        "digests": {"torn": hashlib.sha256(tail).hexdigest()},
        "reason": "a line that a crash cut short",
    }
    assert path.with_suffix(".torn-1").read_bytes() == tail


def test_second_torn_line_takes_the_next_number(path: Path) -> None:
    torn_log(path, b'{"seq":2')
    AuditLog(path)
    path.write_bytes(path.read_bytes() + b'{"se')
    AuditLog(path)
    names = [line["data"].get("file") for line in assert_chained(path)]
    assert names == [None, "audit.torn-1", "audit.torn-2"]


def test_torn_line_longer_than_the_event_leaves_nothing_behind(path: Path) -> None:
    tail = b'{"seq":2,"time":"2026' + b"x" * 5000
    torn_log(path, tail)
    AuditLog(path)
    assert [line["event"] for line in assert_chained(path)] == ["run_started", "torn"]
    assert path.with_suffix(".torn-1").read_bytes() == tail
    assert [verify(path).verdict, verify(path).torn_bytes] == ["sound", 0]


def test_end_that_is_no_line_is_moved_aside_and_called_so(path: Path) -> None:
    torn_log(path, b"something else")
    AuditLog(path)
    assert assert_chained(path)[1]["data"]["reason"] == "not the beginning of a line"
    assert path.with_suffix(".torn-1").read_bytes() == b"something else"


def test_crash_while_a_torn_line_is_moved_aside_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn_log(path, b'{"seq":2,"time":"2026')

    def stop(*_words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", stop)
        with pytest.raises(KeyboardInterrupt):
            AuditLog(path)
    AuditLog(path)
    assert assert_chained(path)[1]["data"]["file"] == "audit.torn-2"
    assert path.with_suffix(".torn-1").read_bytes() == path.with_suffix(".torn-2").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda raw: raw[: raw.index(b"\n") + 1], "line 2 is missing: the head names line 3"),
        (lambda raw: raw[:-2], "line 3 is missing: the head names line 3"),
        (lambda raw: b"", "line 1 is missing"),
        (lambda raw: raw.replace(b"henan", b"hanen"), "the last line was changed"),
        (lambda raw: b"a letter\nto somebody\n", "the last line is not JSON"),
        (lambda raw: raw + b"x" * chain.LONGEST, "longer than a line"),
        (lambda raw: b"x" * 3 * chain.LONGEST, "longer than a line"),
        (lambda raw: b"x" * 3 * chain.LONGEST + b"\n", "longer than a line"),
    ],
    ids=["cut", "cut in the last line", "emptied", "edited", "foreign", "long tail", "no line", "long line"],
)
def test_nothing_is_added_to_a_log_that_is_broken_at_its_end(path: Path, spoil: Any, said: str) -> None:
    log = AuditLog(path)
    for number in range(3):
        log.append(Event.SENT, site="henan", round=number)
    path.write_bytes(spoil(path.read_bytes()))
    before = path.read_bytes()
    for attempt in (lambda: log.append(Event.SENT), lambda: AuditLog(path), log.head):
        with pytest.raises(FedGliomaError, match=said) as raised:
            attempt()
        assert "move both aside" in str(raised.value)
        assert "\n" not in str(raised.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"seq": true, "digest": "x"}', b"\xff"])
def test_nothing_is_added_beside_a_head_that_is_none(path: Path, content: bytes) -> None:
    AuditLog(path).append(Event.RUN_STARTED)
    path.with_suffix(".head").write_bytes(content)
    with pytest.raises(FedGliomaError, match=r"audit\.head beside it does not hold a head"):
        AuditLog(path)


def test_log_is_not_revived_where_only_its_head_is_left(path: Path) -> None:
    AuditLog(path).append(Event.RUN_STARTED)
    path.unlink()
    with pytest.raises(FedGliomaError, match="line 1 is missing: the head names line 1"):
        AuditLog(path)


LIMITED = """
import resource, sys
from pathlib import Path
from fedglioma.audit import AuditLog
from fedglioma.errors import FedGliomaError
path = Path(sys.argv[1])
log = AuditLog(path)
log.append("run_started")
most = path.stat().st_size + 100
resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
try:
    log.append("sent", site="henan", reason="x" * 300)
except FedGliomaError as error:
    print(error)
"""


def test_line_that_the_disk_has_no_room_for_is_refused_whole_and_in_words(path: Path) -> None:
    out, errors = python(LIMITED, path).communicate(timeout=300)
    assert errors == ""
    assert re.fullmatch(r".*audit\.jsonl: cannot be written \(File too large\);.* make space .*\n", out)
    assert len(assert_chained(path)) == 1


def test_head_that_the_disk_has_no_room_for_is_made_up_for_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(path)
    log.append(Event.RUN_STARTED)

    def full(*_words: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(FedGliomaError, match="No space left on device"):
            log.append(Event.SENT, site="henan")
    assert verify(path).broken is None
    AuditLog(path)
    assert len(assert_chained(path)) == 2


def test_place_that_cannot_be_a_log_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FedGliomaError, match="cannot be written"):
        AuditLog(tmp_path)
    with pytest.raises(FedGliomaError, match="cannot be written"):
        AuditLog(tmp_path / "file" / "audit.jsonl")
    with pytest.raises(ConfigError, match="is not a regular file"):
        AuditLog(Path("/dev/full"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is not a regular file"):
        AuditLog(tmp_path / "pipe")


def test_folder_that_may_not_be_written_is_refused_in_words(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_words: object, **_more: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(FedGliomaError, match=r"Permission denied.*give the right to write"):
        AuditLog(path)


def test_lock_that_is_never_given_back_is_told_instead_of_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(path)
    monkeypatch.setattr(chain, "PATIENCE_S", 0.1)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FedGliomaError, match="another process has held it"):
            log.append(Event.SENT)
    log.append(Event.SENT)


CONTENT = [
    b"\x00\x01",
    bytearray(b"pixels"),
    memoryview(b"pixels"),
    np.zeros(3, dtype=np.float32),
    np.float32(1),
    float("nan"),
    float("inf"),
    2**64,
    -(2**63) - 1,
    "P" * (MOST_CHARACTERS + 1),
    ["P" * (MOST_CHARACTERS + 1)],
    [[1]],
    [b"x"],
    {"update": [1.0]},
    {"update": {"a": 1}},
    {1: 2},
    {"k" * 65: 1},
    [0.5] * (MOST_ENTRIES + 1),
    {str(n): n for n in range(MOST_ENTRIES + 1)},
    {1, 2},
    object(),
    Path("/data/P1"),
]


@pytest.mark.parametrize("value", CONTENT, ids=lambda value: type(value).__name__)
def test_what_could_carry_content_is_refused_and_not_repeated(path: Path, value: Any) -> None:
    log = AuditLog(path)
    with pytest.raises(FedGliomaError, match="audit field pixels: ") as raised:
        log.append(Event.SENT, pixels=value)
    assert "P1" not in str(raised.value)
    assert "PPP" not in str(raised.value)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("value", ["abc", ["A" * 64], {"update": "a" * 63}, {"update": 5}, 1])
def test_digests_are_digests_and_no_other_words(path: Path, value: Any) -> None:
    with pytest.raises(FedGliomaError, match="digests: holds something else"):
        AuditLog(path).append(Event.SENT, digests=value)


def test_line_of_many_long_words_is_refused(path: Path) -> None:
    log = AuditLog(path)
    with pytest.raises(FedGliomaError, match="longer than 65536 bytes"):
        log.append(Event.SENT, reasons=["x" * MOST_CHARACTERS] * 200)
    log.append(Event.SENT, reasons=["x" * MOST_CHARACTERS] * 100)
    assert len(assert_chained(path)) == 1


def test_unknown_event_or_odd_field_name_is_refused(path: Path) -> None:
    log = AuditLog(path)
    with pytest.raises(FedGliomaError, match="audit event 'sned': unknown; choose among run_started"):
        log.append("sned")
    with pytest.raises(FedGliomaError, match="audit field 'Pat ient'"):
        log.append(Event.SENT, **{"Pat ient": 1})
    assert path.read_bytes() == b""


def test_words_of_somebody_else_are_shortened_to_what_a_log_takes(path: Path) -> None:
    AuditLog(path).note(Event.REFUSED, reason="no\n\u2028\ud800" * 1000)
    reason = assert_chained(path)[0]["data"]["reason"]
    assert len(reason) == MOST_CHARACTERS
    assert reason.endswith("...")
    assert shortened("short") == "short"


def test_page_explains_every_event_as_the_code_does() -> None:
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.MULTILINE))
    assert {name: rows.get(name) for name in Event} == {event: event.meaning for event in Event}
