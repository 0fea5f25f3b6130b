"""What the server makes of equal tags: a lower bound per pair, and each site's own tags back to it."""

import logging
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import GENES
from fedglioma.errors import ProtocolError
from fedglioma.linkage import MOST_TAGS, image_tag, person_tag
from fedglioma.training.learner import layout_of
from fedglioma.weights import GROUPS
from fedglioma.wire import StatisticsReply, TrainRequest, body_of
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.linkage import check_tags, linkage_record, shared_tags, words_of
from fedglioma_server.privacy import privacy_record
from fedglioma_server.records import Linkage, SharedPatients
from fedglioma_server.replies import believed
from fedglioma_server.report_linkage import lead, linkage_table, notices
from fedglioma_server.roll import Roll
from fedglioma_server.runfolder import RunFolder
from tests.federation_fixture import TINY, make_plan
from tests.round_fixture import asked as messages_of
from tests.round_fixture import numbers, site, strategy_of
from tests.unit.test_roll import Sites

KEY = bytes(32)
ASKED = TINY.model_copy(update={"find_duplicates": True})


def said(name: str, *tags: str, cases: int = 100, limit: int = 5) -> StatisticsReply:
    return StatisticsReply(
        site=name,
        version="0",
        layout=layout_of(ASKED).digest,
        cases=cases,
        labels=dict.fromkeys(GENES, (50, 50, 0)),
        modalities={},
        weights=dict.fromkeys(GROUPS, 10.0),
        small_cell_limit=limit,
        linkage=tags,
    )


def people(*numbers: int) -> list[str]:
    return [person_tag(KEY, f"number {number}") for number in numbers]


def images(*numbers: int) -> list[str]:
    return [image_tag(KEY, f"{number} {m}") for number in numbers for m in range(4)]


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from("abcd"), st.sets(st.integers(0, 12)), max_size=4))
def test_each_site_gets_back_its_own_tags_that_are_elsewhere_and_no_other(held: dict[str, set[int]]) -> None:
    replies = [said(name, *people(*those)) for name, those in held.items()]
    found = shared_tags(replies)
    for name, those in held.items():
        elsewhere = set().union(*(others for other, others in held.items() if other != name))
        assert set(found.get(name, ())) == set(people(*those & elsewhere))
    record = linkage_record(replies, found)
    for one, other in combinations(sorted(held), 2):
        both = len(held[one] & held[other])
        pair = next((pair for pair in record.pairs if pair.sites == (one, other)), None)
        assert (pair is None) == (both == 0)
        assert pair is None or pair.at_least == (both // 5 * 5 or None)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=12))
def test_count_is_never_above_the_patients_who_are_shared(held: list[tuple[bool, int]]) -> None:
    """Each shared patient shows by a number, by some images, by both, or not at all."""
    tags = [tag for n, (known, _) in enumerate(held) if known for tag in people(n)]
    tags += [image_tag(KEY, f"{n} {m}") for n, (_, seen) in enumerate(held) for m in range(seen)]
    replies = [said("a", *tags, limit=1), said("b", *tags, limit=1)]
    record = linkage_record(replies, shared_tags(replies))
    shown = sum(known or seen > 0 for known, seen in held)
    assert sum(pair.at_least or 0 for pair in record.pairs) <= shown
    assert bool(record.pairs) == bool(shown)


def test_count_below_the_larger_limit_is_not_kept_and_a_larger_one_is_rounded_down() -> None:
    def at_least(shared: int, one: int, other: int) -> int | None:
        replies = [
            said("a", *people(*range(shared)), limit=one),
            said("b", *people(*range(shared)), limit=other),
        ]
        (pair,) = linkage_record(replies, shared_tags(replies)).pairs
        assert pair.small_cell_limit == max(one, other)
        return pair.at_least

    assert [at_least(n, 5, 1) for n in (1, 4, 5, 9, 12)] == [None, None, 5, 5, 10]
    assert at_least(12, 1, 7) == 7
    assert at_least(3, 1, 1) == 3


def test_numbers_and_images_of_the_same_patients_are_not_added_up() -> None:
    tags = [*people(1, 2, 3), *images(1, 2, 3, 4)]
    replies = [said("a", *tags, limit=1), said("b", *tags, limit=1)]
    assert linkage_record(replies, shared_tags(replies)).pairs[0].at_least == 4


def test_site_without_a_key_is_not_compared() -> None:
    replies = [said("a", *people(1)), said("b"), said("c", *people(2))]
    assert linkage_record(replies, shared_tags(replies)) == Linkage(compared=["a", "c"])


def test_what_was_found_before_stays() -> None:
    first = [said("a", *people(1)), said("b", *people(1))]
    before = linkage_record(first, shared_tags(first))
    later = [said("a", *people(2)), said("c", *people(2))]
    found = linkage_record(later, shared_tags(later), before)
    assert [pair.sites for pair in found.pairs] == [("a", "b"), ("a", "c")]
    assert found.compared == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (said("a", *people(1), *people(1)), "it sends a linkage tag twice"),
        (said("a", *people(*range(101))), "it sends 101 linkage tags P of 100 cases"),
        (said("a", *images(*range(101))), "it sends 404 linkage tags I of 100 cases"),
    ],
)
def test_tags_that_no_site_can_have_are_refused(reply: StatisticsReply, reason: str) -> None:
    for judge in (check_tags, believed):
        with pytest.raises(ProtocolError, match=reason):
            judge(reply)
    believed(said("a", *people(*range(100)), *images(*range(100))))


