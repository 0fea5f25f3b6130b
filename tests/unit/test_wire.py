"""The messages: what travels survives the road, and what is not agreed on does not get in."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedglioma.case import GENES, Gene
from fedglioma.config.run import RunConfig
from fedglioma.errors import ProtocolError
from fedglioma.masked_update import statistics_parts
from fedglioma.privacy.masked_wire import (
    Consent,
    Inbox,
    KeyOffer,
    Revealed,
    Roster,
    SealedShares,
    Session,
)
from fedglioma.scale import LandmarkSums
from fedglioma.weights import GROUPS
from fedglioma.wire import (
    Body,
    Masking,
    Refusal,
    SecureReply,
    SecureRequest,
    StatisticsReply,
    StatisticsRequest,
    TrainReply,
    TrainRequest,
    body_of,
    is_refusal,
    payload_bytes,
    reply_to,
    request_record,
    weights_of,
)
from fedglioma_server.inline import InlineGrid

names = st.text(max_size=40)
counts = st.integers(0, 10**9)
cells = st.none() | counts
numbers = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
positive = st.floats(0, 1e12)


tags = st.lists(st.from_regex(r"[PI][A-Z2-7]{20}", fullmatch=True), max_size=3).map(tuple)


def by_gene(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries(dict.fromkeys(GENES, values))


keys = st.binary(min_size=32, max_size=32)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
SESSION = Session(subject="statistics:r:0", parts=statistics_parts(), sites=3)
offers = st.builds(
    KeyOffer,
    session=digests,
    site=st.sampled_from(["henan", "ningxia"]),
    sealing=keys,
    masking=keys,
    signature=st.none() | st.binary(min_size=8, max_size=128),
)
inboxes = st.builds(
    Inbox,
    session=digests,
    sealed=st.dictionaries(st.just("henan"), st.binary(min_size=148, max_size=148), max_size=1),
)

bodies = st.one_of(
    st.builds(SecureReply, site=names, offer=st.none() | offers),
    st.builds(
        SecureRequest,
        settings=st.just(RunConfig()),
        purpose=st.just("train"),
        session=st.just(SESSION),
        roster=st.none() | st.builds(Roster, offers=st.tuples(offers)),
    ),
    st.builds(
        StatisticsRequest, settings=st.builds(RunConfig, rounds=st.integers(1, 10**6), lr=st.floats(1e-9, 1))
    ),
    st.builds(
        StatisticsReply,
        site=names,
        version=names,
        layout=names,
        cases=counts,
        labels=by_gene(st.tuples(cells, cells, cells)),
        modalities=st.dictionaries(names, cells, max_size=3),
        weights=st.dictionaries(names, positive, max_size=3),
        small_cell_limit=st.integers(1, 100),
        linkage=tags,
        masked=st.none() | st.binary(max_size=64),
    ),
    st.builds(
        TrainRequest,
        run=names,
        round=st.integers(1, 10**6),
        settings=st.just(RunConfig()),
        proximal_mu=positive,
        class_counts=by_gene(st.tuples(positive, positive)),
        layout=names,
        shared=tags,
        masking=st.none()
        | st.builds(
            Masking, subject=names, inbox=inboxes, totals=st.dictionaries(names, positive, max_size=2)
        ),
    ),
    st.builds(
        TrainReply,
        site=names,
        round=counts,
        layout=names,
        payload=st.sampled_from(["float32", "bfloat16", "int8"]),
        digest=names,
        weights=st.dictionaries(names, positive, max_size=3),
        steps=counts,
        loss=st.none() | numbers,
        loss_by_task=by_gene(st.none() | numbers),
        seconds=st.dictionaries(names, positive, max_size=3),
    ),
    st.builds(Refusal, site=names, error=names, exit_code=st.integers(0, 255), reason=names),
)


def train_reply(**changed: object) -> TrainReply:
    table = {
        "site": "henan",
        "round": 3,
        "layout": "abc",
        "payload": "float32",
        "digest": "0" * 64,
        "weights": {"trunk": 4.0},
        "steps": 2,
        "loss": 0.5,
        "loss_by_task": dict.fromkeys(GENES),
        "seconds": {"train": 1.5},
    }
    return TrainReply.model_validate(table | changed)


def arrays() -> dict[str, np.ndarray]:
    return {group: np.arange(number + 1, dtype=np.float32) for number, group in enumerate(GROUPS)}


def written(text: str) -> RecordDict:
    return RecordDict({"fedglioma": ConfigRecord({"json": text})})


@settings(deadline=None, max_examples=60)
@given(bodies)
def test_body_survives_the_road(body: Body) -> None:
    assert body_of(request_record(body), type(body)) == body


@settings(deadline=None, max_examples=60)
@given(bodies)
def test_only_a_refusal_is_taken_for_one(body: Body) -> None:
    assert is_refusal(request_record(body)) == isinstance(body, Refusal)


def test_site_that_calls_itself_a_refusal_is_none() -> None:
    assert not is_refusal(request_record(train_reply(site='"kind":"refusal"')))


def test_weights_survive_beside_the_body() -> None:
    content = request_record(train_reply(), arrays())
    assert body_of(content, TrainReply) == train_reply()
    found = weights_of(content)
    assert found.keys() == arrays().keys()
    for group, array in arrays().items():
        np.testing.assert_array_equal(found[group], array)


def test_reply_goes_back_to_who_asked() -> None:
    InlineGrid(ClientApp(), [{}], {})
    question = Message(request_record(Body()), dst_node_id=7, message_type="train", group_id="3")
    answer = reply_to(question, train_reply(), arrays())
    assert answer.metadata.dst_node_id == question.metadata.src_node_id
    assert answer.metadata.src_node_id == 7
    assert body_of(answer.content, TrainReply) == train_reply()


def test_message_is_one_text_and_flat_arrays_and_nothing_else() -> None:
    content = request_record(train_reply(), arrays())
    assert set(content) == {"fedglioma", "weights"}
    assert set(content["fedglioma"]) == {"json"}
    assert all(array.stype == "numpy.ndarray" for array in content["weights"].values())


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '"text"', "{}", '{"protocol": 1}', "\ud83d", '{"a": ' * 500],
)
def test_text_that_is_no_body_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="not a TrainReply"):
        body_of(written(text), TrainReply)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"other": ConfigRecord({"json": "{}"})}),
        RecordDict({"fedglioma": ConfigRecord()}),
        RecordDict({"fedglioma": ConfigRecord({"json": 5})}),
        RecordDict({"fedglioma": ConfigRecord({"json": b"{}"})}),
        RecordDict({"fedglioma": ArrayRecord()}),
    ],
)
def test_content_without_a_body_is_refused(content: RecordDict) -> None:
    with pytest.raises(ProtocolError, match="do both ends run the same version"):
        body_of(content, TrainReply)
    assert not is_refusal(content)


@pytest.mark.parametrize("protocol", [0, 2, "1.0", None])
def test_other_protocol_version_is_refused(protocol: object) -> None:
    table = train_reply().model_dump(mode="json") | {"protocol": protocol}
    with pytest.raises(ProtocolError, match=r"not a TrainReply \(protocol:"):
        body_of(written(json.dumps(table)), TrainReply)


def test_body_of_another_kind_is_refused() -> None:
    refusal = Refusal(site="henan", error="PolicyError", exit_code=5, reason="no")
    with pytest.raises(ProtocolError, match="not a TrainReply"):
        body_of(request_record(refusal), TrainReply)


@pytest.mark.parametrize("field", ["path", "patient", "image", "name"])
def test_field_that_was_not_agreed_on_cannot_travel(field: str) -> None:
    table = train_reply().model_dump(mode="json") | {field: "x"}
    with pytest.raises(ProtocolError, match=field):
        body_of(written(json.dumps(table)), TrainReply)


def test_settings_in_a_request_are_checked_as_everywhere() -> None:
    table = {"run": "r", "settings": RunConfig().model_dump(mode="json") | {"rounds": 0}}
    with pytest.raises(ProtocolError, match=r"settings\.rounds"):
        body_of(written(json.dumps(table)), StatisticsRequest)


@pytest.mark.parametrize(
    ("field", "value"), [("round", 0), ("proximal_mu", -1.0), ("class_counts", {"egfr": [1, 2]})]
)
def test_request_out_of_bounds_is_refused(field: str, value: object) -> None:
    table = {
        "run": "abc",
        "round": 1,
        "settings": RunConfig().model_dump(mode="json"),
        "proximal_mu": 0.0,
        "class_counts": {Gene.IDH: [1, 2]},
        "layout": "abc",
    }
    body_of(written(json.dumps(table)), TrainRequest)
    with pytest.raises(ProtocolError, match=field):
        body_of(written(json.dumps(table | {field: value})), TrainRequest)


@pytest.mark.parametrize(
    "content",
    [RecordDict(), request_record(Body()), RecordDict({"weights": ConfigRecord({"a": 1})})],
)
def test_missing_weights_are_told(content: RecordDict) -> None:
    with pytest.raises(ProtocolError, match="carries no weights"):
        weights_of(content)


def test_weights_that_are_a_pickle_are_refused_and_not_loaded() -> None:
    pickled = Array("object", (1,), "numpy.ndarray", b"\x80\x04N.")
    record = ArrayRecord(dict.fromkeys(GROUPS, pickled))
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        weights_of(RecordDict({"weights": record}))


def test_payload_counts_weights_and_text() -> None:
    body = train_reply()
    text = len(body.model_dump_json())
    assert payload_bytes(request_record(body)) == text
    raw = sum(array.nbytes for array in arrays().values())
    found = payload_bytes(request_record(body, arrays()))
    assert text + raw <= found <= text + raw + 256 * len(GROUPS)


def test_what_a_site_can_say_is_this_and_no_more() -> None:
    """A new field is a new thing that leaves a hospital: look at it before you add it here."""
    assert set(StatisticsReply.model_fields) == {
        *("protocol", "kind", "site", "version", "layout", "cases", "labels", "modalities"),
        "masks",
        *("weights", "small_cell_limit", "landmarks", "landmark_epsilon", "synthetic", "linkage"),
        *("masked", "counts_epsilon", "ledger_head"),
    }
    assert set(LandmarkSums.model_fields) == {"cases", "sums"}
    assert set(TrainReply.model_fields) == {
        *(
            "protocol",
            "kind",
            "site",
            "round",
            "layout",
            "payload",
            "digest",
            "weights",
            "steps",
            "loss",
            "loss_by_task",
            "seconds",
            "ledger_head",
        ),
    }
    assert set(SecureReply.model_fields) == {
        *("protocol", "kind", "site", "offer", "shares", "consent", "revealed")
    }
    assert set(KeyOffer.model_fields) == {"session", "site", "sealing", "masking", "signature"}
    assert set(SealedShares.model_fields) == {"session", "site", "commitment", "sealed"}
    assert set(Consent.model_fields) == {"session", "site", "signature"}
    assert set(Revealed.model_fields) == {"session", "site", "seeds", "keys"}
    assert set(Refusal.model_fields) == {"protocol", "kind", "site", "error", "exit_code", "reason"}


def test_reply_with_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        Refusal.model_validate({"site": "a", "error": "b", "exit_code": float("nan"), "reason": ""})
    with pytest.raises(ValidationError, match="seconds"):
        TrainReply.model_validate(
            {
                "site": "a",
                "round": 1,
                "layout": "",
                "payload": "float32",
                "digest": "",
                "weights": {},
                "steps": 1,
                "loss": None,
                "loss_by_task": {},
                "seconds": {"train": float("nan")},
            }
        )


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_impossible_aggregation_weight_is_refused_at_the_door(weight: float) -> None:
    with pytest.raises(ValidationError, match="weights"):
        StatisticsReply.model_validate(
            {
                "site": "a",
                "version": "0",
                "layout": "",
                "cases": 1,
                "labels": {},
                "modalities": {},
                "weights": {"trunk": weight},
                "small_cell_limit": 5,
            }
        )
