"""The rounds: who is asked, which replies count, and that nothing depends on their order of arrival."""

import queue
from itertools import permutations
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.config.run import RunConfig, Strategy
from fedglioma.errors import ConfigError, QuorumError
from fedglioma.weights import GROUPS, digest_of, from_record
from fedglioma_server.report_headline import STRATEGY_TITLES
from fedglioma_server.sitewords import LONGEST
from fedglioma_server.strategies import combiner_of
from fedglioma_server.updates import Spool, StoredUpdate
from tests.round_fixture import answer, asked, moved, numbers, site, strategy_of, weights

SENT = numbers(0)
EVERY = ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedbn", "median", "trimmed_mean", "multikrum"]
NAMES = ("anyang", "henan", "kaifeng", "luoyang", "ningxia")


def outcome(strategy, replies, number: int = 1):
    record, metrics = strategy.aggregate_train(number, replies)
    assert metrics is None
    return from_record(record)


def test_all_sites_share_one_record_of_the_weights(tmp_path: Path) -> None:
    messages = asked(strategy_of(tmp_path, map(site, NAMES)), SENT)
    assert len(messages) == 5
    assert len({id(message.content["weights"]["trunk"].data) for message in messages}) == 1


def test_site_without_labels_is_not_asked(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, [site("henan"), site("ningxia", weights(0.0))])
    assert len(asked(strategy, SENT)) == 1
    assert strategy.ledger.sites["ningxia"].status == "idle"


def test_sites_are_asked_in_the_order_of_their_names_whether_connected_or_not(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, map(site, reversed(NAMES)))
    nodes = [message.metadata.dst_node_id for message in asked(strategy, SENT)]
    assert [strategy.nodes[node].site for node in nodes] == list(NAMES)


@pytest.mark.parametrize("name", EVERY)
def test_order_of_arrival_changes_no_bit(tmp_path: Path, name: str) -> None:
    config = RunConfig(strategy=name, payload="float32")
    digests = set()
    for order in list(permutations(range(5)))[::17]:
        strategy = strategy_of(tmp_path, map(site, NAMES), config)
        messages = asked(strategy, SENT)
        replies = [answer(strategy, messages[n], moved(SENT, n)) for n in order]
        digests.add(digest_of(outcome(strategy, replies)))
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["fedavg", "fedbn", "median", "trimmed_mean", "multikrum"])
def test_when_all_sites_agree_that_is_the_result(tmp_path: Path, name: str) -> None:
    strategy = strategy_of(tmp_path, map(site, NAMES), RunConfig(strategy=name, payload="float32"))
    local = moved(SENT, 1)
    found = outcome(strategy, [answer(strategy, message, local) for message in asked(strategy, SENT)])
    for group in GROUPS:
        np.testing.assert_array_equal(found[group], local[group])


@pytest.mark.parametrize("name", EVERY)
def test_head_that_nobody_has_labels_for_does_not_move(tmp_path: Path, name: str) -> None:
    unlabelled = weights(3.0, codel_1p19q=0.0)
    strategy = strategy_of(
        tmp_path, [site(n, unlabelled) for n in NAMES], RunConfig(strategy=name, payload="float32")
    )
    found = SENT
    for number in (1, 2):
        before = found
        messages = asked(strategy, before, number)
        replies = [answer(strategy, message, moved(before, n)) for n, message in enumerate(messages)]
        found = outcome(strategy, replies, number)
        assert found["codel_1p19q"].tobytes() == SENT["codel_1p19q"].tobytes()
        assert found["idh"].tobytes() != before["idh"].tobytes()


@pytest.mark.parametrize("name", EVERY)
def test_site_without_labels_of_a_gene_never_moves_its_head(tmp_path: Path, name: str) -> None:
    """Whatever it sends there, the head is the same."""
    heads = set()
    for seed in range(3):
        sites = [site(n, weights(3.0, codel_1p19q=0.0 if n == "henan" else 1.0)) for n in NAMES]
        strategy = strategy_of(tmp_path, sites, RunConfig(strategy=name, payload="float32"))
        messages = asked(strategy, SENT)
        locals_ = [moved(SENT, n) for n in range(5)]
        locals_[1]["codel_1p19q"] = SENT["codel_1p19q"] + numbers(seed, 1e-4)["codel_1p19q"]
        replies = [answer(strategy, m, local) for m, local in zip(messages, locals_, strict=True)]
        heads.add(outcome(strategy, replies)["codel_1p19q"].tobytes())
    assert len(heads) == 1


def test_second_reply_of_a_site_is_ignored(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, map(site, NAMES))
    messages = asked(strategy, SENT)
    replies = [answer(strategy, message, moved(SENT, n)) for n, message in enumerate(messages)]
    again = answer(strategy, messages[0], moved(SENT, 77))
    once = digest_of(outcome(strategy, replies))
    asked(strategy, SENT)
    assert digest_of(outcome(strategy, [*replies, again])) == once
    assert strategy.ledger.sites["anyang"].status == "ok"


