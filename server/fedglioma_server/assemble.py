"""A message out of its objects, each array filled from disk into one buffer.

Flower's own way holds the objects, their joined copy and the array's copy at once: three times the
update. Here it is once.
"""

import json
from dataclasses import dataclass
from typing import cast

from flwr.app import Array, ArrayRecord, Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry

from fedglioma.errors import ProtocolError
from fedglioma_server.objects import SpoolStore

LARGEST_TABLE = 1 << 20
DEEPEST = 8
"""A message of ours is a record dictionary of records of arrays of chunks: five levels."""


def assemble(store: SpoolStore, object_id: str, *, most_bytes: int) -> Message:
    """Return the message whose objects are all in the store.

    Parameters
    ----------
    most_bytes : int
        Bytes that all its arrays together may say they have; looked at before any is allocated.

    Raises
    ------
    ProtocolError
        They do not make up a message.
    OSError
        An object cannot be read from disk.
    """
    try:
        found = _inflate(store, object_id, {}, 0, _Budget(most_bytes))
    except OSError:
        raise
    except Exception as error:  # a hostile object makes the decoders raise nearly anything
        raise ProtocolError(f"a reply cannot be decoded ({type(error).__name__})") from None
    if not isinstance(found, Message):
        raise ProtocolError("a reply is no message")
    return found


@dataclass
class _Budget:
    """Bytes that the rest of a message's arrays may have."""

    left: int

    def take(self, size: int) -> None:
        if size > self.left:
            raise ValueError("its arrays are larger than any update")
        self.left -= size


def _inflate(
    store: SpoolStore, object_id: str, done: dict[str, InflatableObject], depth: int, budget: _Budget
) -> InflatableObject:
    if object_id in done:
        return done[object_id]
    content = store.get(object_id)
    if not content or depth > DEEPEST:
        raise ValueError("an object is missing, or too deep")
    kind, children, _ = get_object_head_values_from_object_content(content)
    found: InflatableObject
    if kind == Array.__qualname__:
        found = _array(store, content, children, budget)
    else:
        parts = {child: _inflate(store, child, done, depth + 1, budget) for child in children}
        if kind == ArrayRecord.__qualname__:
            found = _array_record(content, parts)
        else:
            found = inflatable_class_registry[kind].inflate(content, parts or None)
    done[object_id] = found
    return found


def _array_record(content: bytes, parts: dict[str, InflatableObject]) -> ArrayRecord:
    names: dict[str, str] = json.loads(get_object_body(content, ArrayRecord))
    if set(names.values()) != set(parts):
        raise ValueError("the arrays are not those that the record names")
    record = ArrayRecord()  # its constructor would copy every array
    for name, object_id in names.items():
        array = parts[object_id]
        if not isinstance(array, Array):
            raise ValueError("a part of the record is no array")
        record[name] = array
    return record


def _array(store: SpoolStore, content: bytes, children: list[str], budget: _Budget) -> Array:
    if len(content) > LARGEST_TABLE:
        raise ValueError("the table of an array's chunks is too large")
    told = json.loads(get_object_body(content, Array))
    order = [children[index] for index in told["arraychunk_ids"]]
    sizes = {child: store.body_size(child) for child in set(order)}
    total = sum(sizes[child] for child in order)
    budget.take(total)  # a chunk may stand more than once, so a small message can name large arrays
    buffer = bytearray(total)
    start = 0
    for child in order:
        chunk = store.get(child)
        if chunk is None:
            raise ValueError("a chunk is missing")
        body = get_object_body(chunk, ArrayChunk)
        buffer[start : start + len(body)] = body
        start += len(body)
    if start != len(buffer):
        raise ValueError("a chunk is not of the size that it said")
    array = Array(str(told["dtype"]), tuple(int(n) for n in told["shape"]), str(told["stype"]), b"")
    # Flower's type says bytes; whatever reads the array takes any buffer, and this one is not copied.
    array.data = cast("bytes", memoryview(buffer).toreadonly())
    return array
