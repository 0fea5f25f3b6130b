"""The site's privacy ledger in the rounds of a run: asked before anything is spent, written before it leaves.

What was committed for a round is kept with it, so that a server that asks again, after a crash of either,
gets the same update and nothing is spent twice.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from pydantic import ValidationError

from fedglioma.chain import AUDIT_FILE
from fedglioma.config.privacy import PrivacyTerms
from fedglioma.config.run import Payload
from fedglioma.counts import has_target
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import BudgetExhausted, PrivacyError
from fedglioma.privacy.accounting import Mechanism, gaussian_equivalent
from fedglioma.privacy.ledger import Ledger
from fedglioma.privacy.ledger_entries import ReleaseKey, Reservation, member_tags
from fedglioma.privacy.ledger_heads import read_audited
from fedglioma.weights import GROUPS, Packed, digest_of
from fedglioma.wire import TrainReply, TrainRequest
from fedglioma_client.budget import ledger_of, limit_of
from fedglioma_client.intake import secret_of
from fedglioma_client.site import Site

STATISTICS_RUN = "statistics"
"""What is told before the rounds depends on the patients and the terms alone: told again, it is the same."""
LONGEST_RUN = 100
NOTHING = b""
"""What is kept of a round that failed after its first step."""
_SECRET = b"FEDGLIOMA LEDGER SECRET 1\n"

Kept = tuple[TrainReply, Packed]


def spend_once(site: Site, what: str, question: str, mechanism: Mechanism, content: bytes) -> None:
    """Record that something noised is told of all the site's patients, unless it was told before.

    Parameters
    ----------
    what : str
        ``counts`` or ``landmarks``.
    question : str
        A digest of all that decides the answer, noise included; the same question has the same answer.
    content : bytes
        What is told.

    Raises
    ------
    BudgetExhausted
        It would cost a patient more than the site allows: it must not leave.
    PrivacyError
        The ledger is not as it was written, or an older copy was put back.
    """
    ledger = ledger_of(site.config)
    _require_heads(ledger, site, "")
    _require_secret(ledger, site)
    key = ReleaseKey(run=STATISTICS_RUN, round=0, what=f"{what}:{question[:32]}")
    if ledger.committed(key) is None:
        about = _about_secret(site)
        limit = limit_of(site.config)
        reserved = ledger.reserve(key, [mechanism], _tags(site, site.cases), limit, about=about)
        ledger.commit(reserved, content)


def _require_heads(ledger: Ledger, site: Site, heard: str) -> None:
    """Refuse a ledger that lacks a head which the server or the site's own audit log has."""
    for head in (heard, read_audited(site.config.state / AUDIT_FILE).head):
        if head:
            ledger.require_head(head)


def _require_secret(ledger: Ledger, site: Site) -> None:
    """Refuse where patients would not be known again: the secret that they are tagged under is another."""
    own = _about_secret(site)["secret"]
    if any(entry.reserved.about.get("secret", own) != own for entry in ledger.entries()):
        raise PrivacyError(
            f"{site.config.state}: site_secret is not the one under which the ledger knows its patients, so "
            "that each would seem new; put back the file that belongs to the ledger (docs/privacy-ledger.md)"
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
    if not ledger_of(site.config).allows([_step(terms)], _tags(site, site.cases), limit):
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
    _kept: Kept | None = None
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
        key, kept = ReleaseKey(run=_run_name(request.run), round=request.round), None
        while kept is None and ledger.committed(key) is not None:
            kept = _unpacked(ledger.stored(key), digest, request.settings.payload)
            if kept is None:
                key = key.model_copy(update={"attempt": key.attempt + 1})
        ledger.settle(keep=key)
        return cls(ledger, key, site, request, terms, digest, kept)

    def kept(self) -> Kept | None:
        """Return report and update of this round if it was done before."""
        return self._kept

    def reserve(self) -> None:
        """Set aside what the round's steps will spend, before the first of them.

        Raises
        ------
        BudgetExhausted
            They would cost a patient more than the site allows.
        """
        terms = self.terms
        trained = [item for item in self.site.cases if has_target(item.case, self.request.settings.tasks)]
        self._reserved = self.ledger.reserve(
            self.key,
            [_step(terms)],
            _tags(self.site, trained),
            limit_of(self.site.config),
            about={
                "model": self.request.settings.model,
                "clip_norm": terms.clip_norm,
                "clipping": terms.clipping,
                "rounds": terms.rounds,
                "run_delta": terms.delta,
                **_about_secret(self.site),
            },
        )

    def commit(self, reply: TrainReply, content: Packed) -> None:
        """Put report and update on disk and the spending into the ledger; only then may they leave.

        Raises
        ------
        PrivacyError
            Nothing is reserved for them any more: they must not leave.
        """
        if self._reserved is not None:
            self.ledger.commit(self._reserved, _packed(reply, content, self.received))

    def lose(self) -> None:
        """Put the spending into the ledger although nothing but a refusal leaves."""
        if self._reserved is not None:
            self.ledger.commit(self._reserved, NOTHING)

    def head(self) -> str:
        """Return the ledger's head, for the server to keep too."""
        return self.ledger.head().digest


def _tags(site: Site, cases: Iterable[PreparedCase]) -> tuple[str, ...]:
    return member_tags(secret_of(site.config), {item.case.patient for item in cases})


def _run_name(run: str) -> str:
    return run if 0 < len(run) <= LONGEST_RUN else hashlib.sha256(run.encode()).hexdigest()


def _packed(reply: TrainReply, content: Packed, received: str) -> bytes:
    about = json.dumps({"received": received, "reply": reply.model_dump_json()}).encode()
    arrays: dict[str, Any] = {"about": np.frombuffer(about, np.uint8), **content}
    file = BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _unpacked(stored: bytes | None, received: str, payload: Payload) -> Kept | None:
    """Return report and update; None where they are gone, or were made for other weights or to be masked."""
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
            return reply, {group: file[group] for group in GROUPS}
    except (BadZipFile, EOFError, OSError, ValueError, KeyError, ValidationError):
        return None  # of an older version: it cannot be sent again, and the round is paid for anew
