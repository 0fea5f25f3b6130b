"""Reading the audit log: whatever was done to it, the first broken line is named."""

import hashlib
import json
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedglioma import chain
from fedglioma.audit import AuditLog, Event
from fedglioma.errors import ConfigError
from fedglioma.verification import verify

LINES = 6


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], str]:
    """The lines of a sound log, and its head file."""
    path = tmp_path_factory.mktemp("written") / "audit.jsonl"
    log = AuditLog(path)
    for number in range(LINES):
        log.append(Event.RECEIVED, site="henan", round=number, weights={"trunk": 1.5, "idh": 2.0})
    return path.read_bytes().splitlines(keepends=True), path.with_suffix(".head").read_text()


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "audit.jsonl"


def first_broken(path: Path, lines: list[bytes], head: str | None) -> int | None:
    """Lay the lines and the head on disk and return the line that is named."""
    path.write_bytes(b"".join(lines))
    if head is not None:
        path.with_suffix(".head").write_text(head)
    seen = verify(path)
    assert seen.lines == (seen.broken.line - 1 if seen.broken else len(lines))
    return seen.broken.line if seen.broken else None


def resealed(lines: list[bytes], start: int) -> list[bytes]:
    """Return the lines with the chain made good from a place on, by its definition."""
    tables = [json.loads(line) for line in lines]
    for place in range(start, len(tables)):
        table = tables[place]
        if place:
            table["previous"] = tables[place - 1]["digest"]
        del table["digest"]
        canonical = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
        table["digest"] = hashlib.sha256(canonical).hexdigest()
    return [json.dumps(table, separators=(",", ":")).encode() + b"\n" for table in tables]


def moved(line: bytes, site: bytes = b"hunan") -> bytes:
    return line.replace(b"henan", site)


place = st.integers(0, LINES - 1)
law = settings(deadline=None, max_examples=150)


def test_sound_log_shows_its_lines_period_and_head(path: Path, written: tuple[list[bytes], str]) -> None:
    lines, head = written
    assert first_broken(path, lines, head) is None
    seen, tables = verify(path), [json.loads(line) for line in lines]
    assert (seen.lines, seen.broken, seen.verdict) == (LINES, None, "sound")
    assert (seen.first, seen.last) == (tables[0]["time"], tables[-1]["time"])
    assert seen.head == tables[-1]["digest"]
    assert resealed(lines, 0) == lines


@law
@given(place, st.data())
def test_changed_byte_is_found_in_its_line(
    written: tuple[list[bytes], str],
    tmp_path_factory: pytest.TempPathFactory,
    line: int,
    data: st.DataObject,
) -> None:
    lines, head = written
    at = data.draw(st.integers(0, len(lines[line]) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != lines[line][at]))
    edited = lines[line][:at] + bytes([value]) + lines[line][at + 1 :]
    path = tmp_path_factory.getbasetemp() / "changed.jsonl"
    path.write_bytes(b"".join([*lines[:line], edited, *lines[line + 1 :]]))
    path.with_suffix(".head").write_text(head)
    broken = verify(path).broken
    assert broken
    assert broken.line == line + 1


@law
@given(st.integers(0, LINES), st.binary(min_size=1, max_size=20), st.data())
def test_bytes_put_in_are_found_in_their_line(
    written: tuple[list[bytes], str],
    tmp_path_factory: pytest.TempPathFactory,
    line: int,
    more: bytes,
    data: st.DataObject,
) -> None:
    lines, head = written
    at = 0 if line == LINES else data.draw(st.integers(0, len(lines[line]) - 1))
    text = b"".join(lines)
    offset = sum(map(len, lines[:line])) + at
    changed = text[:offset] + more + text[offset:]
    assume(changed != text)
    # What a crash leaves at the end cannot be told from somebody's doing; it changes no line.
    assume(line < LINES or not chain.unfinished(more, LINES + 1))
    path = tmp_path_factory.getbasetemp() / "longer.jsonl"
    path.write_bytes(changed)
    path.with_suffix(".head").write_text(head)
    pairs = enumerate(zip(changed, text, strict=False))
    same = next((at for at, (new, old) in pairs if new != old), len(text))
    broken = verify(path).broken
    assert broken
    assert broken.line == text[:same].count(b"\n") + 1


