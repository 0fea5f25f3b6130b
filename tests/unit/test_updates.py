"""Updates on disk: what was put in is read back in parts, and what is damaged is refused."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fedglioma.errors import ProtocolError
from fedglioma.payload import update
from fedglioma.weights import GROUPS, digest_of
from fedglioma_server.recompute import stored_digest
from fedglioma_server.updates import Spool, StoredUpdate, write_update
from tests.round_fixture import moved, numbers

SENT = numbers(0)
LOCAL = moved(SENT, 1)
META = {"site": "henan", "round": "7"}


def stored(folder: Path, payload: str = "float32") -> StoredUpdate:
    path = folder / "henan.safetensors"
    write_update(path, update(payload, LOCAL, SENT), META)
    return StoredUpdate.open(path)


@pytest.mark.parametrize("payload", ["float32", "bfloat16", "int8"])
def test_update_is_read_back_as_it_travelled(tmp_path: Path, payload: str) -> None:
    found = stored(tmp_path, payload)
    packed = update(payload, LOCAL, SENT)
    for group in GROUPS:
        assert found.arrays[group][:].tobytes() == packed[group].tobytes()
        assert found.arrays[group][1:3].tobytes() == packed[group][1:3].tobytes()
    assert found.metadata == META
    assert stored_digest(found.arrays) == digest_of(packed)
    found.close()


def test_file_is_one_that_other_programs_read(tmp_path: Path) -> None:
    for payload, dtype in (("float32", "F32"), ("bfloat16", "BF16"), ("int8", "U8")):
        stored(tmp_path, payload).close()
        with safe_open(tmp_path / "henan.safetensors", framework="pt") as file:
            assert sorted(file.keys()) == sorted(GROUPS)
            assert file.get_slice("trunk").get_dtype() == dtype
            assert file.metadata() == META


@given(start=st.integers(0, 3000), length=st.integers(0, 3000))
@settings(deadline=None, max_examples=30)
def test_any_part_is_that_of_the_array(tmp_path_factory, start: int, length: int) -> None:
    found = stored(tmp_path_factory.mktemp("part"))
    part = slice(start, start + length)
    np.testing.assert_array_equal(found.arrays["trunk"][part], LOCAL["trunk"][part])
    found.close()


@pytest.mark.parametrize("size", [0, 4, 9, 200])
def test_file_without_its_header_is_refused(tmp_path: Path, size: int) -> None:
    stored(tmp_path).close()
    path = tmp_path / "henan.safetensors"
    os.truncate(path, size)
    with pytest.raises(ProtocolError, match=r"henan\.safetensors: not a stored update"):
        StoredUpdate.open(path)


def test_file_without_its_end_is_refused_when_the_end_is_read(tmp_path: Path) -> None:
    stored(tmp_path).close()
    path = tmp_path / "henan.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    found = StoredUpdate.open(path)
    with pytest.raises(ProtocolError, match="ends early"):
        stored_digest(found.arrays)
    found.close()


@given(place=st.integers(0, 10**6), mask=st.integers(1, 255))
@settings(deadline=None, max_examples=100)
def test_flipped_bits_are_refused_or_seen_in_the_digest(tmp_path_factory, place: int, mask: int) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    stored(folder).close()
    path = folder / "henan.safetensors"
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= mask
    path.write_bytes(content)
    try:
        found = StoredUpdate.open(path)
    except ProtocolError:
        return
    try:
        changed = stored_digest(found.arrays) != digest_of(LOCAL)
    except ProtocolError:
        changed = True
    found.close()
    assert changed or place % len(content) < 8 + int.from_bytes(content[:8], "little")


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="cannot be read"):
        StoredUpdate.open(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("kept", [None, "updates"])
def test_spool_forgets_an_interrupted_round_and_keeps_no_file_open(tmp_path: Path, kept: str | None) -> None:
    gc.collect()  # what earlier tests left must not be closed in between
    for _ in range(2):
        before = len(list(Path("/proc/self/fd").iterdir()))
        spool = Spool(tmp_path / "work", kept and tmp_path / kept)
        spool.begin()
        assert list((tmp_path / "work").iterdir()) == []
        for site in ("henan", "ningxia"):
            spool.put(site, LOCAL, META)
    spool.end(1)
    spool.remove()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not (tmp_path / "work").exists()


def test_update_is_written_over_a_longer_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "work")
    for payload in ("float32", "int8", "bfloat16"):
        packed = update(payload, LOCAL, SENT)
        spool.begin()
        assert stored_digest(spool.put("henan", packed, META)) == digest_of(packed)
        spool.end(1)
    spool.remove()


@pytest.mark.parametrize("name", ["../henan", "a/b", "", ".", "Henan", "x" * 40])
def test_site_that_calls_itself_a_path_writes_no_file(tmp_path: Path, name: str) -> None:
    spool = Spool(tmp_path / "work")
    spool.begin()
    with pytest.raises(ProtocolError, match="not a site's name"):
        spool.put(name, LOCAL, META)
    assert [path.name for path in tmp_path.rglob("*")] == ["work"]


def test_repeated_round_replaces_what_was_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "work", tmp_path / "updates")
    for sites in (("henan", "ningxia"), ("ningxia",)):
        spool.begin()
        for site in sites:
            spool.put(site, LOCAL, META)
        spool.end(7)
    assert [path.name for path in (tmp_path / "updates" / "round-0007").iterdir()] == ["ningxia.safetensors"]
    assert (tmp_path / "updates").stat().st_mode & 0o777 == 0o700
