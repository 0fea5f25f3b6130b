"""Messages out of a spool, against Flower's own way to put them together."""

import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.errors import ProtocolError
from fedglioma_server import objects
from fedglioma_server.assemble import assemble
from fedglioma_server.inline import InlineGrid
from fedglioma_server.objects import SpoolStore

MOST = 1 << 30
FOLDERS = count()
names = st.text("abcxyz. ", min_size=1, max_size=6)
arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 99, shape).astype(dtype),
    st.sampled_from(["float32", "uint8", "uint16", "int64", "float64"]),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.integers(0, 99),
)
array_records = st.dictionaries(names, arrays, max_size=4).map(
    lambda table: ArrayRecord({name: Array(value) for name, value in table.items()})
)
plain = st.one_of(st.integers(-9, 9), st.text(max_size=5), st.booleans(), st.binary(max_size=5))
config_records = st.dictionaries(names, plain, max_size=4).map(ConfigRecord)
metric_records = st.dictionaries(names, st.floats(-9, 9), max_size=3).map(MetricRecord)
contents = st.dictionaries(names, st.one_of(array_records, config_records, metric_records), max_size=4)


def message_of(content: RecordDict) -> Message:
    InlineGrid(ClientApp(), [{}], {})
    return Message(content, dst_node_id=3, message_type="train", group_id="1")


def spooled(folder: Path, message: Message) -> tuple[SpoolStore, str]:
    store = SpoolStore(folder)
    number = message.object_id
    store.preregister(1, get_object_tree(message))
    for part, item in get_all_nested_objects(message).items():
        store.put(part, item.deflate())
    return store, number


@given(
    content=contents, in_memory=st.sampled_from([100, 300, 100_000]), chunk=st.sampled_from([7, 64, 10**6])
)
@settings(max_examples=100, deadline=None)
def test_message_is_the_one_that_flower_would_make(content, in_memory, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "IN_MEMORY_BYTES", in_memory)
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", chunk)
    message = message_of(RecordDict(content))
    store, number = spooled(tmp_path / str(next(FOLDERS)), message)
    expected = inflate_object_from_contents(number, {part: store.get(part) or b"" for part in store.store})
    found = assemble(store, number, most_bytes=MOST)
    assert isinstance(expected, Message)
    assert found.metadata == expected.metadata
    assert list(found.content) == list(expected.content)
    for name, record in expected.content.items():
        same = found.content[name]
        assert type(same) is type(record)
        if isinstance(record, ArrayRecord):
            assert list(same) == list(record)
            for key, array in record.items():
                one = same[key]
                assert (one.dtype, one.shape, one.stype) == (array.dtype, array.shape, array.stype)
                assert bytes(one.data) == array.data
        else:
            assert same == record


def large_message() -> Message:
    return message_of(
        RecordDict({"weights": ArrayRecord({"trunk": Array(np.arange(40_000, dtype=np.float32))})})
    )


def test_array_is_a_view_of_one_buffer_that_nobody_can_write_to(tmp_path):
    found = assemble(*spooled(tmp_path / "spool", large_message()), most_bytes=MOST)
    data = memoryview(found.content["weights"]["trunk"].data)
    assert data.readonly
    assert data.nbytes > 160_000


def test_missing_object_is_said_without_its_content(tmp_path):
    store, number = spooled(tmp_path / "spool", large_message())
    (file,) = (tmp_path / "spool").iterdir()
    store._spooled.discard(file.name)
    store.store[file.name].is_available = False
    with pytest.raises(ProtocolError, match=r"^a reply cannot be decoded \(ValueError\)$"):
        assemble(store, number, most_bytes=MOST)


def test_something_else_than_a_message_is_refused(tmp_path):
    store, _ = spooled(tmp_path / "spool", large_message())
    for number, entry in store.store.items():
        if entry.content.startswith((b"ArrayRecord", b"RecordDict")):
            with pytest.raises(ProtocolError, match="a reply is no message"):
                assemble(store, number, most_bytes=MOST)


