"""Whether two hospitals hold the same patient, asked without saying who: keyed tags of ids and images.

The hospitals share a key that the coordinating centre never has. Each sends tags of its training cases,
made with that key, and the server looks which tags came from two hospitals. Without the key a tag cannot
be tried against ids or images, however few there are of them.

A tag is a letter for its kind and 100 bits of HMAC-SHA256 in base32. Kinds are kept apart in what is
hashed, so that no id gives the tag of an image.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

from pydantic import StringConstraints

from fedglioma.case import CHANNELS
from fedglioma.errors import ConfigError, IdentityError
from fedglioma.newfile import PRIVATE, write_new
from fedglioma.pseudonym import SECRET_BYTES, new_secret, plain_id, read_secret

PERSON: Final = "P"
IMAGE: Final = "I"
IMAGES_PER_CASE: Final = len(CHANNELS)
TAGS_PER_CASE: Final = 1 + IMAGES_PER_CASE
MOST_TAGS: Final = 100_000
"""In one message: that of 20,000 cases, and well below the 5 MiB that a part of a message may have."""
_LETTERS: Final = 20

Tag = Annotated[str, StringConstraints(pattern=rf"^[{PERSON}{IMAGE}][A-Z2-7]{{{_LETTERS}}}$")]


def create_linkage_key(path: Path) -> None:
    """Write a new key, for its owner alone.

    Raises
    ------
    ConfigError
        Something of that name is there, or the folder cannot be written.
    IdentityError
        The file system cannot keep a file private.
    """
    try:
        write_new(path, new_secret(), mode=PRIVATE)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path}: the linkage key cannot be written ({reason}); check the folder") from None


def read_linkage_key(path: Path) -> bytes:
    """Return the key of 32 bytes that the hospitals share.

    Raises
    ------
    IdentityError
        The file can be read by others, is a link, or does not hold a key.
    ConfigError
        The file is absent or cannot be read.
    """
    try:
        return read_secret(path, "the linkage key")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"{path}: the linkage key cannot be read ({reason}); get it from the hospital that made it, "
            "or leave linkage_key out of the settings"
        ) from None


def person_tag(key: bytes, number: str) -> str:
    """Return the tag of a person's number; empty where it is absent or a de-identifier's filler.

    Spaces around it, case and Unicode form make no difference.
    """
    plain = plain_id(number)
    return _tag(key, PERSON, "person", plain) if plain else ""


def image_tag(key: bytes, digest: str) -> str:
    """Return the tag of an image, from the digest of its voxels."""
    return _tag(key, IMAGE, "image", digest)


def padded(key: bytes, site: str, tags: Iterable[str], cases: int) -> tuple[str, ...]:
    """Return a site's tags, sorted, among as many of nobody as hide how many there are.

    Parameters
    ----------
    tags : iterable of str
        Those of the site's cases, at most ``TAGS_PER_CASE`` of each.
    cases : int
        How many cases the site says it has, rounded up as it publishes them: of each kind there are then
        as many tags as so many whole cases have.

    Notes
    -----
    Tags of nobody are the same whenever the site is asked: new ones would stand out against the last answer.
    """
    own, sent = sorted(set(tags)), []
    cases = min(cases, MOST_TAGS // TAGS_PER_CASE)
    for kind, each in ((PERSON, 1), (IMAGE, IMAGES_PER_CASE)):
        some = [tag for tag in own if tag.startswith(kind)][: each * cases]
        rest = range(each * cases - len(some))
        sent += [*some, *(_tag(key, kind, "nobody", f"{site}\0{kind}\0{number}") for number in rest)]
    return tuple(sorted(sent))


def _tag(key: bytes, kind: str, domain: str, text: str) -> str:
    if len(key) < SECRET_BYTES:
        raise IdentityError(f"the linkage key has {len(key)} bytes; it needs at least {SECRET_BYTES}")
    content = f"fedglioma linkage {domain}\0{text}".encode("utf-8", "surrogateescape")
    digest = hmac.new(key, content, hashlib.sha256).digest()
    return kind + base64.b32encode(digest)[:_LETTERS].decode("ascii")