def test_late_reply_of_another_round_spoils_nothing(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, map(site, NAMES))
    late = answer(strategy, asked(strategy, SENT, 1)[0], moved(SENT, 5))
    messages = asked(strategy, SENT, 2)
    replies = [answer(strategy, message, moved(SENT, n)) for n, message in enumerate(messages)]
    before, after = ([late, *replies], [*replies, late])
    found = {digest_of(outcome(strategy, before, 2))}
    assert strategy.ledger.sites["anyang"].status == "ok"
    asked(strategy, SENT, 2)
    found.add(digest_of(outcome(strategy, after, 2)))
    assert len(found) == 1
    assert strategy.ledger.sites["anyang"].status == "ok"


def test_reply_of_a_node_that_was_not_asked_is_ignored(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, [site("henan"), site("ningxia", weights(0.0))])
    (message,) = asked(strategy, SENT)
    good = answer(strategy, message, moved(SENT, 1))
    for node in (2, 99):
        strategy.nodes.setdefault(99, site("stranger"))
        other = Message(message.content, dst_node_id=node, message_type="train", group_id="1")
        uninvited = answer(strategy, other, moved(SENT, 2))
        if node == 99:
            del strategy.nodes[99]
        asked(strategy, SENT)
        found = outcome(strategy, [uninvited, good])
        np.testing.assert_array_equal(found["trunk"], moved(SENT, 1)["trunk"])
    assert strategy.ledger.sites["ningxia"].status == "idle"


def test_site_that_sent_nothing_is_named(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, map(site, NAMES))
    messages = asked(strategy, SENT)
    outcome(strategy, [answer(strategy, message, moved(SENT, 1)) for message in messages[1:]])
    line = strategy.ledger.sites["anyang"]
    assert (line.status, line.code) == ("no_reply", "no_reply")


def test_quorum_counts_what_is_left_after_exclusions(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, map(site, NAMES[:3]), RunConfig(quorum=3, payload="float32"))
    messages = asked(strategy, SENT)
    replies = [answer(strategy, m, moved(SENT, n, (0.01, 0.01, 5.0)[n])) for n, m in enumerate(messages)]
    with pytest.raises(QuorumError, match=r"2 usable updates, 3 needed \(kaifeng: the update is .* median"):
        strategy.aggregate_train(1, replies)


@pytest.mark.parametrize(
    ("limit", "scales", "left_out"),
    [
        (10.0, (1, 1, 1, 1, 50), ["ningxia"]),
        (10.0, (1, 1, 1, 1, 5), []),
        (2.0, (1, 1, 1, 1, 5), ["ningxia"]),
        (0.0, (1, 1, 1, 1, 5000), []),
        (10.0, (1, 1, 1, 1, 1e-6), []),
        (10.0, (0, 0, 0, 0, 1), []),
    ],
)
def test_update_that_is_far_too_long_is_left_out(tmp_path: Path, limit, scales, left_out) -> None:
    strategy = strategy_of(tmp_path, map(site, NAMES), RunConfig(norm_limit=limit, payload="float32"))
    messages = asked(strategy, SENT)
    outcome(
        strategy,
        [answer(strategy, m, moved(SENT, n, 0.001 * scales[n])) for n, m in enumerate(messages)],
    )
    assert [n for n, line in strategy.ledger.sites.items() if line.code == "norm"] == left_out


def test_two_updates_have_no_usual_length(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, map(site, NAMES[:2]))
    messages = asked(strategy, SENT)
    outcome(strategy, [answer(strategy, m, moved(SENT, n, 10.0 ** -(2 * n))) for n, m in enumerate(messages)])
    assert {line.status for line in strategy.ledger.sites.values()} == {"ok"}


def test_excluded_site_keeps_digest_and_norm_on_record(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, map(site, NAMES))
    messages = asked(strategy, SENT)
    outcome(
        strategy,
        [answer(strategy, m, moved(SENT, n, 1.0 if n == 4 else 1e-3)) for n, m in enumerate(messages)],
    )
    line = strategy.ledger.sites["ningxia"]
    assert line.code == "norm"
    assert line.digest
    assert line.update_norm > 10
    assert line.bytes_up > 0


def test_multikrum_says_whom_it_did_not_choose(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, map(site, NAMES), RunConfig(strategy="multikrum", norm_limit=0))
    messages = asked(strategy, SENT)
    outcome(
        strategy,
        [answer(strategy, m, moved(SENT, n, 0.3 if n == 2 else 0.01)) for n, m in enumerate(messages)],
    )
    assert [n for n, line in strategy.ledger.sites.items() if line.code == "passed_over"] == ["kaifeng"]
    assert strategy.ledger.sites["kaifeng"].status == "ok"


