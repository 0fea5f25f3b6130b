"""The site's privacy ledger in the rounds of a run: asked before anything is spent, written before it leaves.

What was committed for a round is kept with it, so that a server that asks again, after a crash of either,
gets the same update and nothing is spent twice.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, Self, TypeVar
from zipfile import BadZipFile

import numpy as np
from pydantic import JsonValue, ValidationError

from fedglioma.chain import AUDIT_FILE
from fedglioma.config.privacy import PrivacyTerms
from fedglioma.config.run import Payload
from fedglioma.data.person import NUMBER, person_key, signs_of
from fedglioma.errors import BudgetExhausted, PrivacyError
from fedglioma.noise import KEY_BYTES
from fedglioma.privacy.accounting import Mechanism, gaussian_equivalent
from fedglioma.privacy.ledger import Ledger
from fedglioma.privacy.ledger_entries import ReleaseKey, Reservation, member_tags
from fedglioma.privacy.ledger_heads import read_audited
from fedglioma.weights import GROUPS, Packed, digest_of
from fedglioma.wire import TrainReply, TrainRequest
from fedglioma_client.budget import ledger_of, limit_of
from fedglioma_client.intake import secret_of
from fedglioma_client.norms import Norms
from fedglioma_client.site import Site

Answer = TypeVar("Answer")

LONGEST_RUN = 100
NUMBERED = "number of a person "
NOTHING = b""
"""What is kept of a round that failed after its first step."""
_SECRET = b"FEDGLIOMA LEDGER SECRET 1\n"
_OWN = "own norm "


@dataclass(frozen=True)
class Done:
    """What a round came to: report without digest, what leaves, and with FedBN the norms that stay."""

    reply: TrainReply
    update: Packed
    norms: Norms


def told_once(
    site: Site,
    run: str,
    what: str,
    terms: Mapping[str, JsonValue],
    mechanism: Mechanism,
    tell: Callable[[bytes], bytes],
) -> bytes:
    """Return something noised that a run is told of all the site's patients: what it was told, if it was.

    Neither what is answered the second time nor whether it is paid for depends on the patients of then: that
    an answer changed, or did not, would say without noise who came or went meanwhile.

    Parameters
    ----------
    what : str
        ``counts`` or ``landmarks``.
    terms : mapping
        What was asked for besides, of nobody's data; with other terms it is another question.
    tell : callable
        Given a key for the noise, drawn for this answer, what is told.

    Raises
    ------
    BudgetExhausted
        It would cost a patient more than the site allows: it must not leave.
    PrivacyError
        The ledger is not as it was written, or an older copy was put back.
    """
    ledger, key, told = _asked_before(site, run, what, terms)
    if told is not None:
        return told
    ledger.settle(keep=key)
    limit, about = limit_of(site.config), _about_secret(site)
    number = len(_people(site))
    reserved = ledger.reserve(key, [mechanism], _tags(site), limit, patients=number, about=about)
    content = tell(os.urandom(KEY_BYTES))
    ledger.commit(reserved, content)
    return content


def was_told(site: Site, run: str, what: str, terms: Mapping[str, JsonValue]) -> bool:
    """Whether a run was told something already (``told_once``), which then stands."""
    return _asked_before(site, run, what, terms)[2] is not None


def _asked_before(
    site: Site, run: str, what: str, terms: Mapping[str, JsonValue]
) -> tuple[Ledger, ReleaseKey, bytes | None]:
    """Return the ledger, the key of a question in it, and its answer; without one, the key for a new one."""
    ledger = ledger_of(site.config)
    _require_heads(ledger, site, "")
    _require_secret(ledger, site)
    question = hashlib.sha256(json.dumps(dict(terms), sort_keys=True).encode()).hexdigest()[:32]
    key = ReleaseKey(run=_run_name(run), round=0, what=f"{what}:{question}")
    return ledger, *_answered(ledger, key, lambda content: content)


def _answered(
    ledger: Ledger, key: ReleaseKey, read: Callable[[bytes | None], Answer | None]
) -> tuple[ReleaseKey, Answer | None]:
    """Return the key and content of what was committed and can be sent again.

    Where it is gone, or was for something else, the key of another attempt, which is made and paid for anew.
    """
    while ledger.committed(key) is not None:
        if (answer := read(ledger.stored(key))) is not None:
            return key, answer
        key = key.model_copy(update={"attempt": key.attempt + 1})
    return key, None


def _require_heads(ledger: Ledger, site: Site, heard: str) -> None:
    """Refuse a ledger that lacks a head which the server or the site's own audit log has."""
    for head in (heard, read_audited(site.config.lasting_state / AUDIT_FILE).head):
        if head:
            ledger.require_head(head)


def _require_secret(ledger: Ledger, site: Site) -> None:
    """Refuse where patients would not be known again: the secret that they are tagged under is another."""
    own = _about_secret(site)["secret"]
    if any(entry.reserved.about.get("secret", own) != own for entry in ledger.entries()):
        raise PrivacyError(
            f"{site.config.lasting_state}: site_secret is not the one under which the ledger knows its "
            "patients, so that each would seem new; put back the file that belongs to the ledger "
            "(docs/privacy-ledger.md)"
        )


def _about_secret(site: Site) -> dict[str, str | int | float | None]:
    """Return a value by which the site's secret is known again, and which says nothing of it."""
    return {"secret": hmac.new(secret_of(site.config), _SECRET, hashlib.sha256).hexdigest()[:32]}