@law
@given(st.data())
def test_end_cut_off_is_found_at_the_first_missing_line(
    written: tuple[list[bytes], str], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    lines, head = written
    text = b"".join(lines)
    left = text[: data.draw(st.integers(0, len(text) - 1))]
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    path.write_bytes(left)
    path.with_suffix(".head").write_text(head)
    broken = verify(path).broken
    assert broken
    assert broken.line == left.count(b"\n") + 1


@law
@given(place, place)
def test_lines_removed_are_found_where_they_were(
    written: tuple[list[bytes], str], tmp_path_factory: pytest.TempPathFactory, one: int, other: int
) -> None:
    lines, head = written
    begin, end = sorted((one, other))
    path = tmp_path_factory.getbasetemp() / "removed.jsonl"
    assert first_broken(path, lines[:begin] + lines[end + 1 :], head) == begin + 1


@law
@given(place, st.integers(0, LINES))
def test_line_repeated_is_found_where_it_was_put(
    written: tuple[list[bytes], str], tmp_path_factory: pytest.TempPathFactory, line: int, where: int
) -> None:
    lines, head = written
    path = tmp_path_factory.getbasetemp() / "repeated.jsonl"
    copied = [*lines[:where], lines[line], *lines[where:]]
    # Put before itself, a line is in its right place, and it is the next one that is too many.
    assert first_broken(path, copied, head) == where + 1 + (where == line)


@law
@given(place, place)
def test_lines_swapped_are_found_at_the_first(
    written: tuple[list[bytes], str], tmp_path_factory: pytest.TempPathFactory, one: int, other: int
) -> None:
    assume(one != other)
    lines, head = list(written[0]), written[1]
    lines[one], lines[other] = lines[other], lines[one]
    path = tmp_path_factory.getbasetemp() / "swapped.jsonl"
    assert first_broken(path, lines, head) == min(one, other) + 1


def test_what_is_wrong_is_told_in_words(path: Path, written: tuple[list[bytes], str]) -> None:
    lines, head = written
    for changed, said in (
        (
            [lines[0], moved(lines[1]), *lines[2:]],
            "line 2 was changed: its digest is not that of its content",
        ),
        ([lines[0], *lines[2:]], "line 2 has the number 3: lines were removed, put in or moved"),
        (lines[:4], "line 5 is missing: the head names line 6, so the end was cut off"),
    ):
        first_broken(path, changed, head)
        assert verify(path).verdict == said


def test_numbers_that_skip_one_are_found_though_the_chain_was_made_good(
    path: Path, written: tuple[list[bytes], str]
) -> None:
    lines = [written[0][0], *written[0][2:]]
    assert first_broken(path, resealed(lines, 1), None) == 2


@law
@given(place)
def test_line_changed_with_its_digest_is_found_at_the_next(
    written: tuple[list[bytes], str], tmp_path_factory: pytest.TempPathFactory, line: int
) -> None:
    lines, head = list(written[0]), written[1]
    lines[line] = resealed([*lines[:line], moved(lines[line])], line)[line]
    path = tmp_path_factory.getbasetemp() / "resealed.jsonl"
    assert first_broken(path, lines, head) == min(line + 2, LINES)


@law
@given(place)
def test_chain_made_good_to_the_end_is_found_by_its_head(
    written: tuple[list[bytes], str], tmp_path_factory: pytest.TempPathFactory, line: int
) -> None:
    lines, head = list(written[0]), written[1]
    lines[line] = moved(lines[line])
    path = tmp_path_factory.getbasetemp() / "forged.jsonl"
    assert first_broken(path, resealed(lines, line), head) == LINES


def test_log_and_head_forged_together_are_found_by_a_head_kept_elsewhere(
    path: Path, written: tuple[list[bytes], str]
) -> None:
    lines, _ = written
    forged = resealed([moved(lines[0]), *lines[1:]], 0)
    path.write_bytes(b"".join(forged))
    path.with_suffix(".head").write_text(
        json.dumps({"seq": LINES, "digest": json.loads(forged[-1])["digest"]})
    )
    assert verify(path).broken is None
    for line in lines:
        broken = verify(path, head=json.loads(line)["digest"]).broken
        assert broken
        assert "no line has the head that was given" in broken.what


def test_head_kept_elsewhere_is_found_in_a_log_that_has_grown(
    path: Path, written: tuple[list[bytes], str]
) -> None:
    lines, head = written
    assert first_broken(path, lines, head) is None
    for number, line in enumerate(lines, start=1):
        seen = verify(path, head=f" {json.loads(line)['digest'].upper()}\n")
        assert (seen.broken, seen.known) == (None, number)
    assert verify(path, head="0" * 64).known == 0


def test_head_kept_elsewhere_finds_an_end_cut_off_with_its_head(
    path: Path, written: tuple[list[bytes], str]
) -> None:
    lines, _ = written
    ends = [json.loads(line)["digest"] for line in lines]
    assert first_broken(path, lines[:3], json.dumps({"seq": 3, "digest": ends[2]})) is None
    broken = verify(path, head=ends[4]).broken
    assert broken
    assert broken.line == 4


def test_copy_without_its_head_is_sound_for_whoever_kept_the_head(
    path: Path, written: tuple[list[bytes], str]
) -> None:
    lines, _ = written
    assert first_broken(path, lines, None) == LINES + 1
    assert verify(path, head=json.loads(lines[-1])["digest"]).broken is None
    assert verify(path, head=json.loads(lines[-2])["digest"]).broken is not None


@pytest.mark.parametrize(("seq", "broken"), [(LINES, None), (LINES - 1, None), (LINES - 2, LINES), (1, 3)])
def test_log_may_be_one_line_ahead_of_its_head_and_no_more(
    path: Path, written: tuple[list[bytes], str], seq: int, broken: int | None
) -> None:
    head = json.dumps({"seq": seq, "digest": json.loads(written[0][seq - 1])["digest"]})
    path.write_bytes(b"".join(written[0]))
    path.with_suffix(".head").write_text(head)
    seen = verify(path).broken
    assert (seen.line if seen else None) == broken


def test_first_line_may_be_without_a_head_and_no_other(path: Path, written: tuple[list[bytes], str]) -> None:
    lines, _ = written
    assert first_broken(path, lines[:1], None) is None
    assert first_broken(path, lines[:2], None) == 3
    assert first_broken(path, [], None) is None


@pytest.mark.parametrize("head", ["", "{", "[1]", '{"seq": 0, "digest": "x"}', '{"seq": 6}'])
def test_head_file_that_holds_none_is_told(path: Path, written: tuple[list[bytes], str], head: str) -> None:
    assert first_broken(path, written[0], head) == LINES + 1
    broken = verify(path).broken
    assert broken
    assert "does not hold a head" in broken.what


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (b"a letter\n", "is not JSON"),
        (b'{"round": 1}\n', "is not a line of an audit log"),
        (b"[]\n", "is not a line of an audit log"),
        (b"\n", "is not JSON"),
        (b"\xff\xfe\n", "is not JSON"),
        (b"[" * 50_000 + b"\n", "is not JSON"),
        (b"7" * 5000 + b"\n", "is not JSON"),
        (b"no line at all", "nor the beginning of one"),
        (b"x" * 70_000, "longer than a line"),
        (
            b'{"seq":1,"time":"","event":"","data":{"x":1e999},"previous":"","digest":""}\n',
            "holds what no line can hold",
        ),
        (
            b'{"seq":true,"time":"","event":"","data":{},"previous":"","digest":""}\n',
            "is not a line of an audit log",
        ),
    ],
)
def test_foreign_file_is_broken_at_its_first_line(path: Path, lines: bytes, said: str) -> None:
    path.write_bytes(lines)
    broken = verify(path).broken
    assert broken
    assert (broken.line, said in broken.what) == (1, True)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda raw: json.dumps(json.loads(raw)).encode() + b"\n",
        lambda raw: json.dumps(json.loads(raw), sort_keys=True, separators=(",", ":")).encode() + b"\n",
        lambda raw: raw.replace(b'"seq":2', b'"seq":1,"seq":2'),
        lambda raw: raw.replace(b"henan", b"h\\u0065nan"),
        lambda raw: raw.replace(b'{"idh":2.0,"trunk":1.5}', b'{"trunk":1.5,"idh":2.0}'),
        lambda raw: raw.replace(b"2.0", b"2.00"),
        lambda raw: raw[:-1] + b"\r\n",
    ],
    ids=["spaces", "order", "a key twice", "escape", "inner order", "digits", "line end"],
)
def test_line_that_says_the_same_in_other_bytes_is_broken(
    path: Path, written: tuple[list[bytes], str], rewrite: Any
) -> None:
    lines, head = list(written[0]), written[1]
    before = lines[1]
    lines[1] = rewrite(before)
    assert lines[1] != before
    assert first_broken(path, lines, head) == 2