@pytest.mark.parametrize(
    "tags",
    [
        '["PATIENT-17"]',
        '["P' + "A" * 21 + '"]',
        '[""]',
        "[1]",
        '{"a": "b"}',
        "null",
        '"PAAAAAAAAAAAAAAAAAAAA"',
    ],
)
def test_reply_with_tags_of_another_form_is_no_reply(tags: str) -> None:
    text = said("a").model_dump_json().replace('"linkage":[]', f'"linkage":{tags}')
    assert tags in text
    with pytest.raises(ProtocolError, match="not a StatisticsReply"):
        body_of(RecordDict({"fedglioma": ConfigRecord({"json": text})}), StatisticsReply)


def test_reply_with_too_many_tags_is_no_reply() -> None:
    many = ",".join(['"' + "P" + "A" * 20 + '"'] * (MOST_TAGS + 1))
    text = said("a").model_dump_json().replace('"linkage":[]', f'"linkage":[{many}]')
    with pytest.raises(
        ProtocolError, match=r"not a StatisticsReply \(linkage: Tuple should have at most 100000"
    ):
        body_of(RecordDict({"fedglioma": ConfigRecord({"json": text})}), StatisticsReply)


# The roll call of a deployed run


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    plan = make_plan(tmp_path, ASKED)
    members = {11: "henan", 12: "ningxia", 13: "zhengzhou"}
    return Coordinator(path=plan.run_folder, settings=ASKED, members=lambda: members)


