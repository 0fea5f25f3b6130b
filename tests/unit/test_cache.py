import json
import os
from pathlib import Path

import numpy as np
import pytest

from fedglioma.case import Modality
from fedglioma.data.cache import Cache, Moved, Placed, Record, Remark, content_key

KEY = "ab" * 32
ARRAY = np.random.default_rng(0).normal(size=(4, 5, 6, 7)).astype(np.float16)
UNMOVED = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
RECORD = Record(
    present=(True, False, True, True),
    spacing_mm=1.0,
    affine=((1.0, 0.0, 0.0, -3.0), (0.0, 1.0, 0.0, -3.0), (0.0, 0.0, 1.0, -3.0), (0.0, 0.0, 0.0, 1.0)),
    box=((0, 5), (2, 8), (1, 8)),
    inputs={Modality.T1: "00ff"},
    settings={"spacing_mm": 1.0},
    percentiles={Modality.T1: (-1.0, -0.5, 0.0, 0.5, 1.0)},
    reference=Modality.T1,
    grids={Modality.T1: Placed(shape=(9, 9, 9), affine=UNMOVED)},
    movements={
        Modality.T2: Moved(degrees=1.5, millimetres=2.0, information=0.5, overlap=1.0, matrix=UNMOVED)
    },
    remarks=(Remark(code="coverage", message="t1 shows 80% of the brain"),),
)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_entry_comes_back_as_it_was_put(cache: Cache) -> None:
    put = cache.put(KEY, ARRAY, RECORD)
    got = cache.get(KEY)
    assert got == put
    assert got is not None
    assert got.record == RECORD
    stored = got.open()
    assert isinstance(stored, np.memmap)
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, ARRAY)
    with pytest.raises(ValueError, match="read-only"):
        stored[0, 0, 0, 0] = 1


def test_absent_entry_is_none(cache: Cache) -> None:
    assert cache.get(KEY) is None


@pytest.mark.parametrize("kind", ["npy", "json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-10],
        lambda _: b"",
        lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:],
        lambda _: b"\x80\x04K\x01.",
    ],
    ids=["truncated", "empty", "flipped", "pickle"],
)
def test_damaged_entry_counts_as_absent_and_can_be_put_again(cache: Cache, kind: str, damage) -> None:  # type: ignore[no-untyped-def]
    cache.put(KEY, ARRAY, RECORD)
    path = cache.folder / f"{KEY}.{kind}"
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(KEY) is None
    assert cache.put(KEY, ARRAY, RECORD) == cache.get(KEY)


def test_array_without_its_description_is_no_entry(cache: Cache) -> None:
    cache.put(KEY, ARRAY, RECORD)
    (cache.folder / f"{KEY}.json").unlink()
    assert cache.get(KEY) is None


def test_description_without_its_array_is_no_entry(cache: Cache) -> None:
    cache.put(KEY, ARRAY, RECORD)
    (cache.folder / f"{KEY}.npy").unlink()
    assert cache.get(KEY) is None


def test_entry_of_another_channel_order_is_no_entry(cache: Cache) -> None:
    cache.put(KEY, ARRAY, RECORD)
    path = cache.folder / f"{KEY}.json"
    told = json.loads(path.read_text())
    told["record"]["channels"] = ["t1", "t1ce", "t2", "flair"]
    path.write_text(json.dumps(told))
    assert cache.get(KEY) is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_leaves_nothing_behind(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        cache.put(KEY, ARRAY, RECORD)
    assert not list(cache.folder.iterdir())


def test_array_whose_voucher_cannot_be_written_goes_too(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def full(handle: int) -> None:
        written.append(handle)
        if len(written) > 1:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            cache.put(KEY, ARRAY, RECORD)
    assert not list(cache.folder.iterdir())
    cache.put(KEY, ARRAY, RECORD)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        written.clear()
        with pytest.raises(OSError, match="No space"):
            cache.put(KEY, ARRAY, RECORD)
    assert cache.get(KEY) is not None


def test_sweep_removes_what_a_killed_writer_left_an_hour_ago(cache: Cache) -> None:
    cache.sweep()
    cache.put(KEY, ARRAY, RECORD)
    old, fresh = cache.folder / ".a.npy.0011.part", cache.folder / ".b.npy.0022.part"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    cache.sweep()
    assert not old.exists()
    assert fresh.exists()
    assert cache.get(KEY) is not None


def test_key_depends_on_contents_modalities_and_settings_only() -> None:
    key = content_key({Modality.T1: "a", Modality.T2: "b"}, {"spacing_mm": 1.0})
    assert key == content_key({Modality.T2: "b", Modality.T1: "a"}, {"spacing_mm": 1.0})
    assert key != content_key({Modality.T1: "b", Modality.T2: "a"}, {"spacing_mm": 1.0})
    assert key != content_key({Modality.T1: "a"}, {"spacing_mm": 1.0})
    assert key != content_key({Modality.T1: "a", Modality.T2: "b"}, {"spacing_mm": 2.0})
