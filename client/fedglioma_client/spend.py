"""The site's privacy ledger in the rounds of a run: asked before anything is spent, written before it leaves.

What was committed for a round is kept with it, so that a server that asks again, after a crash of either,
gets the same update and nothing is spent twice.
"""

import hashlib
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
from fedglioma.counts import has_target
from fedglioma.data.prepared import PreparedCase
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

Kept = tuple[TrainReply, Packed]


def spend_once(site: Site, what: str, content: bytes, mechanism: Mechanism) -> None:
    """Record that something noised is told of all the site's patients, unless it was told before.

    Parameters
    ----------
    what : str
        ``counts`` or ``landmarks``.
    content : bytes
        What is told; the same content is the same release.

    Raises
    ------
    BudgetExhausted
        It would cost a patient more than the site allows: it must not leave.
    PrivacyError
        The ledger is not as it was written.
    """
    ledger = ledger_of(site.config)
    digest = hashlib.sha256(content).hexdigest()
    key = ReleaseKey(run=STATISTICS_RUN, round=0, what=f"{what}:{digest[:32]}")
    if ledger.committed(key) is None:
        reserved = ledger.reserve(key, [mechanism], _tags(site, site.cases), limit_of(site.config))
        ledger.commit(reserved, content)


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
        for head in (request.ledger_head, read_audited(site.config.state / AUDIT_FILE).head):
            if head:
                ledger.require_head(head)
        key, kept = ReleaseKey(run=_run_name(request.run), round=request.round), None
        while kept is None and ledger.committed(key) is not None:
            kept = _unpacked(ledger.stored(key), digest)
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
        mechanism = Mechanism(
            noise_multiplier=terms.noise_multiplier,
            sampling_rate=terms.sampling_rate,
            steps=terms.steps_per_round,
        )
        trained = [item for item in self.site.cases if has_target(item.case, self.request.settings.tasks)]
        self._reserved = self.ledger.reserve(
            self.key,
            [mechanism],
            _tags(self.site, trained),
            limit_of(self.site.config),
            about={
                "model": self.request.settings.model,
                "clip_norm": terms.clip_norm,
                "clipping": terms.clipping,
                "rounds": terms.rounds,
                "run_delta": terms.delta,
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


def _unpacked(stored: bytes | None, received: str) -> Kept | None:
    """Return report and update; None where they are gone or were made for other weights."""
    if stored is None:
        return None
    try:
        with np.load(BytesIO(stored), allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            if about["received"] != received:
                return None
            reply = TrainReply.model_validate_json(about["reply"])
            return reply, {group: file[group] for group in GROUPS}
    except (BadZipFile, OSError, ValueError, KeyError, ValidationError):
        return None  # of an older version: it cannot be sent again, and the round is paid for anew