def test_file_that_is_not_there_or_not_a_file_is_a_wrong_argument(tmp_path: Path) -> None:
    for place, said in [
        (tmp_path / "none.jsonl", "no such audit log"),
        (tmp_path, "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
        (tmp_path / ("x" * 300), "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=said):
            verify(place)


@pytest.mark.parametrize("head", ["", "abc", "g" * 64, "a" * 65])
def test_head_that_is_no_digest_is_a_wrong_argument(path: Path, head: str) -> None:
    path.touch()
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        verify(path, head=head)


def test_log_removed_beside_its_head_is_broken(path: Path, written: tuple[list[bytes], str]) -> None:
    path.with_suffix(".head").write_text(written[1])
    seen = verify(path)
    assert (seen.broken is None, seen.lines) == (False, 0)
    assert "line 1 is missing" in seen.text()


def test_log_that_grows_meanwhile_is_sound_at_every_moment(path: Path) -> None:
    log, enough = AuditLog(path), threading.Event()
    written = []

    def grow() -> None:
        while not enough.is_set():
            log.append(Event.SENT, round=len(written))
            written.append(len(written))

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        end = time.monotonic() + 60
        while not written and time.monotonic() < end:
            time.sleep(0.001)
        seen = [verify(path) for _ in range(30)]
    finally:
        enough.set()
        writer.join()
    assert [one.verdict for one in seen] == ["sound"] * len(seen)
    assert verify(path).lines == len(written) > 0


def test_length_of_a_log_costs_no_memory(path: Path) -> None:
    last = chain.START
    with path.open("wb") as file:
        for number in range(1, 10_001):
            line = chain.seal(number, "2026-01-01T00:00:00.000+00:00", "sent", {"x": "y" * 300}, last.digest)
            file.write(chain.encode(line))
            last = chain.Head(line.seq, line.digest)
    chain.write_head(path, line)
    size = path.stat().st_size
    tracemalloc.start()
    try:
        assert verify(path).lines == 10_000
        assert tracemalloc.get_traced_memory()[1] < size / 10
    finally:
        tracemalloc.stop()
