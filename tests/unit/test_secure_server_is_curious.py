"""A server that keeps all it sees, asks for more, and says what is not so: it learns the sum or nothing."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray
from scipy import stats

from fedglioma.errors import PrivacyError, ProtocolError
from fedglioma.nodekey import public_bytes
from fedglioma.privacy import masked_site, shamir
from fedglioma.privacy.fixed_point import FixedPoint, Words
from fedglioma.privacy.key_agreement import (
    is_signed,
    is_usable,
    new_secret,
    public_of,
    seal,
    shared_key,
    sign,
    told,
    unseal,
)
from fedglioma.privacy.mask_stream import add_stream
from fedglioma.privacy.masked_site import consent, mask, reveal, share
from fedglioma.privacy.masked_unmask import masks_of, put_together
from fedglioma.privacy.masked_wire import (
    Consent,
    Inbox,
    KeyOffer,
    Revealed,
    Roster,
    SealedShares,
    Survivors,
    UnmaskRequest,
    consent_text,
    pair_text,
)
from tests.masked_fixture import Federation, exact_sum, node_keys, numbers, session_of, words

LENGTH = 20_000


def updates(sites: int) -> dict[str, Words]:
    """Return the coded update of each site: numbers far from uniform."""
    code = FixedPoint(1.0, sites)
    return {f"site{i}": code.encode(numbers(LENGTH, i) ** 3) for i in range(sites)}


def look_random(vector: Words) -> None:
    """Fail where any of the four bytes of 32-bit numbers is not uniform."""
    for column in vector.view(np.uint8).reshape(-1, 4).T:
        assert (
            stats.chisquare(np.bincount(column, minlength=256)).pvalue > 1e-11
        )  # a hundred are looked at, of random keys


def correlation(vector: Words, truth: Words) -> float:
    return float(np.corrcoef(vector.view(np.int32).astype(float), truth.view(np.int32).astype(float))[0, 1])


def unrelated(vector: Words, truth: Words) -> None:
    """Fail where one vector tells anything of another by correlation, of numbers or of lowest bits."""
    most = 7 / np.sqrt(truth.size)  # of random keys: by chance one in 10^11
    assert abs(correlation(vector, truth)) < most
    same = np.mean((vector ^ truth) & np.uint32(1))
    assert abs(same - 0.5) < most


@pytest.fixture(scope="module")
def watched() -> Federation:
    """Five sites, of which one drops out after it gave out shares; all that the server saw."""
    return Federation(session_of(5, LENGTH), updates(5)).until("reveal", {"site4": "mask"})


def masked_vectors(federation: Federation) -> dict[str, Words]:
    return dict(item for item in federation.seen if isinstance(item, tuple))


def test_numbers_that_are_summed_do_look_like_themselves(watched: Federation) -> None:
    truth = watched.vectors["site0"]
    with pytest.raises(AssertionError):
        look_random(truth)
    with pytest.raises(AssertionError):
        unrelated(truth + np.uint32(3), truth)


def test_masked_vectors_look_like_noise(watched: Federation) -> None:
    masked = masked_vectors(watched)
    assert set(masked) == {"site0", "site1", "site2", "site3"}
    for name, vector in masked.items():
        look_random(vector)
        unrelated(vector, watched.vectors[name])


def test_transcript_has_masked_numbers_alone(watched: Federation) -> None:
    kinds = {type(item) for item in watched.seen}
    assert kinds == {
        tuple, KeyOffer, Roster, SealedShares, Inbox, UnmaskRequest, Revealed,
    }  # fmt: skip
    for truth in watched.vectors.values():
        for item in watched.seen:
            content = item[1].tobytes() if isinstance(item, tuple) else item.model_dump_json().encode()
            assert truth[:4].tobytes() not in content
    for state in watched.states.values():
        if state.secrets is not None:  # of the site that dropped out
            for item in watched.seen:
                if not isinstance(item, tuple):
                    assert state.secrets.model_dump(mode="json")["seed"] not in item.model_dump_json()


def test_fields_that_a_site_fills_are_these_and_no_more() -> None:
    filled = {kind.__name__: set(kind.model_fields) for kind in (KeyOffer, SealedShares, Consent, Revealed)}
    assert filled == {
        "KeyOffer": {"session", "site", "sealing", "masking", "signature"},
        "SealedShares": {"session", "site", "commitment", "sealed"},
        "Consent": {"session", "site", "signature"},
        "Revealed": {"session", "site", "seeds", "keys"},
    }


def test_all_that_the_server_can_put_together_does_not_unmask_one_site(watched: Federation) -> None:
    opened = put_together(watched.server.state)
    assert set(opened.seeds) == {"site0", "site1", "site2", "site3"}
    assert set(opened.keys) == {"site4"}
    dropped, offers = opened.keys["site4"], watched.server.state.offers
    bound = watched.server.roster().digest(watched.session)
    for name, vector in masked_vectors(watched).items():
        left = vector.copy()
        add_stream(left, opened.seeds[name], subtract=True)
        about = pair_text("mask", bound, *sorted((name, "site4")))
        add_stream(left, shared_key(dropped, offers[name].masking, about), subtract=name < "site4")
        look_random(left)
        unrelated(left, watched.vectors[name])


def test_with_all_these_keys_the_sum_and_nothing_else_comes_out(watched: Federation) -> None:
    total = np.sum(list(masked_vectors(watched).values()), axis=0, dtype=np.uint32)
    for key, subtract in masks_of(watched.server.state, put_together(watched.server.state)):
        add_stream(total, key, subtract=subtract)
    names = [name for name in watched.vectors if name != "site4"]
    assert (total == np.sum([watched.vectors[name] for name in names], axis=0, dtype=np.uint32)).all()


def test_server_with_all_sites_but_two_learns_the_sum_of_these_two_alone() -> None:
    federation = Federation(session_of(5, LENGTH), updates(5)).until("mask")
    traitors = {name: federation.states[name].secrets for name in ("site2", "site3", "site4")}
    masked, offers = masked_vectors(federation), federation.server.state.offers
    for name in federation.vectors:
        federation.reveal(name)
    seeds, bound = put_together(federation.server.state).seeds, federation.states["site0"].bound
    left = {}
    for name in ("site0", "site1"):
        left[name] = masked[name].copy()
        add_stream(left[name], seeds[name], subtract=True)
        for other, secrets in traitors.items():
            assert secrets is not None
            key = shared_key(secrets.masking, offers[name].masking, pair_text("mask", bound, name, other))
            add_stream(left[name], key, subtract=True)
        look_random(left[name])
        unrelated(left[name], federation.vectors[name])
    assert (left["site0"] + left["site1"] == federation.vectors["site0"] + federation.vectors["site1"]).all()


def test_one_share_too_few_fits_every_seed() -> None:
    federation = Federation(session_of(5), words(5)).until("mask")
    answers = {}
    for name in ("site1", "site2", "site3"):  # 4 are needed
        answers[name] = reveal(federation.states[name], federation.server.request())[1]
    points = federation.server.roster().points
    held = {points[name]: shamir.from_bytes(said.seeds["site0"]) for name, said in answers.items()}
    for guess in (0, 1, 2**255, 2**256 - 1):
        fourth = shamir.join({0: guess} | held, at=points["site4"])
        assert shamir.join(held | {points["site4"]: fourth}) == guess
    truth = reveal(federation.states["site4"], federation.server.request())[1].seeds["site0"]
    known = held | {points["site4"]: shamir.from_bytes(truth)}
    vector = federation.vectors["site0"].copy()
    add_stream(vector, shamir.join(known).to_bytes(32, "big"))
    assert (vector != masked_vectors(federation)["site0"]).all()  # the masks with the others are still there


def test_same_numbers_in_two_sums_are_masked_differently() -> None:
    same = {name: np.zeros(LENGTH, np.uint32) for name in ("a", "b", "c")}
    first, second = (masked_vectors(Federation(session_of(3, LENGTH), same).until("mask")) for _ in range(2))
    for name in same:
        look_random(first[name] - second[name])
    look_random(first["a"] - first["b"])


# -- lists that say what is not so


def offered(sites: int = 4, **terms: Any) -> Federation:
    return Federation(session_of(sites, **terms), words(sites)).until("offer")


def made_up(federation: Federation, name: str, **change: Any) -> KeyOffer:
    offer = masked_site.begin(federation.session, name)[1]
    return offer.model_copy(update=change)


def test_roster_of_fewer_than_three_is_refused_whatever_the_server_says() -> None:
    federation = offered()
    few = Roster(offers=federation.server.roster().offers[:2])
    with pytest.raises(PrivacyError, match="2 sites take part, agreed are 3 to 4"):
        share(federation.states["site0"], few)
    lax = federation.session.model_copy(update={"minimum": 1, "threshold": 2})  # as if nothing checked it
    with pytest.raises(PrivacyError):
        share(federation.states["site0"].model_copy(update={"session": lax}), few)


def test_roster_below_the_agreed_minimum_is_refused() -> None:
    federation = offered(minimum=4)
    few = Roster(offers=federation.server.roster().offers[:3])
    with pytest.raises(PrivacyError, match="3 sites take part, agreed are 4 to 4"):
        share(federation.states["site0"], few)


def test_roster_with_a_site_or_a_key_twice_is_refused() -> None:
    federation = offered()
    a, b, c, d = federation.server.roster().offers
    state = federation.states["site0"]
    with pytest.raises(PrivacyError, match="site1 is listed twice"):
        share(state, Roster(offers=(a, b, c, made_up(federation, "site1"))))
    for twin in (
        d.model_copy(update={"masking": b.masking}),
        d.model_copy(update={"sealing": b.sealing}),
        d.model_copy(update={"sealing": b.masking}),
        d.model_copy(update={"masking": d.sealing}),
    ):
        with pytest.raises(PrivacyError, match=r"site3 have a key twice|site1, site3 have a key twice"):
            share(state, Roster(offers=(a, b, c, twin)))
    with pytest.raises(PrivacyError, match="site0, site3 have a key twice"):
        share(state, Roster(offers=(a, b, c, d.model_copy(update={"masking": a.masking}))))


def test_roster_in_which_the_site_is_not_itself_is_refused() -> None:
    federation = offered()
    a, b, c, d = federation.server.roster().offers
    state = federation.states["site0"]
    with pytest.raises(PrivacyError, match="site0 is missing in the server's list"):
        share(state, Roster(offers=(b, c, d)))
    for change in ({"sealing": new_secret()}, {"masking": new_secret()}, {"signature": b"12345678"}):
        with pytest.raises(PrivacyError, match="site0 has other keys than this site sent"):
            share(state, Roster(offers=(a.model_copy(update=change), b, c, d)))


def test_roster_that_changes_or_is_of_another_sum_is_refused() -> None:
    federation = offered()
    a, b, c, d = federation.server.roster().offers
    state, _ = share(federation.states["site0"], Roster(offers=(a, b, c, d)))
    with pytest.raises(PrivacyError, match="other sites than before"):
        share(state, Roster(offers=(a, b, c)))
    other = made_up(federation, "site3", session="0" * 64)
    with pytest.raises(ProtocolError, match="belongs to another sum"):
        share(federation.states["site1"], Roster(offers=(a, b, c, other)))


def test_key_that_gives_everybody_the_same_mask_is_refused() -> None:
    assert is_usable(public_of(new_secret()))
    for low in (bytes(32), b"\x01" + bytes(31)):
        assert not is_usable(low)
        federation = offered()
        a, b, c, _ = federation.server.roster().offers
        with pytest.raises(ProtocolError, match="no usable X25519 key"):
            share(
                federation.states["site0"],
                Roster(offers=(a, b, c, made_up(federation, "site3", sealing=low))),
            )


def test_sites_that_were_told_different_rosters_have_no_masks_in_common() -> None:
    federation = offered()
    a, b, c, d = federation.server.roster().offers
    other = made_up(federation, "site3")
    one, shares = share(federation.states["site0"], Roster(offers=(a, b, c, d)))
    two, _ = share(federation.states["site1"], Roster(offers=(a, b, c, other)))
    assert one.bound != two.bound
    inbox = Inbox(
        session=two.session.digest, sealed=dict.fromkeys(("site0", "site2", "site3"), shares.sealed["site1"])
    )
    with pytest.raises(PrivacyError, match="shares of site site0 were changed, or are not for this site"):
        mask(two, inbox, words(4)["site1"])


# -- shares on the way


def test_shares_that_were_changed_moved_or_withheld_are_refused() -> None:
    federation = Federation(session_of(4), words(4)).until("share")
    state, inbox = federation.states["site0"], federation.server.inbox("site0")
    vector = words(4)["site0"]
    bits = bytearray(inbox.sealed["site2"])
    bits[40] ^= 1
    for sealed in (
        {"site2": bytes(bits)},
        {"site2": inbox.sealed["site1"]},
        {"site2": federation.server.inbox("site1").sealed["site2"]},
        {"site2": federation.server.inbox("site2").sealed["site0"]},
    ):
        with pytest.raises(PrivacyError, match="the shares of site site2 were changed"):
            mask(state, inbox.model_copy(update={"sealed": inbox.sealed | sealed}), vector)
    few = {name: inbox.sealed[name] for name in ("site1",)}
    with pytest.raises(PrivacyError, match="shares of 2 sites arrived, 3 are needed"):
        mask(state, inbox.model_copy(update={"sealed": few}), vector)
    for name in ("site0", "site9"):
        with pytest.raises(PrivacyError, match=f"shares of {name}, which is no other site"):
            mask(
                state,
                inbox.model_copy(update={"sealed": inbox.sealed | {name: inbox.sealed["site1"]}}),
                vector,
            )
    with pytest.raises(ProtocolError, match="another sum"):
        mask(state, inbox.model_copy(update={"session": "0" * 64}), vector)
    assert (vector == words(4)["site0"]).all()
    masked = mask(state, inbox, vector.copy())
    less = {name: inbox.sealed[name] for name in ("site1", "site2")}
    with pytest.raises(PrivacyError, match="other shares than before"):
        mask(masked, inbox.model_copy(update={"sealed": less}), vector)


def test_sealed_share_opens_for_one_purpose_only() -> None:
    key = new_secret()
    sealed = seal(key, b"share", told("share", "a", "b"))
    assert unseal(key, sealed, told("share", "a", "b")) == b"share"
    assert unseal(key, sealed, told("share", "b", "a")) is None
    assert unseal(new_secret(), sealed, told("share", "a", "b")) is None
    assert unseal(key, b"", told("share", "a", "b")) is None
    assert told("a", "b", "c") != told("a", "bc") != told("ab", "c")


# -- who survived


def survivors_of(federation: Federation, names: Iterable[str]) -> UnmaskRequest:
    return UnmaskRequest(session=federation.session.digest, survivors=tuple(names))


ALL = ("site0", "site1", "site2", "site3", "site4")
ALL8 = tuple(f"site{i}" for i in range(8))


@pytest.mark.parametrize(
    ("names", "words_of_it"),
    [
        (ALL[:3], "only 3 sites survived, 4 are needed"),
        (("site0",), "only 1 sites survived"),
        (ALL[1:], "the server says that it dropped out"),
        ((*ALL[:4], "site9"), "site9 is no site that gave shares"),
        ((*ALL[:3], "site0"), "named twice"),
        ((), "it dropped out"),
    ],
)
def test_lists_of_survivors_that_unmask_one_site_are_refused(
    names: tuple[str, ...], words_of_it: str
) -> None:
    federation = Federation(session_of(5), words(5)).until("mask")
    state = federation.states["site0"]
    with pytest.raises(PrivacyError, match=words_of_it):
        reveal(state, survivors_of(federation, names))
    with pytest.raises(PrivacyError, match=words_of_it):
        consent(state, Survivors(session=federation.session.digest, survivors=names))


def test_survivor_that_gave_no_shares_is_refused() -> None:
    federation = Federation(session_of(5), words(5)).until("mask", {"site4": "share"})
    with pytest.raises(PrivacyError, match="site4 is no site that gave shares"):
        reveal(federation.states["site0"], survivors_of(federation, ALL))


@pytest.mark.parametrize("through_file", [False, True])
def test_second_request_with_other_survivors_is_refused(through_file: bool) -> None:
    federation = Federation(session_of(5), words(5), resumed=through_file).until("mask")
    revealed, answer = reveal(federation.states["site0"], survivors_of(federation, ALL))
    agreed, _ = consent(federation.states["site0"], Survivors(session=answer.session, survivors=ALL))
    for state in (revealed, agreed):
        again = type(state).model_validate_json(state.model_dump_json()) if through_file else state
        with pytest.raises(PrivacyError, match="other survivors than before"):
            reveal(again, survivors_of(federation, ALL[:4]))
    assert reveal(revealed, survivors_of(federation, ALL[::-1]))[1] == answer


def test_of_one_site_a_share_of_one_secret_is_revealed_never_of_both() -> None:
    federation = Federation(session_of(7), words(7))
    federation.until("reveal", {"site2": "mask", "site4": "share"})
    survivors = {"site0", "site1", "site3", "site5", "site6"}
    for name in survivors:
        answer = federation.states[name].answer
        assert answer is not None
        assert set(answer.seeds) == survivors
        assert set(answer.keys) == {"site2"}


def test_nothing_is_revealed_before_anything_was_masked() -> None:
    federation = Federation(session_of(4), words(4)).until("share")
    request = survivors_of(federation, ALL[:4])
    with pytest.raises(PrivacyError, match="at 'shared', the message is for one at 'masked'"):
        reveal(federation.states["site0"], request)
    fresh = masked_site.begin(federation.session, "site0")[0]
    with pytest.raises(PrivacyError, match="at 'offered'"):
        mask(fresh, federation.server.inbox("site0"), words(4)["site0"])


# -- a server that invents sites, where the sites know each other's keys


@pytest.fixture(scope="module")
def keys() -> dict[str, ec.EllipticCurvePrivateKey]:
    return node_keys(dict.fromkeys(ALL))


def test_sites_that_know_each_other_take_part_with_nobody_else(
    keys: dict[str, ec.EllipticCurvePrivateKey],
) -> None:
    federation = Federation(session_of(6), words(5), keys=keys).until("offer")
    offers, state = federation.server.roster().offers, federation.states["site0"]
    stranger = ec.generate_private_key(ec.SECP384R1())
    invented = masked_site.begin(federation.session, "site5", key=stranger)[1]
    with pytest.raises(PrivacyError, match="site5 is not among the sites whose node keys are known"):
        share(state, Roster(offers=(*offers, invented)))
    posing = masked_site.begin(federation.session, "site4", key=stranger)[1]
    with pytest.raises(PrivacyError, match="site4 has keys that its node key did not sign"):
        share(state, Roster(offers=(*offers[:4], posing)))
    with pytest.raises(PrivacyError, match="site4 did not sign its keys"):
        share(state, Roster(offers=(*offers[:4], posing.model_copy(update={"signature": None}))))
    for change in ({"masking": new_secret()}, {"sealing": new_secret()}):
        with pytest.raises(PrivacyError, match="site1 has keys that its node key did not sign"):
            share(state, Roster(offers=(offers[0], offers[1].model_copy(update=change), *offers[2:])))
    share(state, Roster(offers=offers))


@pytest.mark.parametrize(("known", "least"), [(3, 3), (4, 3), (5, 4), (6, 4), (7, 5), (8, 6)])
def test_sites_that_know_each_other_refuse_a_roster_below_two_thirds_of_them(known: int, least: int) -> None:
    everybody = node_keys(dict.fromkeys(ALL8[:known]))
    for chosen in range(3, known + 1):
        session = session_of(chosen)
        states, offers = {}, []
        for name in ALL8[:chosen]:
            peers = {who: public_bytes(key) for who, key in everybody.items() if who != name}
            states[name], offer = masked_site.begin(session, name, key=everybody[name], peers=peers)
            offers.append(offer)
        if chosen < least:
            with pytest.raises(
                PrivacyError, match=f"{chosen} sites take part, this site wants {least} at least"
            ):
                share(states["site0"], Roster(offers=tuple(offers)))
        else:
            share(states["site0"], Roster(offers=tuple(offers)))


def test_least_of_a_site_holds_without_keys_and_can_only_raise_what_follows_from_them() -> None:
    session = session_of(4)
    offers = [masked_site.begin(session, name)[1] for name in ALL8[1:4]]
    state, own = masked_site.begin(session, "site0", least=5)
    with pytest.raises(PrivacyError, match="4 sites take part, this site wants 5 at least"):
        share(state, Roster(offers=(own, *offers)))
    state, own = masked_site.begin(session, "site0", least=4)
    share(state, Roster(offers=(own, *offers)))
    everybody = node_keys(dict.fromkeys(ALL8))
    peers = {name: public_bytes(key) for name, key in everybody.items() if name != "site0"}
    for least, wanted in ((None, 6), (3, 6), (7, 7)):
        found = masked_site.begin(session, "site0", key=everybody["site0"], peers=peers, least=least)[0]
        assert found.least == wanted


def test_threshold_below_the_usual_one_is_refused_by_the_site() -> None:
    federation = Federation(session_of(8, threshold=5), words(8)).until("offer")
    with pytest.raises(PrivacyError, match="a threshold of 5 among 8 sites; it must be 6 at least"):
        share(federation.states["site0"], federation.server.state.roster)


def test_keys_that_were_signed_for_other_terms_are_refused(
    keys: dict[str, ec.EllipticCurvePrivateKey],
) -> None:
    federation = Federation(session_of(5), words(5), keys=keys).until("offer")
    lax = session_of(5, about="another model")
    theirs = masked_site.begin(lax, "site4", key=keys["site4"])[1]
    offers = federation.server.roster().offers
    with pytest.raises(ProtocolError, match="belongs to another sum"):
        share(federation.states["site0"], Roster(offers=(*offers[:4], theirs)))
    relabelled = theirs.model_copy(update={"session": federation.session.digest})
    with pytest.raises(PrivacyError, match="site4 has keys that its node key did not sign"):
        share(federation.states["site0"], Roster(offers=(*offers[:4], relabelled)))


def test_sites_that_know_each_other_reveal_only_what_enough_of_them_were_told(
    keys: dict[str, ec.EllipticCurvePrivateKey],
) -> None:
    federation = Federation(session_of(5), words(5), keys=keys).until("mask")
    request = survivors_of(federation, ALL)
    with pytest.raises(PrivacyError, match="before it was asked who survived"):
        reveal(federation.states["site0"], request)
    others = Survivors(session=federation.session.digest, survivors=ALL[:4])
    told_otherwise = [
        consent(federation.states[name], others, key=keys[name])[1] for name in ("site2", "site3")
    ]
    federation.consent("site0")
    federation.consent("site1")
    real = federation.server.request()
    strangers = [
        Consent(session=request.session, site="site2", signature=sign(keys["site1"], b"anything")),
        Consent(session=request.session, site="site3"),
        *real.consents[1:],  # said twice
        Consent(session=request.session, site="site9", signature=real.consents[0].signature),
    ]
    for consents in ((), real.consents, (*real.consents, *told_otherwise), (*real.consents, *strangers)):
        with pytest.raises(PrivacyError, match=r"[12] sites signed this list of survivors, 4 are needed"):
            reveal(federation.states["site0"], real.model_copy(update={"consents": tuple(consents)}))
    federation.consent("site2")
    federation.consent("site4")
    for name in ("site0", "site1", "site2", "site4"):
        federation.reveal(name)
    assert federation.server.total().tolist() == exact_sum(federation.vectors, ALL)


def test_word_of_a_site_that_is_not_in_the_sum_does_not_count(
    keys: dict[str, ec.EllipticCurvePrivateKey],
) -> None:
    federation = Federation(session_of(5), words(5), keys=keys).until("mask", {"site4": "mask"})
    for name in ALL[:3]:
        federation.consent(name)
    state, real = federation.states["site0"], federation.server.request()
    signature = sign(keys["site4"], consent_text(state.bound, real.survivors))
    more = (*real.consents, Consent(session=real.session, site="site4", signature=signature))
    with pytest.raises(PrivacyError, match="3 sites signed this list of survivors, 4 are needed"):
        reveal(state, real.model_copy(update={"consents": more}))


def test_signature_is_of_one_key_and_text(keys: dict[str, ec.EllipticCurvePrivateKey]) -> None:
    public = public_bytes(keys["site0"]).decode()
    signature = sign(keys["site0"], b"text")
    assert is_signed(public, signature, b"text")
    assert not is_signed(public, signature, b"another")
    assert not is_signed(public, b"12345678", b"text")
    assert not is_signed(public_bytes(keys["site1"]).decode(), signature, b"text")
    for wrong in ("", "-----BEGIN PUBLIC KEY-----\n", public_bytes_of_another_kind()):
        with pytest.raises(PrivacyError, match="something that is none"):
            is_signed(wrong, signature, b"text")


def public_bytes_of_another_kind() -> str:
    return public_bytes(ec.generate_private_key(ec.SECP256R1())).decode()


# -- masks


def aes_ctr(key: bytes, count: int) -> NDArray[np.uint32]:
    """Return AES-256 of 0, 1, 2, ... block by block, as 32-bit numbers."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - a reference
    blocks = b"".join(encryptor.update(i.to_bytes(16, "big")) for i in range(count // 4 + 1))
    return np.frombuffer(blocks, "<u4")[:count]


@pytest.mark.parametrize("count", [0, 1, 3, 65_536, 65_537, 140_001])
def test_mask_is_aes_in_counter_mode_added_modulo_2_32(count: int) -> None:
    key = bytes(range(32))
    vector = np.full(count, 2**32 - 1, np.uint32)
    add_stream(vector, key)
    assert (vector == aes_ctr(key, count) - np.uint32(1)).all()
    add_stream(vector, key, subtract=True)
    assert (vector == 2**32 - 1).all()


def test_first_words_of_a_mask_are_those_of_the_published_vector() -> None:
    # NIST's known answers of AES-256: a block of zeros under a key of zeros
    vector = np.zeros(4, np.uint32)
    add_stream(vector, bytes(32))
    assert vector.tobytes().hex() == "dc95c078a2408989ad48a21492842087"