def require_room(site: Site, terms: PrivacyTerms) -> None:
    """Refuse to join a run of which not one round fits what is left: the others would train in vain.

    Raises
    ------
    BudgetExhausted
        None fits.
    PrivacyError
        The ledger is not as it was written.
    """
    limit = limit_of(site.config)
    if not ledger_of(site.config).allows([_step(terms)], _tags(site), limit):
        raise BudgetExhausted(
            f"the run's terms: not one round of noise multiplier {terms.noise_multiplier:g} fits what is "
            f"left of epsilon {limit.epsilon:g}"
        )


def _step(terms: PrivacyTerms) -> Mechanism:
    """Return what a round of training does to a patient's privacy."""
    return Mechanism(
        noise_multiplier=terms.noise_multiplier,
        sampling_rate=terms.sampling_rate,
        steps=terms.steps_per_round,
    )


def gaussian(epsilon: float, delta: float) -> Mechanism:
    """Return noise that is just (epsilon, delta) private as the ledger counts it."""
    return Mechanism(noise_multiplier=gaussian_equivalent(epsilon, delta), sampling_rate=1.0, steps=1)


@dataclass
class PrivateRound:
    """One private training round and its line in the ledger."""

    ledger: Ledger
    key: ReleaseKey
    site: Site
    request: TrainRequest
    terms: PrivacyTerms
    received: str
    _kept: Done | None = None
    _reserved: Reservation | None = None

    @classmethod
    def of(cls, request: TrainRequest, received: Packed, site: Site, terms: PrivacyTerms) -> Self:
        """Return the round's place in the ledger, which must have every head that was kept beside it.

        An update of then is for the weights of then: for others the round is another attempt, and is paid
        for again. So it is where the update is gone.

        Raises
        ------
        PrivacyError
            The ledger is not as it was written, or an older copy was put back.
        """
        ledger, digest = ledger_of(site.config), digest_of(received)
        _require_heads(ledger, site, request.ledger_head)
        _require_secret(ledger, site)
        asked = ReleaseKey(run=_run_name(request.run), round=request.round)
        read = partial(_unpacked, received=digest, payload=request.settings.payload)
        key, kept = _answered(ledger, asked, read)
        ledger.settle(keep=key)
        return cls(ledger, key, site, request, terms, digest, kept)

    def kept(self) -> Done | None:
        """Return what this round came to if it was done before."""
        return self._kept

    def reserve(self) -> None:
        """Set aside what the round's steps will spend, before the first of them.

        Raises
        ------
        BudgetExhausted
            They would cost a patient more than the site allows.
        """
        terms = self.terms
        # Of all, also those without a label for these tasks: who has one is nobody's business.
        self._reserved = self.ledger.reserve(
            self.key,
            [_step(terms)],
            _tags(self.site),
            limit_of(self.site.config),
            patients=len(_people(self.site)),
            about={
                "model": self.request.settings.model,
                "clip_norm": terms.clip_norm,
                "clipping": terms.clipping,
                "rounds": terms.rounds,
                "run_delta": terms.delta,
                **_about_secret(self.site),
            },
        )

    def commit(self, done: Done) -> None:
        """Put it on disk and the spending into the ledger; only then may report and update leave.

        Norms are kept with them, so that those of a round that a crash took before are not lost.

        Raises
        ------
        PrivacyError
            Nothing is reserved for them any more: they must not leave.
        """
        if self._reserved is not None:
            self.ledger.commit(self._reserved, _packed(done, self.received))

    def lose(self) -> None:
        """Put the spending into the ledger although nothing but a refusal leaves."""
        if self._reserved is not None:
            self.ledger.commit(self._reserved, NOTHING)

    def head(self) -> str:
        """Return the ledger's head, for the server to keep too."""
        return self.ledger.head().digest


def _tags(site: Site) -> tuple[str, ...]:
    """Return the tags of the site's patients: of each id, the person behind it, and a national number.

    Another time point of a person, or a new id with the same number, is not a new person to the ledger.
    """
    ids = {item.case.patient for item in site.cases}
    people = {
        f"{NUMBERED}{sign.text}" if sign.kind == NUMBER else sign.text
        for sign in signs_of(item.case for item in site.cases)
    }
    return member_tags(secret_of(site.config), ids | people)


def _people(site: Site) -> set[str]:
    return {person_key(item.case.patient) for item in site.cases}


def _run_name(run: str) -> str:
    return run if 0 < len(run) <= LONGEST_RUN else hashlib.sha256(run.encode()).hexdigest()


def _packed(done: Done, received: str) -> bytes:
    about = json.dumps({"received": received, "reply": done.reply.model_dump_json()}).encode()
    norms = {f"{_OWN}{name}": norm for name, norm in done.norms.items()}
    arrays: dict[str, Any] = {"about": np.frombuffer(about, np.uint8), **done.update, **norms}
    file = BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _unpacked(stored: bytes | None, received: str, payload: Payload) -> Done | None:
    """Return what was kept; None where it is gone, or was made for other weights or to be masked."""
    if stored is None:
        return None
    try:
        with np.load(BytesIO(stored), allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            if about["received"] != received:
                return None
            reply = TrainReply.model_validate_json(about["reply"])
            if reply.payload != payload:
                return None
            norms = {name.removeprefix(_OWN): file[name] for name in file.files if name.startswith(_OWN)}
            return Done(reply, {group: file[group] for group in GROUPS}, norms)
    except (BadZipFile, EOFError, OSError, ValueError, KeyError, ValidationError):
        return None  # of an older version: it cannot be sent again, and the round is paid for anew