@pytest.mark.parametrize(
    ("config", "sites", "said"),
    [
        ({"strategy": "multikrum"}, 4, "multikrum with byzantine 1 needs 5 sites that train, there are 4"),
        ({"strategy": "multikrum", "byzantine": 2}, 5, "needs 7 sites"),
        ({"strategy": "trimmed_mean"}, 3, "trimmed_mean with trim 0.2 needs 5 sites that train, there are 3"),
    ],
)
def test_strategy_that_could_not_keep_its_promise_is_refused_at_the_start(tmp_path, config, sites, said):
    with pytest.raises(ConfigError, match=said):
        strategy_of(tmp_path, map(site, NAMES[:sites]), RunConfig(**config))


def test_round_with_too_few_updates_for_the_strategy_does_not_count(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, map(site, NAMES), RunConfig(strategy="multikrum"))
    messages = asked(strategy, SENT)
    replies = [answer(strategy, m, moved(SENT, n)) for n, m in enumerate(messages[:4])]
    with pytest.raises(QuorumError, match="4 usable updates, 5 needed"):
        strategy.aggregate_train(1, replies)


@given(present=st.sets(st.integers(0, 4), min_size=1))
@settings(deadline=None, max_examples=15)
def test_same_set_of_replies_gives_the_same_bits(tmp_path_factory, present) -> None:
    folder = tmp_path_factory.mktemp("set")
    digests = set()
    for reverse in (False, True):
        strategy = strategy_of(folder, map(site, NAMES))
        messages = asked(strategy, SENT)
        replies = [
            answer(strategy, m, moved(SENT, n))
            if n in present
            else Message(Error(ErrorCode.NODE_UNAVAILABLE, "away"), reply_to=m)
            for n, m in enumerate(messages)
        ]
        digests.add(digest_of(outcome(strategy, replies[::-1] if reverse else replies)))
    assert len(digests) == 1


def test_latest_updates_alone_are_held_unless_they_are_kept(tmp_path: Path) -> None:
    work, kept = tmp_path / "work", tmp_path / "updates"
    for spool in (Spool(work), Spool(work, kept)):
        strategy = strategy_of(tmp_path, map(site, NAMES), spool=spool)
        for number in (2, 3):
            messages = asked(strategy, SENT, number)
            outcome(strategy, [answer(strategy, m, moved(SENT, n)) for n, m in enumerate(messages)], number)
        held = sorted(path.name for path in work.iterdir()) if work.exists() else []
        assert held == ([] if spool.kept else [f"{name}.safetensors" for name in NAMES])
        spool.remove()
        assert not work.exists()
    assert sorted(path.name for path in (kept / "round-0003").iterdir()) == [
        f"{name}.safetensors" for name in NAMES
    ]
    update = StoredUpdate.open(kept / "round-0003" / "henan.safetensors")
    np.testing.assert_array_equal(update.arrays["trunk"][:], moved(SENT, 1)["trunk"])
    assert update.metadata["digest"] == strategy.ledger.sites["henan"].digest
    update.close()


def test_usable_update_is_told_while_the_next_reply_is_waited_for(tmp_path: Path) -> None:
    heard: queue.Queue[str] = queue.Queue()
    strategy = strategy_of(tmp_path, map(site, NAMES[:3]), usable=heard.put)
    messages = asked(strategy, SENT, 4)

    def replies():
        yield answer(strategy, messages[0], moved(SENT, 0, np.nan))
        for n, message in enumerate(messages[1:], 1):
            yield answer(strategy, message, moved(SENT, n))
            assert heard.get(timeout=60) == NAMES[n]

    outcome(strategy, replies(), 4)
    assert heard.empty()


def test_round_needs_the_agreed_quorum_or_what_the_strategy_needs() -> None:
    assert combiner_of(RunConfig(strategy="multikrum", quorum=2)).quorum() == 5
    assert combiner_of(RunConfig(strategy="multikrum", quorum=6)).quorum() == 6
    assert combiner_of(RunConfig(strategy="fedavg", quorum=2)).quorum() == 2


def test_every_strategy_has_a_combiner_and_a_title() -> None:
    names = set(get_args(Strategy))
    assert all(
        combiner_of(RunConfig(strategy=name, payload="float32")).settings.strategy == name for name in names
    )
    assert set(STRATEGY_TITLES) == names


def test_reason_of_the_grid_is_kept_to_a_line(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, map(site, NAMES[:2]))
    one, other = asked(strategy, SENT)
    long = Message(Error(ErrorCode.NODE_UNAVAILABLE, "a\n" * 1000), reply_to=one)
    outcome(strategy, [long, answer(strategy, other, moved(SENT, 1))])
    reason = strategy.ledger.sites["anyang"].reason
    assert len(reason) == LONGEST
    assert "\n" not in reason
