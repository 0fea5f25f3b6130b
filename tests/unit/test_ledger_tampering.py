"""Whatever is done to the ledger's files is found, said in words with code 5, and cannot be gone round."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma import chain
from fedglioma.errors import PrivacyError
from fedglioma.privacy.ledger import Ledger
from fedglioma.privacy.ledger_file import LedgerFile
from fedglioma.privacy.ledger_heads import read_audited
from tests.ledger_fixture import AMPLE, DELTA, key, ledger_in, noise, spend, tags


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three rounds of two sets of patients."""
    ledger = ledger_in(tmp_path)
    spend(ledger, key(1), patients=(1, 2))
    spend(ledger, key(2), patients=(1, 2))
    spend(ledger, key(3), patients=(3,))
    return tmp_path / "privacy"


def assert_refused(folder: Path, match: str, copy: Path | None = None) -> None:
    """Check that nothing works any more, by any way in, and that nothing was changed by trying."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    uses: list[Callable[[Ledger], object]] = [
        lambda ledger: ledger.reserve(key(9), noise(5), tags(1), AMPLE),
        lambda ledger: ledger.epsilon_spent(None, DELTA, "prv"),
        lambda ledger: ledger.rounds_left(noise(5), tags(1, 2, 3), AMPLE),
    ]
    for use in uses:
        with pytest.raises(PrivacyError, match=match) as raised:
            use(ledger_in(folder.parent, copy))
        assert raised.value.exit_code == 5
        assert "docs/privacy-ledger.md" in str(raised.value)
        assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def lines_of(folder: Path) -> list[bytes]:
    return (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)


def rewrite(folder: Path, lines: list[bytes]) -> None:
    (folder / "ledger.jsonl").write_bytes(b"".join(lines))


def reseal(lines: list[bytes], since: int) -> list[bytes]:
    """Make every digest from a line on good again, as somebody who knows the format would."""
    sound = list(lines[:since])
    for raw in lines[since:]:
        table = json.loads(raw)
        previous = json.loads(sound[-1])["digest"] if sound else chain.NOTHING
        line = chain.seal(len(sound) + 1, table["time"], table["event"], table["data"], previous)
        sound.append(chain.encode(line))
    return sound


@pytest.mark.parametrize("number", range(7))
def test_edited_line_is_named(folder: Path, number: int) -> None:
    lines = lines_of(folder)
    lines[number] = lines[number].replace(b'"time":"2', b'"time":"3')
    rewrite(folder, lines)
    assert_refused(folder, f"line {number + 1} was changed")


@pytest.mark.parametrize("number", range(7))
def test_removed_line_is_named(folder: Path, number: int) -> None:
    lines = lines_of(folder)
    del lines[number]
    rewrite(folder, lines)
    assert_refused(folder, f"line {number + 1} (has the number|is missing)")


def test_less_noise_than_was_reserved_cannot_be_written_in(folder: Path) -> None:
    lines = lines_of(folder)
    lines[1] = lines[1].replace(b'"noise_multiplier":5.0', b'"noise_multiplier":50.0')
    rewrite(folder, reseal(lines, 1))
    assert_refused(folder, "is not the line that the head names")


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_end_that_was_cut_off_is_missed(folder: Path, kept: int) -> None:
    rewrite(folder, lines_of(folder)[:kept])
    assert_refused(folder, "is missing: the head names line 7")


def test_end_that_was_cut_off_in_the_middle_of_a_line_is_missed(folder: Path) -> None:
    content = (folder / "ledger.jsonl").read_bytes()
    (folder / "ledger.jsonl").write_bytes(content[:-30])
    assert_refused(folder, "is missing: the head names line 7")


def test_lines_behind_the_end_are_no_crash(folder: Path) -> None:
    with (folder / "ledger.jsonl").open("ab") as file:
        file.write(b"and so on")
    assert_refused(folder, "line 8 is not a line of a ledger, nor the beginning of one")


def test_head_that_is_gone_is_missed(folder: Path) -> None:
    (folder / "ledger.head").unlink()
    assert_refused(folder, "the head was removed")


def test_head_of_something_else_is_refused(folder: Path) -> None:
    (folder / "ledger.head").write_text("7\n")
    assert_refused(folder, "does not hold a head")


def test_file_that_is_gone_is_missed(folder: Path) -> None:
    (folder / "ledger.jsonl").unlink()
    assert_refused(folder, r"is gone or empty, and ledger\.head of it is still there")


@pytest.mark.parametrize("left", ["sets", "outbox"])
def test_file_that_is_gone_with_its_head_is_missed(folder: Path, left: str) -> None:
    (folder / "ledger.jsonl").unlink()
    (folder / "ledger.head").unlink()
    shutil.rmtree(folder / ("outbox" if left == "sets" else "sets"))
    assert_refused(folder, f"is gone or empty, and {left}/")


def test_emptied_file_is_missed_with_and_without_its_head(folder: Path) -> None:
    rewrite(folder, [])
    assert_refused(folder, "is missing: the head names line 7")
    (folder / "ledger.head").unlink()
    assert_refused(folder, "is gone or empty")


def test_set_of_patients_that_is_gone_is_missed(folder: Path) -> None:
    for path in (folder / "sets").iterdir():
        content = path.read_bytes()
        path.unlink()
        assert_refused(folder, "the set of patients is gone")
        path.write_bytes(content)


def test_patient_cannot_be_taken_out_of_a_set(folder: Path) -> None:
    path = max((folder / "sets").iterdir(), key=lambda path: path.stat().st_size)
    path.write_text(json.dumps(json.loads(path.read_text())[1:], separators=(",", ":")) + "\n")
    assert_refused(folder, "the set of patients was changed")


def test_ledger_of_another_site_is_refused(folder: Path) -> None:
    with pytest.raises(PrivacyError, match="is the ledger of site north, not of south"):
        Ledger(folder.parent, "south").head()


@pytest.mark.parametrize(
    ("event", "data", "match"),
    [
        ("committed", {"reservation": 3, "update": "0" * 64, "bytes": 1}, "line 3 is no open reservation"),
        ("voided", {"reservation": 2, "reason": "x"}, "line 2 is no open reservation"),
        ("refunded", {"epsilon": 5}, "not a valid Kind"),
        ("opened", {"site": "north", "format": 1}, "opened in its first line"),
        ("reserved", {"key": {}}, "validation error"),
    ],
)
def test_sound_line_that_no_ledger_writes_is_refused(
    folder: Path, event: str, data: dict[str, object], match: str
) -> None:
    last = json.loads(lines_of(folder)[-1])
    line = chain.seal(8, last["time"], event, data, last["digest"])
    rewrite(folder, [*lines_of(folder), chain.encode(line)])
    chain.write_head(folder / "ledger.jsonl", line)
    assert_refused(folder, f"line 8 says what no ledger says .*{match}")


def test_older_copy_is_noticed_by_a_head_that_was_kept(folder: Path, tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path)
    old = ledger.head().digest
    shutil.copytree(folder, tmp_path / "old")
    spend(ledger, key(4))
    kept = ledger.head().digest
    ledger.require_head(old)
    ledger.require_head(kept)
    ledger.require_head(chain.NOTHING)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "old", folder)
    ledger.require_head(old)
    with pytest.raises(PrivacyError, match="an older copy of the ledger was put back") as raised:
        ledger.require_head(kept)
    assert raised.value.exit_code == 5


def test_older_copy_is_noticed_by_the_second_copy_of_the_head(tmp_path: Path) -> None:
    copy, folder = tmp_path / "disk" / "ledger.head", tmp_path / "privacy"
    copy.parent.mkdir()
    spend(ledger_in(tmp_path, copy), key(1))
    shutil.copytree(folder, tmp_path / "old")
    spend(ledger_in(tmp_path, copy), key(2))
    spend(ledger_in(tmp_path, copy), key(3))
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "old", folder)
    assert_refused(folder, "an older copy of the ledger was put back, or it was written anew", copy)


def test_ledger_that_is_gone_altogether_is_noticed_by_the_second_copy(tmp_path: Path) -> None:
    copy = tmp_path / "copy.head"
    spend(ledger_in(tmp_path, copy), key(1))
    shutil.rmtree(tmp_path / "privacy")
    (tmp_path / "privacy").mkdir()
    assert_refused(tmp_path / "privacy", "an older copy of the ledger was put back", copy)


def test_second_copy_that_is_gone_or_something_else_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "copy.head"
    spend(ledger_in(tmp_path, copy), key(1))
    copy.write_text("{}")
    assert_refused(tmp_path / "privacy", "does not hold the head of a ledger", copy)
    copy.unlink()
    assert_refused(tmp_path / "privacy", "the second copy of the ledger's head is gone", copy)


def test_place_of_the_second_copy_is_the_same_however_its_path_is_written(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "site_config").mkdir()
    around = tmp_path / "site_config" / ".." / "disk" / "copy.head"
    spend(ledger_in(tmp_path, around), key(1))
    (tmp_path / "disk" / "copy.head").unlink()
    for copy in (around, tmp_path / "disk" / "copy.head"):
        assert_refused(tmp_path / "privacy", "the second copy of the ledger's head is gone", copy)


def test_second_copy_is_missed_where_a_link_on_the_way_was_bent_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "backup").symlink_to(tmp_path / "disk")
    copy = tmp_path / "backup" / "copy.head"
    spend(ledger_in(tmp_path, copy), key(1))
    (tmp_path / "backup").unlink()
    (tmp_path / "backup").symlink_to(tmp_path / "empty")
    assert_refused(tmp_path / "privacy", "the second copy of the ledger's head is gone", copy)


def test_second_copy_that_a_line_names_by_its_path_as_given_is_known_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions wrote it: the digest of the path, ``..`` and all."""
    (tmp_path / "disk").mkdir()
    copy = tmp_path / "disk" / ".." / "disk" / "copy.head"
    with monkeypatch.context() as before:
        before.setattr(LedgerFile, "place", lambda _self: hashlib.sha256(os.fsencode(copy)).hexdigest())
        spend(ledger_in(tmp_path, copy), key(1))
    head = copy.read_bytes()
    copy.unlink()
    assert_refused(tmp_path / "privacy", "the second copy of the ledger's head is gone", copy)
    copy.write_bytes(head)
    spend(ledger_in(tmp_path, copy), key(2))
    assert chain.head_at(copy) == ledger_in(tmp_path, copy).head()


