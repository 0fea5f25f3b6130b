"""What server and sites say to each other in a masked sum; the masked vectors travel beside it.

=================  ==========  ===========================================================
message            direction   content
=================  ==========  ===========================================================
``Session``        to sites    what is to be added, and among how many
``KeyOffer``       to server   two fresh public keys, signed where the site has a node key
``Roster``         to sites    everybody's offer
``SealedShares``   to server   for each other site, shares only it can read; a commitment
``Inbox``          to sites    the shares sealed for this site
masked vector      to server   the numbers, under all masks
``Survivors``      to sites    whose vectors arrived
``Consent``        to server   the site's signature under that list
``UnmaskRequest``  to sites    the same list, and everybody's signatures
``Revealed``       to server   of each survivor one share, of each other site another
=================  ==========  ===========================================================

Bytes are base64 in JSON. What has no field here does not travel.
"""

from typing import Annotated, Final, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from fedglioma.case import Frozen
from fedglioma.errors import PrivacyError
from fedglioma.privacy.fixed_point import Part
from fedglioma.privacy.key_agreement import KEY_BYTES, SEAL_BYTES, digest, told
from fedglioma.privacy.shamir import SHARE_BYTES

FEWEST_SITES: Final = 3
"""With two, each would know the other's numbers from the sum."""
MOST_SITES: Final = 128

