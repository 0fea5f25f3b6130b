"""A masked sum: exact over the survivors, or a refusal in words; whoever drops out or starts again."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedglioma.errors import AggregationError, ConfigError, PrivacyError, ProtocolError, QuorumError
from fedglioma.nodekey import public_bytes
from fedglioma.privacy import masked_site
from fedglioma.privacy.fixed_point import Part, decode_parts, encode_parts
from fedglioma.privacy.masked_state import forget, keep, kept
from fedglioma.privacy.masked_wire import Session
from tests.masked_fixture import Federation, exact_sum, node_keys, numbers, session_of, words

STEPS = ("offer", "share", "mask", "reveal")


@pytest.mark.parametrize("resume", [False, True], ids=["straight", "resumed"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("dropped", [0, 1, 2])
@pytest.mark.parametrize("sites", range(3, 9))
def test_sum_over_the_survivors_is_exact_or_the_round_is_refused(
    sites: int, dropped: int, step: str, resume: bool
) -> None:
    vectors = words(sites)
    gone = dict.fromkeys(list(vectors)[1 : 1 + dropped], step)
    federation = Federation(session_of(sites), vectors, resumed=resume)
    among = sites - dropped if step == "offer" else sites
    left = sites - dropped
    if among < 3 or left < 2 * among // 3 + 1:
        with pytest.raises(QuorumError, match=r"\d sites .+, \d are needed"):
            federation.until("reveal", gone).server.total()
        return
    total = federation.until("reveal", gone).server.total()
    summed = [name for name in vectors if step == "reveal" or name not in gone]
    assert total.tolist() == exact_sum(vectors, summed)
    assert list(federation.server.survivors().survivors) == summed


@pytest.mark.parametrize("sites", [3, 5, 8])
def test_sum_is_exact_with_signatures_and_a_site_that_drops_out(sites: int) -> None:
    vectors = words(sites)
    gone = {"site1": "mask"} if sites > 3 else {}
    federation = Federation(session_of(sites), vectors, keys=node_keys(vectors)).until("reveal", gone)
    assert federation.server.total().tolist() == exact_sum(vectors, [n for n in vectors if n not in gone])


def test_sites_that_drop_out_at_different_steps_are_borne_together() -> None:
    vectors = words(10)
    gone = {"site0": "share", "site3": "mask", "site5": "reveal"}
    federation = Federation(session_of(10), vectors).until("reveal", gone)
    assert federation.server.total().tolist() == exact_sum(vectors, set(vectors) - {"site0", "site3"})


def test_numbers_of_a_model_and_counts_are_summed_in_one_go() -> None:
    parts = (Part(name="step", size=2000, range=1.0), Part(name="cases", size=1, range=1e6))
    session = Session(subject="a", parts=parts, sites=4)
    given = {f"site{i}": {"step": numbers(2000, i), "cases": np.array([10.0 + i])} for i in range(4)}
    vectors = {name: encode_parts(parts, 4, arrays) for name, arrays in given.items()}
    federation = Federation(session, vectors).until("reveal", {"site2": "mask"})
    sums = decode_parts(parts, session.sites, federation.server.total(), 3)
    truth = np.sum([given[name]["step"] for name in ("site0", "site1", "site3")], axis=0)
    assert sums["cases"].tolist() == [34]
    assert np.abs(sums["step"] - truth).max() <= 1.5 * 2.0**-28
    assert np.abs(sums["step"] - truth).max() > 0


@pytest.mark.parametrize("order", [1, -1])
def test_names_order_and_a_long_vector_do_not_matter(order: int) -> None:
    names = ["henan", "Zhengzhou", "ningxia", "a-1"][::order]
    long = words(4, 70_001)
    vectors = dict(zip(names, long.values(), strict=True))
    federation = Federation(session_of(4, 70_001), vectors).until("reveal", {"ningxia": "mask"})
    truth = np.sum([v for name, v in vectors.items() if name != "ningxia"], axis=0, dtype=np.uint32)
    assert (federation.server.total() == truth).all()


def test_sum_is_exact_with_states_that_are_kept_in_files(tmp_path: Path) -> None:
    vectors = words(4)
    federation = Federation(session_of(4), vectors, folder=tmp_path).until("reveal", {"site1": "mask"})
    assert federation.server.total().tolist() == exact_sum(vectors, set(vectors) - {"site1"})


def test_large_consortium_bears_the_loss_of_a_third() -> None:
    vectors = words(24, 5)
    gone = {f"site{i}": "mask" for i in range(7)}
    federation = Federation(session_of(24, 5), vectors).until("reveal", gone)
    assert federation.server.total().tolist() == exact_sum(vectors, set(vectors) - set(gone))


def test_site_that_starts_again_gives_the_same_answers_and_no_other() -> None:
    vectors = words(4)
    federation = Federation(session_of(4), vectors).until("offer")
    roster, state = federation.server.roster(), federation.states["site0"]
    assert masked_site.share(state, roster) == masked_site.share(state, roster)
    after, shares = masked_site.share(state, roster)
    assert masked_site.share(after, roster) == (after, shares)
    for name in vectors:
        federation.share(name)
    once, again = vectors["site0"].copy(), vectors["site0"].copy()
    inbox = federation.server.inbox("site0")
    masked = masked_site.mask(federation.states["site0"], inbox, once)
    assert masked_site.mask(masked, inbox, again) == masked
    assert (once == again).all()
    assert (once != vectors["site0"]).any()
    trained_anew = vectors["site0"] + np.uint32(1)
    with pytest.raises(PrivacyError, match="other numbers were masked before"):
        masked_site.mask(masked, inbox, trained_anew)
    assert (trained_anew == vectors["site0"] + np.uint32(1)).all()


def test_after_the_answer_a_site_has_no_secrets_left(tmp_path: Path) -> None:
    federation = Federation(session_of(3), words(3)).until("mask")
    before = federation.states["site0"]
    request = federation.server.request()
    state, answer = masked_site.reveal(before, request)
    assert masked_site.reveal(state, request) == (state, answer)
    keep(tmp_path / "sum", state)
    text = (tmp_path / "sum").read_text()
    assert before.secrets is not None
    for secret in before.secrets.model_dump(mode="json").values():
        assert secret in before.model_dump_json()
        assert secret not in text
    for step in (
        lambda: masked_site.share(state, federation.server.roster()),
        lambda: masked_site.mask(state, federation.server.inbox("site0"), words(3)["site0"]),
    ):
        with pytest.raises(PrivacyError, match="out of turn"):
            step()


def test_site_that_helped_to_unmask_takes_part_in_no_second_sum_of_the_same_numbers(tmp_path: Path) -> None:
    """Of sums over five sites and over four of them the difference would be the fifth site's numbers."""
    first = session_of(5)
    federation = Federation(first, words(5), folder=tmp_path).until("mask")
    again = first.model_copy(update={"attempt": 2})
    state, _ = masked_site.begin(again, "site0", before=kept(tmp_path / "site0"))
    assert state.secrets != federation.states["site0"].secrets
    federation.reveal("site0")
    with pytest.raises(PrivacyError, match="has helped to unmask attempt 1"):
        masked_site.begin(again, "site0", before=kept(tmp_path / "site0"))
    other = first.model_copy(update={"subject": "run-1/8/update"})
    assert masked_site.begin(other, "site0", before=kept(tmp_path / "site0"))[0].session == other


