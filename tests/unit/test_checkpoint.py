"""Checkpoints: what was saved is what is loaded, or it is refused."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fedglioma.errors import ProtocolError
from fedglioma.weights import GROUPS, FlatArrays, Layout
from fedglioma_server.checkpoint import (
    Checkpoints,
    digest_of,
    read_safetensors,
    write_safetensors,
)

LAYOUT = Layout(
    (
        ("model.stem.weight", (2, 3)),
        ("model.heads.idh.weight", (4,)),
        ("model.heads.atrx.weight", (1, 2)),
        ("model.heads.codel_1p19q.weight", (3,)),
        ("model.stem.bias", ()),
        ("loss.weights.idh.log_variance", (1,)),
    )
)
OTHER = Layout((("model.stem.weight", (3, 2)), *LAYOUT.shapes[1:]))


def arrays(start: float = 0.0) -> FlatArrays:
    return {
        group: np.arange(size, dtype=np.float32) + np.float32(start + 10 * number)
        for number, (group, size) in enumerate(LAYOUT.sizes.items())
    }


def saved(folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder, LAYOUT)
    checkpoints.save(7, arrays())
    return checkpoints


def assert_same(one: FlatArrays, other: FlatArrays) -> None:
    assert {group: one[group].tobytes() for group in GROUPS} == {
        group: other[group].tobytes() for group in GROUPS
    }


def test_saved_weights_are_loaded_to_the_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, LAYOUT)
    odd = arrays()
    odd["trunk"][:3] = (np.float32(-0.0), np.float32(1e-45), np.finfo(np.float32).max)
    checkpoints.save(3, odd)
    assert_same(checkpoints.load(3), odd)


def test_file_is_named_by_its_round_and_holds_tensors_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["round-0007.safetensors"]
    tensors = load_file(tmp_path / "round-0007.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == dict(LAYOUT.shapes)
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())


def test_file_says_in_which_order_channels_and_genes_stand(tmp_path: Path) -> None:
    saved(tmp_path)
    _, metadata = read_safetensors(tmp_path / "round-0007.safetensors")
    assert metadata["channels"] == '["flair", "t1ce", "t1", "t2"]'
    assert metadata["genes"] == '["idh", "atrx", "codel_1p19q"]'
    assert metadata["round"] == "7"


def test_saving_again_replaces(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    checkpoints.save(7, arrays(100))
    assert_same(checkpoints.load(7), arrays(100))


@settings(deadline=None, max_examples=150)
@given(place=st.integers(0, 10**6), mask=st.integers(1, 255))
def test_flipped_bits_are_found_wherever_they_are(
    tmp_path_factory: pytest.TempPathFactory, place: int, mask: int
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    checkpoints = saved(folder)
    path = checkpoints.path(7)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= mask
    path.write_bytes(content)
    try:
        found = checkpoints.load(7)
    except ProtocolError:
        return
    assert_same(found, arrays())  # the byte was one that says nothing: the order of the genes, say


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, -1])
def test_file_cut_off_anywhere_is_refused(tmp_path: Path, size: int) -> None:
    checkpoints = saved(tmp_path)
    path = checkpoints.path(7)
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with pytest.raises(ProtocolError, match=r"round-0007.safetensors: not a readable safetensors file"):
        checkpoints.load(7)


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match=r"round-0001.safetensors: not a readable"):
        Checkpoints(tmp_path, LAYOUT).load(1)


def test_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "round-0001.safetensors").mkdir()
    with pytest.raises(ProtocolError, match="not a readable"):
        Checkpoints(tmp_path, LAYOUT).load(1)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ProtocolError, match="holds the weights of another network"):
        Checkpoints(tmp_path, OTHER).load(7)


def test_file_renamed_to_another_round_is_refused(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    checkpoints.path(7).rename(checkpoints.path(8))
    with pytest.raises(ProtocolError, match=r"round-0008.safetensors: holds the weights of round 7"):
        checkpoints.load(8)


def forged(folder: Path, change: dict[str, np.ndarray | None]) -> Checkpoints:
    """Write a file whose metadata claim what its tensors do not hold."""
    metadata = {"layout": LAYOUT.digest, "digest": digest_of(arrays()), "round": "1"}
    tensors = dict(LAYOUT.named(arrays())) | change
    kept = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "round-0001.safetensors", metadata)
    return Checkpoints(folder, LAYOUT)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (None, r"model.stem.weight should be float32 \(2, 3\), found missing"),
        (np.zeros(1, np.float32), r"found float32 \(1,\)"),
        (np.zeros((3, 2), np.float32), r"found float32 \(3, 2\)"),
        (np.zeros((2, 3), np.float64), r"found float64 \(2, 3\)"),
        (np.full((2, 3), 5, np.float32), "damaged, its content does not match its digest"),
    ],
)
def test_forged_file_is_refused(tmp_path: Path, tensor: np.ndarray | None, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        forged(tmp_path, {"model.stem.weight": tensor}).load(1)


def test_safetensors_of_another_program_are_refused(tmp_path: Path) -> None:
    save_file({"bert": np.zeros(3, np.float32)}, tmp_path / "round-0001.safetensors")
    with pytest.raises(ProtocolError, match="another network"):
        Checkpoints(tmp_path, LAYOUT).load(1)


def test_arrays_of_another_size_are_not_saved(tmp_path: Path) -> None:
    wrong = arrays() | {"idh": np.zeros(2, np.float32)}
    with pytest.raises(ProtocolError, match="group idh"):
        Checkpoints(tmp_path, LAYOUT).save(1, wrong)
    assert list(tmp_path.iterdir()) == []


def test_rounds_are_listed_in_order_and_other_files_are_not(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, LAYOUT)
    assert checkpoints.rounds() == []
    for number in (12, 3, 10_000):
        checkpoints.save(number, arrays())
    for name in (
        ".round-0004.safetensors.77.part",
        "round-5.safetensors",
        "round-0006.safetensors.bak",
        "notes",
    ):
        (tmp_path / name).write_text("")
    assert checkpoints.rounds() == [3, 12, 10_000]


def test_absent_folder_has_no_rounds(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "gone", LAYOUT).rounds() == []


def test_pruning_keeps_what_it_is_told_and_sweeps_half_written_files(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, LAYOUT)
    for number in range(5):
        checkpoints.save(number, arrays())
    (tmp_path / ".round-0004.safetensors.77.part").write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    checkpoints.prune({2, 4})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt",
        "round-0002.safetensors",
        "round-0004.safetensors",
    ]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_write_that_fails_leaves_the_old_file_and_no_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path)
    before = checkpoints.path(7).read_bytes()

    def full(*_words: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync", full) if name == "fsync" else (Path, "replace", full)))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        checkpoints.save(7, arrays(1))
    assert [path.name for path in tmp_path.iterdir()] == ["round-0007.safetensors"]
    assert checkpoints.path(7).read_bytes() == before


def test_write_that_is_interrupted_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "deep" / "a.safetensors", {"a": np.zeros(3, np.float32)}, {})
    assert list((tmp_path / "deep").iterdir()) == []


def test_tensors_that_are_views_are_written_as_they_look(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_safetensors(tmp_path / "a.safetensors", {"turned": array.T, "second": array[1]}, {"key": "value"})
    tensors, metadata = read_safetensors(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(tensors["turned"], array.T)
    np.testing.assert_array_equal(tensors["second"], array[1])
    assert metadata == {"key": "value"}


def one_group_has_numbers(group: str) -> bool:
    return len(arrays()[group]) > 0  # mdpnet outlines nothing


def test_digest_depends_on_every_number_and_not_on_the_order_of_the_groups() -> None:
    one = digest_of(arrays())
    assert one == digest_of(dict(reversed(arrays().items())))
    for group in (group for group in GROUPS if one_group_has_numbers(group)):
        changed = arrays()
        changed[group][-1] += 1
        assert digest_of(changed) != one