Name = Annotated[str, Field(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\z")]
Names = Annotated[tuple[Name, ...], Field(max_length=MOST_SITES)]
Digest = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Key = Annotated[bytes, Field(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Share = Annotated[bytes, Field(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
Signature = Annotated[bytes, Field(min_length=8, max_length=128)]

PAIR_BYTES: Final = 2 * SHARE_BYTES
"""What is sealed for one site: a share of the self mask's seed, then one of the mask key."""
Pair = Annotated[bytes, Field(min_length=PAIR_BYTES, max_length=PAIR_BYTES)]
SealedPair = Annotated[bytes, Field(min_length=PAIR_BYTES + SEAL_BYTES, max_length=PAIR_BYTES + SEAL_BYTES)]


class Binary(Frozen):
    """A message with bytes in it."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


class Session(Frozen):
    """One masked sum, as the server proposes it; all that a site checks hangs on this.

    ``subject`` says whose numbers these are: run, round and kind. A site helps to unmask one sum of a
    subject and never a second, since two sums of the same numbers over different sites would differ by one
    site's. ``attempt`` counts how often the sum was begun. ``sites`` is how many take part at most: it fixes
    the units. ``minimum`` is how many must be in the sum at least. ``threshold``, where set, is how many must
    answer to unmask, and no fewer than without it: two thirds and one. ``about`` is a digest of what else all
    sites must agree on, such as the weights' layout and the run's terms.
    """

    subject: str = Field(min_length=1, max_length=200, pattern=r"\A[!-~]+\z")
    attempt: int = Field(default=1, ge=1)
    parts: tuple[Part, ...] = Field(min_length=1, max_length=256)
    sites: int = Field(ge=FEWEST_SITES, le=MOST_SITES)
    minimum: int = Field(default=FEWEST_SITES, ge=FEWEST_SITES)
    threshold: int | None = Field(default=None, ge=2)
    about: str = Field(default="", max_length=200)

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if len({part.name for part in self.parts}) != len(self.parts):
            raise ValueError("two parts have one name")
        if self.minimum > self.sites:
            raise ValueError(f"minimum {self.minimum} is more than the {self.sites} sites")
        return self

    @property
    def id(self) -> str:
        """The session's name in errors and logs."""
        return f"{self.subject} attempt {self.attempt}"

    @property
    def length(self) -> int:
        """Numbers in the vector."""
        return sum(part.size for part in self.parts)

    @property
    def digest(self) -> str:
        """What sites sign and bind to keys, so that all of them were asked the same."""
        return digest("session", self.model_dump(mode="json"))

    def least(self, sites: int) -> int:
        """Return how many sites of a roster must survive, and reveal, for a sum.

        Raises
        ------
        PrivacyError
            The roster is too small or too large; or fewer would do than two thirds and one. With half of
            them the server could ask two halves about different survivors, and learn both of a site's
            secrets.
        """
        minimum = max(self.minimum, FEWEST_SITES)  # a site holds to it whatever it was sent
        if not minimum <= sites <= self.sites:
            raise PrivacyError(
                f"secure sum: {sites} sites take part, agreed are {minimum} to {self.sites}; "
                "more hospitals must be connected, or the run's minimum changed"
            )
        usual = 2 * sites // 3 + 1
        threshold = max(self.threshold or usual, minimum)
        if not usual <= threshold <= sites:
            raise PrivacyError(
                f"secure sum: a threshold of {threshold} among {sites} sites; it must be {usual} at least, "
                "two thirds of them and one, and no more than all"
            )
        return threshold


class KeyOffer(Binary):
    """A site's public keys for one session: one pair seals shares, the other makes masks."""

    session: Digest
    site: Name
    sealing: Key
    masking: Key
    signature: Signature | None = None

    @property
    def signed(self) -> bytes:
        """What the signature is of."""
        return told("keys", self.session, self.site, self.sealing.hex(), self.masking.hex())


class Roster(Binary):
    """Everybody who takes part."""

    offers: tuple[KeyOffer, ...] = Field(max_length=MOST_SITES)

    @property
    def points(self) -> dict[str, int]:
        """Each site's point on the polynomials: its place in the alphabet, from 1."""
        return {name: i for i, name in enumerate(sorted(offer.site for offer in self.offers), 1)}

    @property
    def by_site(self) -> dict[str, KeyOffer]:
        """The offers by the sites' names."""
        return {offer.site: offer for offer in self.offers}

    def digest(self, session: Session) -> str:
        """Return what stands for session and roster together, whatever the order of the offers."""
        keys: list[JsonValue] = [
            [*row]
            for row in sorted((offer.site, offer.sealing.hex(), offer.masking.hex()) for offer in self.offers)
        ]
        return digest("roster", session.digest, keys)


class SealedShares(Binary):
    """A site's secrets in shares, one pair sealed for each other site; the server can open none."""

    session: Digest
    site: Name
    commitment: Digest
    sealed: dict[Name, SealedPair] = Field(max_length=MOST_SITES)


class Inbox(Binary):
    """The pairs of shares sealed for one site, by maker. These sites and itself are all that count."""

    session: Digest
    sealed: dict[Name, SealedPair] = Field(max_length=MOST_SITES)


class Survivors(Frozen):
    """The sites whose masked vectors arrived."""

    session: Digest
    survivors: Names


class Consent(Binary):
    """A site's word that it was told these survivors and will stand by no others."""

    session: Digest
    site: Name
    signature: Signature | None = None


class UnmaskRequest(Binary):
    """The survivors again, with the signatures of the sites that were told so."""

    session: Digest
    survivors: Names
    consents: tuple[Consent, ...] = Field(default=(), max_length=MOST_SITES)


class Revealed(Binary):
    """A site's shares: of each survivor's seed, and of each mask key of a site that dropped out."""

    session: Digest
    site: Name
    seeds: dict[Name, Share] = Field(max_length=MOST_SITES)
    keys: dict[Name, Share] = Field(max_length=MOST_SITES)


def consent_text(roster: str, survivors: tuple[str, ...]) -> bytes:
    """Return what a consent signs, given the digest of session and roster."""
    return told("survivors", roster, [*sorted(survivors)])


def pair_text(purpose: str, roster: str, *sites: str) -> bytes:
    """Return what a key between two sites is bound to, given the digest of session and roster."""
    return told(purpose, roster, *sites)


def commitment_of(session: str, site: str, seed: bytes) -> str:
    """Return the digest by which a seed is known once it is put together; it hides the seed until then."""
    return digest("seed", session, site, seed.hex())