def test_site_that_starts_again_has_the_keys_that_it_had_and_no_attempt_is_reused() -> None:
    session = session_of(3)
    state, offer = masked_site.begin(session, "site0")
    assert masked_site.begin(session, "site0", before=state) == (state, offer)
    assert masked_site.begin(session, "site0")[1] != offer
    for change in ({"minimum": 3, "sites": 4}, {"about": "another"}):
        with pytest.raises(PrivacyError, match="needs a higher number"):
            masked_site.begin(session.model_copy(update=change), "site0", before=state)


def test_state_is_for_its_owner_alone_and_a_damaged_or_open_one_is_refused(tmp_path: Path) -> None:
    federation = Federation(session_of(3), words(3)).until("share")
    path = tmp_path / "sum.json"
    assert kept(path) is None
    keep(path, federation.states["site0"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert kept(path) == federation.states["site0"]
    path.chmod(0o640)
    with pytest.raises(PrivacyError, match="others can read"):
        kept(path)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PrivacyError, match="damaged; remove it"):
        kept(path)
    forget(path)
    forget(path)
    assert kept(path) is None


def test_neither_a_state_nor_an_error_shows_a_secret() -> None:
    state = Federation(session_of(3), words(3)).until("share").states["site0"]
    assert state.secrets is not None
    for secret in (state.secrets.seed, state.secrets.masking, state.secrets.sealing):
        assert repr(secret) not in repr(state)
        assert repr(secret) not in repr(state.secrets)


# -- wrong shares


def forged(federation: Federation, name: str, kind: str = "seeds", of: str = "site1") -> None:
    """Let a site reveal a wrong share of what one site gave out."""
    _, answer = masked_site.reveal(federation.states[name], federation.server.request())
    shares = dict(getattr(answer, kind))
    shares[of] = (int.from_bytes(shares[of], "big") ^ 1).to_bytes(66, "big")
    federation.server.add_revealed(answer.model_copy(update={kind: shares}))


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_wrong_share_is_done_without_where_there_are_more_than_enough(kind: str) -> None:
    vectors = words(7)
    federation = Federation(session_of(7), vectors).until("mask", {"site6": "mask"})
    forged(federation, "site0", kind, "site1" if kind == "seeds" else "site6")
    for name in ("site1", "site2", "site3", "site4", "site5"):
        federation.reveal(name)
    assert federation.server.total().tolist() == exact_sum(vectors, set(vectors) - {"site6"})
    assert set(federation.server.state.suspects) == {"site0"}


@pytest.mark.parametrize("kind", ["seeds", "keys"])
def test_wrong_share_that_cannot_be_done_without_is_an_error_and_never_a_wrong_sum(kind: str) -> None:
    vectors = words(4)
    federation = Federation(session_of(4), vectors).until("mask", {"site3": "mask"})
    masked = federation.server.sum.copy()
    forged(federation, "site0", kind, "site1" if kind == "seeds" else "site3")
    federation.reveal("site1")
    federation.reveal("site2")
    owner = "site1" if kind == "seeds" else "site3"
    with pytest.raises(AggregationError, match=f"{owner} announced; leave out {owner}.*site0, site1, site2"):
        federation.server.total()
    assert (federation.server.sum == masked).all()


def test_seed_that_was_not_committed_to_is_an_error() -> None:
    vectors = words(3)
    federation = Federation(session_of(3), vectors).until("offer")
    federation.share("site0")
    federation.share("site1")
    state, shares = masked_site.share(federation.states["site2"], federation.server.roster())
    federation.states["site2"] = state
    federation.server.add_shares(shares.model_copy(update={"commitment": "0" * 64}))
    for step in (federation.mask, federation.reveal):
        for name in vectors:
            step(name)
    with pytest.raises(AggregationError, match="what site2 announced; leave out site2"):
        federation.server.total()


def test_site_that_gives_out_shares_of_another_key_is_named() -> None:
    vectors = words(5)
    federation = Federation(session_of(5), vectors).until("offer")
    for name in vectors:
        state = federation.states[name]
        if name == "site4":  # shares another mask key than it announced
            assert state.secrets is not None
            other = state.secrets.model_copy(update={"masking": bytes(31) + b"\x01"})
            federation.server.add_shares(
                masked_site.share(state.model_copy(update={"secrets": other}), federation.server.roster())[1]
            )
        else:
            federation.share(name)
    for name in ("site0", "site1", "site2", "site3"):
        federation.mask(name)
    for name in ("site0", "site1", "site2", "site3"):
        federation.reveal(name)
    with pytest.raises(AggregationError, match="what site4 announced; leave out site4"):
        federation.server.total()


def test_sum_waits_for_one_more_site_where_shares_do_not_suffice() -> None:
    vectors = words(4)
    federation = Federation(session_of(4), vectors).until("mask")
    federation.reveal("site0")
    federation.reveal("site1")
    with pytest.raises(QuorumError, match="2 sites sent the shares that unmask the sum, 3 are needed"):
        federation.server.total()
    federation.reveal("site3")
    total = federation.server.total().tolist()
    assert total == exact_sum(vectors, vectors)
    assert federation.server.total().tolist() == total


# -- what the server does not take


def test_server_takes_nothing_twice_late_or_of_strangers() -> None:
    vectors = words(4)
    federation = Federation(session_of(4), vectors)
    server = federation.server
    for name in ("site0", "site1", "site2"):
        federation.offer(name)
    with pytest.raises(ProtocolError, match="site0 sent its keys twice"):
        server.add_offer(federation.states["site0"].offer)
    with pytest.raises(ProtocolError, match="belongs to another sum"):
        server.add_offer(federation.states["site0"].offer.model_copy(update={"session": "0" * 64}))
    _, late = masked_site.begin(federation.session, "site3")
    with pytest.raises(ProtocolError, match="sent a key that is none"):
        server.add_offer(late.model_copy(update={"masking": bytes(32)}))
    federation.share("site0")
    with pytest.raises(ProtocolError, match="a message of site3 came while shares are due"):
        server.add_offer(late)
    _, shares = masked_site.share(federation.states["site1"], server.roster())
    for change in ({"site": "site3"}, {"sealed": {"site0": shares.sealed["site0"]}}):
        with pytest.raises(ProtocolError, match="did not send a share for each other"):
            server.add_shares(shares.model_copy(update=change))
    federation.share("site1")
    federation.share("site2")
    with pytest.raises(ProtocolError, match="site9 sent no shares"):
        server.inbox("site9")
    federation.mask("site0")
    for vector in (np.zeros(40), np.zeros(39, np.uint32), np.zeros((40, 1), np.uint32)):
        with pytest.raises(ProtocolError, match="the vector of site1 should be uint32"):
            server.add_vector("site1", vector)
    with pytest.raises(ProtocolError, match="site0 sent its vectors twice"):
        server.add_vector("site0", vectors["site0"])
    with pytest.raises(ProtocolError, match="site3 sent no shares"):
        server.add_vector("site3", vectors["site0"])
    with pytest.raises(ProtocolError, match="cannot be taken off while vectors come in"):
        server.total()
    with pytest.raises(QuorumError, match="1 sites sent masked numbers, 3 are needed"):
        server.survivors()
    federation.mask("site1")
    federation.mask("site2")
    _, answer = masked_site.reveal(federation.states["site0"], server.request())
    for change in ({"keys": {"site1": answer.seeds["site1"]}}, {"seeds": {}}):
        with pytest.raises(ProtocolError, match="exactly the shares that were asked for"):
            server.add_revealed(answer.model_copy(update=change))
    with pytest.raises(ProtocolError, match="site3 is not in the sum"):
        server.add_revealed(answer.model_copy(update={"site": "site3"}))
    with pytest.raises(ProtocolError, match="no number of the field"):
        server.add_revealed(answer.model_copy(update={"seeds": answer.seeds | {"site1": b"\xff" * 66}}))


def test_one_site_too_many_is_left_out() -> None:
    federation = Federation(session_of(3), words(4))
    with pytest.raises(ProtocolError, match="site3 is one more than the 3 sites"):
        federation.until("offer")


# -- terms


@pytest.mark.parametrize(
    "terms",
    [
        {"minimum": 2}, {"minimum": 5}, {"sites": 2}, {"sites": 1000}, {"threshold": 1}, {"parts": ()},
        {"parts": (Part(name="a", size=1, range=1), Part(name="a", size=1, range=1))},
        {"subject": "two words"}, {"subject": ""}, {"attempt": 0},
        {"more": 1},
    ],
)  # fmt: skip
def test_terms_that_protect_nobody_are_none(terms: dict[str, Any]) -> None:
    good = {"subject": "a", "parts": (Part(name="all", size=1, range=1.0),), "sites": 4}
    assert Session(**good).minimum == 3  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        Session(**good | terms)


def test_enough_is_two_thirds_and_one_and_always_more_than_half() -> None:
    session = session_of(100)
    assert [session.least(n) for n in (3, 4, 5, 6, 7, 8, 9, 100)] == [3, 3, 4, 5, 5, 6, 7, 67]
    assert session_of(8, minimum=6).least(6) == 6
    assert session_of(9, threshold=8).least(9) == 8
    for sites, terms in ((8, {"threshold": 5}), (9, {"threshold": 6, "minimum": 3}), (4, {"threshold": 5})):
        with pytest.raises(PrivacyError, match="two thirds of them and one, and no more than all"):
            session_of(sites, **terms).least(sites)
    for number in (2, 9):
        with pytest.raises(PrivacyError, match=f"{number} sites take part, agreed are 3 to 8"):
            session_of(8).least(number)


def test_two_halves_can_never_be_told_different_survivors() -> None:
    for sites in range(3, 12):
        for threshold in range(2, sites + 1):
            try:
                least = session_of(sites, threshold=threshold).least(sites)
            except PrivacyError:
                continue
            halves = combinations(range(sites), least)
            first = set(next(halves))
            assert all(first & set(other) for other in halves)


def test_peers_without_an_own_key_or_with_one_key_for_two_are_no_peers() -> None:
    keys = node_keys({"a": 0, "b": 0})
    pem = {name: public_bytes(key) for name, key in keys.items()}
    with pytest.raises(ConfigError, match="this site has none"):
        masked_site.begin(session_of(3), "c", peers=pem)
    with pytest.raises(ConfigError, match="two sites have one node key"):
        masked_site.begin(session_of(3), "c", key=keys["a"], peers={"a": pem["a"], "b": pem["a"]})


@pytest.mark.parametrize(
    "make", [lambda: np.zeros(40), lambda: np.zeros(41, np.uint32), lambda: np.zeros(80, np.uint32)[::2]]
)
def test_vector_that_is_not_as_agreed_is_not_masked(make: Callable[[], Any]) -> None:
    federation = Federation(session_of(3), words(3)).until("share")
    with pytest.raises(ProtocolError, match="the vector should be uint32"):
        masked_site.mask(federation.states["site0"], federation.server.inbox("site0"), make())
