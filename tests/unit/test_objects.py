"""The spool against Flower's own store: the same answers to the same calls, with large objects on disk."""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma_server import objects
from fedglioma_server.inline import InlineGrid
from fedglioma_server.objects import IN_MEMORY_BYTES, SpoolStore

FOLDERS = count()
RUNS = (1, 2)


def message(seed: int, size: int) -> Message:
    """Return a message whose first array others have too."""
    InlineGrid(ClientApp(), [{}], {})
    arrays = {"shared": Array(np.zeros(200, np.float32)), "own": Array(np.full(size, seed, np.float32))}
    content = RecordDict({"weights": ArrayRecord(arrays), "words": ConfigRecord({"n": seed})})
    made = Message(content, dst_node_id=seed + 2, message_type="train", group_id="1")
    made.metadata.__dict__["_created_at"] = float(seed)
    return made


MESSAGES = [message(seed, size) for seed, size in enumerate((3, 50, 200))]
CONTENTS = [{number: item.deflate() for number, item in get_all_nested_objects(m).items()} for m in MESSAGES]
TREES = [get_object_tree(m) for m in MESSAGES]
NUMBERS = sorted({number for contents in CONTENTS for number in contents})
EVERY: dict[str, bytes] = {number: content for contents in CONTENTS for number, content in contents.items()}

calls = st.one_of(
    st.tuples(st.just("preregister"), st.sampled_from(RUNS), st.sampled_from(range(len(TREES)))),
    st.tuples(st.just("put"), st.sampled_from(NUMBERS)),
    st.tuples(st.just("put_wrong"), st.sampled_from(NUMBERS)),
    st.tuples(st.just("get"), st.sampled_from(NUMBERS)),
    st.tuples(st.just("delete"), st.sampled_from([m.object_id for m in MESSAGES] + NUMBERS)),
    st.tuples(st.just("delete_run"), st.sampled_from(RUNS)),
    st.tuples(st.just("tree"), st.sampled_from(NUMBERS)),
    st.tuples(st.just("clear")),
)


def done(store: InMemoryObjectStore, call: tuple[Any, ...]) -> object:
    """Return what a call gives, or the kind of its error."""
    what, *rest = call
    acts = {
        "preregister": lambda run, index: sorted(store.preregister(run, TREES[index])),
        "put": lambda number: store.put(number, EVERY[number]),
        "put_wrong": lambda number: store.put(number, EVERY[number] + b"!"),
        "get": store.get,
        "delete": store.delete,
        "delete_run": store.delete_objects_in_run,
        "tree": lambda number: store.get_object_tree(number).SerializeToString(deterministic=True),
        "clear": store.clear,
    }
    try:
        return acts[what](*rest)
    except (ValueError, NoObjectInStoreError) as error:
        return type(error)


@given(script=st.lists(calls, max_size=40))
@settings(max_examples=150, deadline=None)
def test_spool_answers_as_flowers_store_does(script, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "IN_MEMORY_BYTES", 300)
    folder = tmp_path / str(next(FOLDERS))
    spool, reference = SpoolStore(folder), InMemoryObjectStore()
    for call in script:
        assert done(spool, call) == done(reference, call), call
        assert len(spool) == len(reference)
        here = {number for number in NUMBERS if reference.get(number)}
        assert {number for number in NUMBERS if spool.has_all([number])} == here
        large = {number for number in here if len(EVERY[number]) > 300}
        assert {path.name for path in folder.iterdir()} == large
        for number in NUMBERS:
            assert (number in spool) == (number in reference)


def whole(folder: Path, made: Message) -> SpoolStore:
    spool = SpoolStore(folder)
    spool.preregister(1, get_object_tree(made))
    for number, item in get_all_nested_objects(made).items():
        spool.put(number, item.deflate())
    return spool


def test_small_objects_stay_in_memory_and_large_ones_lie_in_files(tmp_path):
    made = message(1, IN_MEMORY_BYTES)
    spool = whole(tmp_path / "spool", made)
    (file,) = (tmp_path / "spool").iterdir()
    assert file.stat().st_size > IN_MEMORY_BYTES
    assert sum(len(entry.content) for entry in spool.store.values()) < IN_MEMORY_BYTES
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0, "others of this computer cannot look"


def test_size_of_a_body_is_known_without_reading_it(tmp_path):
    spool = whole(tmp_path / "spool", message(1, IN_MEMORY_BYTES))
    for number in spool.store:
        content = spool.get(number)
        assert content is not None
        assert spool.body_size(number) == len(content) - content.index(HEAD_BODY_DIVIDER) - len(
            HEAD_BODY_DIVIDER
        )
    with pytest.raises(ValueError, match="missing"):
        spool.body_size("0" * 64)


def test_what_an_earlier_process_left_is_removed(tmp_path):
    whole(tmp_path / "spool", message(1, IN_MEMORY_BYTES))
    assert list((tmp_path / "spool").iterdir())
    SpoolStore(tmp_path / "spool")
    assert not list((tmp_path / "spool").iterdir())


def test_full_disk_is_remembered_and_leaves_no_half_file(tmp_path, monkeypatch):
    made = message(1, IN_MEMORY_BYTES)
    spool = SpoolStore(tmp_path / "spool")
    spool.preregister(1, get_object_tree(made))

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    contents = {number: item.deflate() for number, item in get_all_nested_objects(made).items()}
    (large,) = (number for number, content in contents.items() if len(content) > IN_MEMORY_BYTES)
    with pytest.raises(OSError, match="No space left"):
        spool.put(large, contents[large])
    assert spool.failure is not None
    assert spool.get(large) == b""
    assert not list((tmp_path / "spool").iterdir())
