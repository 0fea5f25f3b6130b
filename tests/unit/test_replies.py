"""What a site may answer: each thing that is wrong with a reply has its word, and the others go on."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Error, Message
from flwr.common.constant import ErrorCode
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import Case, Genotype, Modality
from fedglioma.counts import count_cases
from fedglioma.weights import GROUPS, to_record
from fedglioma.wire import Refusal, StatisticsReply, reply_to
from fedglioma_server.replies import believed
from fedglioma_server.strategy import RoundStrategy
from tests.round_fixture import RunConfig, answer, asked, moved, numbers, site, strategy_of

NAMES = ("henan", "ningxia", "zhengzhou")
SENT = numbers(0)


def round_with(tmp_path: Path, reply_of, settings: RunConfig | None = None) -> RoundStrategy:
    """Return a strategy after a round in which henan answers as told and the others as they should."""
    strategy = strategy_of(tmp_path, map(site, NAMES), settings)
    messages = asked(strategy, SENT)
    replies = [reply_of(strategy, messages[0])]
    replies += [answer(strategy, message, moved(SENT, n)) for n, message in enumerate(messages[1:], 1)]
    strategy.aggregate_train(1, replies)
    return strategy


def bad(change) -> Message:
    """Return a maker of replies whose update was changed before its digest was taken."""

    def make(strategy: RoundStrategy, message: Message) -> Message:
        local = moved(SENT, 9)
        change(local)
        return answer(strategy, message, local)

    return make


def reported(**changed: object):
    return lambda strategy, message: answer(strategy, message, moved(SENT, 9), **changed)


def carrying(record):
    return lambda strategy, message: answer(strategy, message, moved(SENT, 9), record=record)


def failing(code: int, reason: str):
    return lambda _strategy, message: Message(Error(code, reason), reply_to=message)


def refusing(error: str, reason: str = "policy: no"):
    body = Refusal(site="henan", error=error, exit_code=5, reason=reason)
    return lambda _strategy, message: reply_to(message, body)


def shortened() -> dict[str, np.ndarray]:
    local = moved(SENT, 9)
    return local | {"trunk": local["trunk"][:-1]}


def claiming(shape: str, data: bytes = b"") -> Array:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (118 - len(header) % 64 - 1) + "\n"
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data
    return Array("float32", (1,), "numpy.ndarray", raw)


def with_array(array: Array):
    record = to_record(moved(SENT, 9))
    record["idh"] = array
    return carrying(record)


def without_group():
    record = to_record(moved(SENT, 9))
    del record["idh"]
    return carrying(record)


def set_number(value: float):
    return bad(lambda local: local["atrx"].__setitem__(0, value))


def longer(times: float):
    def change(local):
        for group in GROUPS:
            local[group] = SENT[group] + np.float32(times) * (local[group] - SENT[group])

    return bad(change)


@pytest.mark.parametrize(
    ("reply_of", "status", "code", "reason"),
    [
        (set_number(np.nan), "error", "nonfinite", "not finite"),
        (set_number(np.inf), "error", "nonfinite", "not finite"),
        (set_number(-np.inf), "error", "nonfinite", "not finite"),
        (longer(100), "error", "norm", "times as long as the round's median, 10 allowed"),
        (carrying(to_record(shortened())), "error", "shape", r"group trunk should be float32 \(2401,\)"),
        (without_group(), "error", "shape", "where trunk, idh, atrx, codel_1p19q, segmentation are expected"),
        (with_array(Array(np.zeros(5, np.float64))), "error", "shape", "found float64"),
        (with_array(Array(np.zeros((1, 5), np.float32))), "error", "shape", r"found float32 \(1, 5\)"),
        (with_array(claiming("(268435456,)")), "error", "shape", "cannot be decoded"),
        (with_array(claiming("(4294967296, 4294967296)")), "error", "shape", "cannot be decoded"),
        (with_array(claiming("(-1,)")), "error", "shape", "cannot be decoded"),
        (with_array(Array("object", (1,), "numpy.ndarray", b"\x80\x04N.")), "error", "shape", "decoded"),
        (reported(round=2), "error", "round", "reply of henan for round 2 does not belong here"),
        (reported(round=0), "error", "round", "does not belong here"),
        (reported(site="ningxia"), "error", "site", "reply of ningxia for round 1 does not belong here"),
        (reported(layout="other"), "error", "layout", "of another network"),
        (reported(payload="int8"), "error", "payload", "the update is int8, float32 was agreed on"),
        (reported(digest="0" * 64), "error", "digest", "its digest differs"),
        (carrying(to_record(moved(SENT, 8))), "error", "digest", "its digest differs"),
        (refusing("PolicyError"), "refused", "policy", "PolicyError: policy: no"),
        (refusing("BudgetExhausted"), "refused", "budget", "BudgetExhausted: policy: no"),
        (failing(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "x"), "error", "error", r"Flower error 2"),
        (failing(ErrorCode.NODE_UNAVAILABLE, "away since 9:00"), "no_reply", "not_connected", "away since"),
        (failing(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "too late"), "no_reply", "no_reply", "too late"),
        (failing(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ""), "no_reply", "no_reply", "within the round's time"),
    ],
)
def test_bad_reply_is_named_and_the_others_go_on(tmp_path, reply_of, status, code, reason):
    strategy = round_with(tmp_path, reply_of)
    line = strategy.ledger.sites["henan"]
    assert (line.status, line.code) == (status, code)
    assert re.search(reason, line.reason)
    assert line.bytes_down > 0
    assert [strategy.ledger.sites[name].status for name in NAMES[1:]] == ["ok", "ok"]


@pytest.mark.parametrize("payload", ["bfloat16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rounded_update_that_is_not_finite_is_refused(tmp_path, payload, value):
    def reply_of(strategy, message):
        reply = answer(strategy, message, moved(SENT, 9))
        packed = {group: array.numpy().copy() for group, array in reply.content["weights"].items()}
        poison = np.array([value], np.float32)
        if payload == "int8":  # the scales stand first
            packed["idh"][:4] = poison.view(np.uint8)
        else:
            packed["idh"][0] = poison.view(np.uint16)[1]
        reply.content["weights"] = to_record(packed)
        return reply

    strategy = round_with(tmp_path, reply_of, RunConfig(payload=payload))
    assert strategy.ledger.sites["henan"].code == "nonfinite"


def test_payload_that_was_not_agreed_on_is_refused_by_its_form_alone(tmp_path):
    strategy = round_with(tmp_path, carrying(to_record(moved(SENT, 9))), RunConfig(payload="int8"))
    assert strategy.ledger.sites["henan"].code == "shape"


def test_reply_with_more_than_was_agreed_on_is_refused(tmp_path):
    def reply_of(strategy, message):
        reply = answer(strategy, message, moved(SENT, 9))
        reply.content["more"] = ConfigRecord({"data": b"x" * 100})
        return reply

    assert round_with(tmp_path, reply_of).ledger.sites["henan"].code == "message"


def test_reply_that_is_no_report_is_refused(tmp_path):
    def reply_of(strategy, message):
        reply = answer(strategy, message, moved(SENT, 9))
        table = json.loads(reply.content["fedglioma"]["json"]) | {"patient": "17"}
        reply.content["fedglioma"]["json"] = json.dumps(table)
        return reply

    line = round_with(tmp_path, reply_of).ledger.sites["henan"]
    assert (line.status, line.code) == ("error", "message")
    assert "patient" in line.reason


labels = st.sampled_from([-1, 0, 1])


@given(rows=st.lists(st.tuples(labels, labels, labels), max_size=30), limit=st.integers(1, 10))
@settings(deadline=None, max_examples=50)
def test_counts_of_an_honest_site_are_believed_to_the_bit(rows, limit):
    cases = [
        Case(
            patient=str(number),
            site="henan",
            volumes={Modality.T1: Path("t1.nii.gz")},
            genotype=Genotype(idh=idh, atrx=atrx, codel_1p19q=codel),
        )
        for number, (idh, atrx, codel) in enumerate(rows)
    ]
    counts = count_cases(cases, limit)
    said = StatisticsReply(
        site="henan", version="0", layout="", small_cell_limit=limit, **counts.model_dump(exclude={"limit"})
    )
    assert believed(said) == said


LONG = "y" * 10_000
FORGED = "no\nWARNING\x1b[2J\u202e"


def unknown_field(name: str):
    def reply_of(strategy, message):
        reply = answer(strategy, message, moved(SENT, 9))
        table = json.loads(reply.content["fedglioma"]["json"]) | {name: 1}
        reply.content["fedglioma"]["json"] = json.dumps(table)
        return reply

    return reply_of


@pytest.mark.parametrize("words", [LONG, FORGED])
@pytest.mark.parametrize(
    "reply_of",
    [
        lambda words: refusing("PolicyError", words),
        lambda words: refusing(words),
        lambda words: reported(site=words),
        lambda words: failing(ErrorCode.NODE_UNAVAILABLE, words),
        unknown_field,
    ],
    ids=["reason", "kind of refusal", "name", "error", "field"],
)
def test_words_of_a_site_are_one_short_printable_line(reply_of, words, tmp_path):
    line = round_with(tmp_path, reply_of(words)).ledger.sites["henan"]
    assert line.reason.isprintable()
    assert len(line.reason) <= 300


def test_only_known_phases_of_a_site_are_recorded(tmp_path):
    seconds = {"train": 1.5, "pack": -1.0, "load": 1e300, "x" * 1000: 1.0}
    line = round_with(tmp_path, reported(seconds=seconds)).ledger.sites["henan"]
    assert line.status == "ok"
    assert line.seconds == {"train": 1.5}