def put(store: SpoolStore, kind: str, children: list[str], body: bytes) -> str:
    """Put an object into a store that a sender made by hand, and return its number."""
    made: type[InflatableObject] = type(kind, (InflatableObject,), {"children": None})
    item = made.__new__(made)
    table = dict.fromkeys(children)
    type(item).children = property(lambda _self: table or None)  # type: ignore[method-assign,assignment]
    content = add_header_to_object_body(body, item)
    number = get_object_id(content)
    store.preregister(1, ObjectTree(object_id=number, children=[ObjectTree(object_id=c) for c in children]))
    store.store[number].content, store.store[number].is_available = content, True
    return number


TOLD = {"dtype": "float32", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": [0]}


@pytest.mark.parametrize(
    "told",
    [
        b"no json",
        b"[]",
        b"{}",
        json.dumps(
            {"dtype": "float32", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": [5]}
        ).encode(),
        json.dumps(TOLD | {"arraychunk_ids": [5]}).encode(),
        json.dumps(TOLD | {"arraychunk_ids": "00"}).encode(),
        json.dumps(TOLD | {"shape": ["x"]}).encode(),
        json.dumps(TOLD | {"shape": 3}).encode(),
    ],
)
def test_array_that_describes_itself_wrongly_is_refused(told, tmp_path):
    store = SpoolStore(tmp_path / "spool")
    chunk = put(store, "ArrayChunk", [], b"1234")
    number = put(store, "Array", [chunk], told)
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        assemble(store, number, most_bytes=MOST)


def test_record_that_names_arrays_it_does_not_have_is_refused(tmp_path):
    store = SpoolStore(tmp_path / "spool")
    number = put(store, "ArrayRecord", [], json.dumps({"trunk": "0" * 64}).encode())
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        assemble(store, number, most_bytes=MOST)


def test_record_of_arrays_that_holds_something_else_is_refused(tmp_path):
    store, _ = spooled(tmp_path / "spool", message_of(RecordDict({"words": ConfigRecord({"a": "b"})})))
    (words,) = (n for n, entry in store.store.items() if entry.content.startswith(b"ConfigRecord"))
    number = put(store, "ArrayRecord", [words], json.dumps({"trunk": words}).encode())
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        assemble(store, number, most_bytes=MOST)


def test_object_of_an_unknown_kind_is_refused(tmp_path):
    store = SpoolStore(tmp_path / "spool")
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        assemble(store, put(store, "Surprise", [], b"boo"), most_bytes=MOST)


def test_tower_of_objects_is_refused(tmp_path):
    store = SpoolStore(tmp_path / "spool")
    number = put(store, "ArrayChunk", [], b"1")
    for _ in range(30):
        number = put(store, "RecordDict", [number], b"{}")
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        assemble(store, number, most_bytes=MOST)


def test_small_array_that_names_one_chunk_ever_again_is_refused_before_anything_is_allocated(tmp_path):
    store = SpoolStore(tmp_path / "spool")
    chunk = put(store, "ArrayChunk", [], bytes(1 << 20))
    told = json.dumps(TOLD | {"arraychunk_ids": [0] * 300_000}).encode()
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        assemble(store, put(store, "Array", [chunk], told), most_bytes=1 << 21)


def test_arrays_of_one_message_share_one_budget(tmp_path):
    store = SpoolStore(tmp_path / "spool")
    chunk = put(store, "ArrayChunk", [], bytes(1000))
    arrays = [
        put(store, "Array", [chunk], json.dumps(TOLD | {"shape": [n], "arraychunk_ids": [0] * 10}).encode())
        for n in range(3)
    ]
    names = {str(n): array for n, array in enumerate(arrays)}
    record = put(store, "ArrayRecord", arrays, json.dumps(names).encode())
    with pytest.raises(ProtocolError, match="a reply is no message"):
        assemble(store, record, most_bytes=30_000)
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        assemble(store, record, most_bytes=29_999)


@pytest.mark.parametrize(
    ("kind", "body"),
    [("Message", b"\xff\xff\xff"), ("Array", b"[" * 40_000), ("ConfigRecord", b"\xff" * 9)],
    ids=["no protobuf", "nested without end", "no record"],
)
def test_whatever_a_decoder_raises_is_a_refusal(kind, body, tmp_path):
    store = SpoolStore(tmp_path / "spool")
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        assemble(store, put(store, kind, [], body), most_bytes=MOST)