def test_run_records_and_tells_the_bound_and_keeps_the_tags_to_its_work_folder(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    grid = Sites(henan=said("henan", *people(1, 2)), ningxia=said("ningxia", *people(2, 3)))
    with caplog.at_level(logging.INFO):
        roll = Roll(grid, coordinator)
        roll.call()
    (tag,) = people(2)
    assert roll.shared == {"henan": (tag,), "ningxia": (tag,)}
    record = RunFolder(coordinator.path).read()
    assert record.linkage == Linkage(
        compared=["henan", "ningxia"],
        pairs=[SharedPatients(sites=("henan", "ningxia"), at_least=None, small_cell_limit=5)],
    )
    assert (
        caplog.text.count("henan and ningxia: at least 1 patient (fewer than 5 by what can be counted)") == 1
    )
    assert tag not in caplog.text
    holders = [path for path in coordinator.path.rglob("*") if path.is_file() and tag in path.read_text()]
    assert [path.relative_to(coordinator.path).as_posix() for path in holders] == ["work/answers.json"]
    roll.dismiss()
    assert tag not in (coordinator.path / "work" / "answers.json").read_text()
    assert RunFolder(coordinator.path).read().linkage == record.linkage


def test_resumed_run_keeps_what_it_found_and_asks_nobody_again(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    Roll(Sites(henan=said("henan", *people(1)), ningxia=said("ningxia", *people(1))), coordinator).call()
    before = RunFolder(coordinator.path).read().linkage
    caplog.clear()
    again = Sites()
    roll = Roll(again, coordinator)
    roll.call()
    assert again.asked == []
    assert roll.shared == {"henan": tuple(people(1)), "ningxia": tuple(people(1))}
    assert RunFolder(coordinator.path).read().linkage == before
    assert "at both" not in caplog.text


def test_site_that_comes_late_is_compared_too(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    grid = Sites(henan=said("henan", *people(1)), zhengzhou=said("zhengzhou", *people(1)))
    roll = Roll(grid, coordinator)
    grid.online -= {13}
    members = coordinator.members
    assert members is not None
    grid.answers["zhengzhou"] = RecordDict()
    roll.call()
    assert roll.shared == {}
    grid.online |= {13}
    grid.since = "now"
    grid.answers["zhengzhou"] = said("zhengzhou", *people(1))
    roll.call_late()
    assert set(roll.shared) == {"henan", "zhengzhou"}
    assert "henan and zhengzhou: at least 1 patient" in caplog.text


def test_run_that_does_not_ask_ignores_tags(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TINY)
    members = {11: "henan", 12: "ningxia", 13: "zhengzhou"}
    coordinator = Coordinator(path=plan.run_folder, settings=TINY, members=lambda: members)
    roll = Roll(Sites(henan=said("henan", *people(1)), ningxia=said("ningxia", *people(1))), coordinator)
    roll.call()
    assert roll.shared == {}
    assert RunFolder(coordinator.path).read().linkage is None


def test_request_carries_each_sites_own_tags_beside_the_same_weights(tmp_path: Path) -> None:
    shared: dict[str, tuple[str, ...]] = {}
    strategy = strategy_of(tmp_path, [site("a"), site("b"), site("c")], shared=shared)
    sent = numbers(1)
    assert {body_of(m.content, TrainRequest).shared for m in messages_of(strategy, sent)} == {()}
    shared |= {"a": tuple(people(1, 2)), "b": tuple(people(2))}
    first, second, third = messages_of(strategy, sent, 2)
    told = [body_of(message.content, TrainRequest).shared for message in (first, second, third)]
    assert told == [tuple(people(1, 2)), tuple(people(2)), ()]
    assert first.content["weights"] is second.content["weights"] is third.content["weights"]
    down = {name: line.bytes_down for name, line in strategy.ledger.sites.items()}
    assert down["a"] - down["b"] == 24
    assert down["b"] > down["c"]


# What a reader of the report is told


def found(at_least: int | None) -> Linkage:
    pair = SharedPatients(sites=("henan", "ningxia"), at_least=at_least, small_cell_limit=5)
    return Linkage(compared=["henan", "ningxia", "zhengzhou"], pairs=[pair])


def test_words_say_what_is_certain_and_no_more() -> None:
    assert words_of(found(None).pairs[0]) == "at least 1 patient (fewer than 5 by what can be counted)"
    assert words_of(found(10).pairs[0]) == "at least 10 patients"


def test_report_warns_first_and_lists_every_pair() -> None:
    assert notices(None) == notices(Linkage(compared=["a", "b"])) == []
    assert notices(found(10)) == [
        "henan and ningxia seem to hold the same patients, at least 10 patients: these were trained on twice."
    ]
    many = Linkage(
        compared=list("abcdef"),
        pairs=[SharedPatients(sites=("a", other), at_least=None, small_cell_limit=5) for other in "bcdef"],
    )
    assert len(notices(many)) == 4
    assert "2 more pairs" in notices(many)[-1]
    assert len(linkage_table(many).rows) == 5
    assert "none was found" in lead(Linkage(compared=["a", "b"]))
    assert "nobody looked" in lead(Linkage(compared=["a"]))


def test_privacy_statement_speaks_of_tags_where_the_run_asks_for_them(tmp_path: Path) -> None:
    def leaves(folder: Path, **changes: Any) -> str:
        plan = make_plan(folder, TINY.model_copy(update=changes))
        return " ".join(privacy_record(RunFolder(plan.run_folder).read()).leaves_a_site)

    assert "keyed tag" in leaves(tmp_path / "a", find_duplicates=True)
    assert "keyed tag" not in leaves(tmp_path / "b")