def test_second_copy_may_begin_late_and_move(tmp_path: Path) -> None:
    spend(ledger_in(tmp_path), key(1))
    for number, name in ((2, "first.head"), (3, "second.head")):
        spend(ledger_in(tmp_path, tmp_path / name), key(number))
        assert chain.head_at(tmp_path / name) == ledger_in(tmp_path).head()


def test_disk_of_the_second_copy_that_is_away_lets_nothing_leave(tmp_path: Path) -> None:
    copy = tmp_path / "disk" / "copy.head"
    copy.parent.mkdir()
    ledger = ledger_in(tmp_path, copy)
    reservation = ledger.reserve(key(1), noise(5), tags(1), AMPLE)
    copy.parent.rename(tmp_path / "away")
    with pytest.raises(PrivacyError, match="gone, or its disk is"):
        ledger.commit(reservation, b"update")
    (tmp_path / "away").rename(copy.parent)
    ledger.commit(reservation, b"update")
    assert ledger.stored(key(1)) == b"update"


def test_folder_that_may_not_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "privacy").write_text("a file")
    with pytest.raises(PrivacyError, match="cannot be used"):
        ledger_in(tmp_path).reserve(key(1), noise(5), tags(1), AMPLE)


def test_audit_log_tells_the_last_head_and_what_left_unprotected(tmp_path: Path) -> None:
    from fedglioma.audit import AuditLog

    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("sent", kind="query.statistics", round="0", digests=["1" * 64])
    log.append("sent", kind="train", round="1", digests=["1" * 64])
    log.append("refused", kind="train", round="2", reason="policy")
    log.append("sent", kind="train", round="2", digests=["1" * 64])
    log.append("sent", kind="train", round="3", digests=["1" * 64], ledger="a" * 64)
    log.append("sent", kind="train", round="4", digests=["1" * 64], ledger="b" * 64)
    log.append("offered", kind="train", round="5", digests=["1" * 64])
    found = read_audited(tmp_path / "audit.jsonl")
    assert (found.head, found.unprotected) == ("b" * 64, 1)
    assert read_audited(tmp_path / "none.jsonl").head is None


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_change_of_any_byte_is_refused(folder: Path, data: st.DataObject) -> None:
    files = sorted([folder / "ledger.jsonl", folder / "ledger.head", *(folder / "sets").iterdir()])
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    changed = content[:place] + bytes([byte]) + content[place + 1 :]
    try:
        same = path.suffix == ".head" and json.loads(changed) == json.loads(content)
    except ValueError:
        same = False
    path.write_bytes(changed)
    try:
        if same:  # white space in the head's file says the same
            ledger_in(folder.parent).epsilon_spent(None, DELTA, "prv")
        else:
            with pytest.raises(PrivacyError):
                ledger_in(folder.parent).epsilon_spent(None, DELTA, "prv")
    finally:
        path.write_bytes(content)
