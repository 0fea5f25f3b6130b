"""Keyed hashes in place of patients' ids, and a look for identity left in what may be kept.

The key is the site's secret: a file of its own, for its owner alone, never sent and never replaced.
Without it nobody can tell which id a tag stands for, or try all ids until one fits.
"""

import base64
import hashlib
import hmac
import os
import secrets
import stat
import struct
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from fedglioma.errors import ConfigError, IdentityError
from fedglioma.newfile import PRIVATE, write_new

SECRET_BYTES: Final = 32
TAG_LENGTH: Final = 16
_NOBODY: Final = frozenset(
    {"", "0", "anon", "anonymized", "anonymised", "anonymous", "deidentified", "n/a", "na", "none", "patient",
     "removed", "unknown", "xxx"}
)  # fmt: skip
"""What de-identification leaves in place of an id: it says nothing about who is the same patient."""

_IDENTIFYING_KEYS: Final = frozenset(
    """accessionnumber acquisitiondate acquisitiondatetime acquisitiontime auxfile birthdate contentdate
    contenttime dateofbirth dbname descrip dob institutionaddress institutionaldepartmentname institutionname
    intentname mrn operatorsname otherpatientids patient patientaddress patientbirthdate patientid patientname
    patientsname performingphysicianname protocolname referringphysicianname requestingphysician seriesdate
    seriesdescription seriesinstanceuid seriestime sopinstanceuid stationname studydate studydescription
    studyid studyinstanceuid studytime""".split()  # noqa: SIM905 - fifty quotes say no more
)

# offset and length of each text in the two versions of the header: nifti1.h and nifti2.h of the NIfTI DFWG
_TEXTS_1: Final = {"descrip": (148, 80), "aux_file": (228, 24), "db_name": (14, 18), "intent_name": (328, 16)}
_TEXTS_2: Final = {"descrip": (240, 80), "aux_file": (320, 24), "intent_name": (508, 16)}


def site_secret(path: Path) -> bytes:
    """Return the site's secret of 32 bytes; the first call makes it, with mode 0600.

    Raises
    ------
    IdentityError
        The file can be read by others, is a link, or does not hold a secret.
    ConfigError
        The file cannot be read or made.
    """
    try:
        try:
            return read_secret(path)
        except FileNotFoundError:
            pass
        with suppress(ConfigError):  # somebody else was first, and theirs counts
            write_new(path, new_secret(), mode=PRIVATE)
        return read_secret(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(
            f"{path}: the site's secret cannot be read or made ({reason}); check the folder"
        ) from None


def pseudonym(secret: bytes, patient: str) -> str:
    """Return 16 letters and digits that stand for a patient's id: base32 of HMAC-SHA256, cut to 80 bits.

    Spaces around the id, its case and its Unicode form make no difference.

    Raises
    ------
    IdentityError
        The secret is shorter than 32 bytes.
    """
    if len(secret) < SECRET_BYTES:
        raise IdentityError(f"the site's secret has {len(secret)} bytes; it needs at least {SECRET_BYTES}")
    digest = hmac.new(secret, _plain(patient).encode("utf-8", "surrogateescape"), hashlib.sha256).digest()
    return base64.b32encode(digest)[:TAG_LENGTH].decode("ascii")


def patient_tag(secret: bytes, patient: str) -> str:
    """Return the pseudonym of a DICOM PatientID; empty where the id is absent or a de-identifier's filler."""
    return pseudonym(secret, patient) if plain_id(patient) else ""


def plain_id(patient: str) -> str:
    """Return what all spellings of one id share; empty where it is absent or a de-identifier's filler.

    Unicode's compatibility form, no outer spaces, no case.
    """
    plain = _plain(patient)
    return "" if plain in _NOBODY else plain


def identifying_fields(content: bytes | Mapping[str, object]) -> tuple[str, ...]:
    """Return the names of the fields that may say who it is; empty when there are none.

    Of a NIfTI file's first bytes (unpacked, 4 KiB are enough): filled ``descrip``, ``aux_file``, ``db_name``
    or ``intent_name``, and header extensions. Of a record: keys, at any depth, of the names that DICOM, BIDS
    and dcm2niix give to identity, place and time. Values are never part of the answer.
    """
    if isinstance(content, Mapping):
        return tuple(sorted(_named(content, 0)))
    return _filled(content)


def new_secret() -> bytes:
    """Return the content of a new file of a secret: 64 hex digits and a line end."""
    return secrets.token_hex(SECRET_BYTES).encode() + b"\n"


def read_secret(path: Path, what: str = "the site's secret") -> bytes:
    """Return the secret of 32 bytes that a file holds; ``what`` it is stands in the errors.

    Raises
    ------
    IdentityError
        The file can be read by others, is a link, or does not hold a secret.
    OSError
        The file is absent or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC) if not path.is_symlink() else None
    if handle is None:
        raise IdentityError(f"{path}: {what} is a link; put the file itself there")
    with os.fdopen(handle, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        text = file.read(4096)
    if mode & 0o077:
        raise IdentityError(f"{path}: mode {mode:04o} lets others read {what}; run chmod 600 on it")
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except (UnicodeDecodeError, ValueError):
        secret = b""
    if len(secret) < SECRET_BYTES:
        raise IdentityError(
            f"{path}: {what} should be {2 * SECRET_BYTES} hex digits and is not; restore it from its backup"
        )
    return secret


def _plain(patient: str) -> str:
    return unicodedata.normalize("NFKC", patient).strip("\0 \t\r\n").casefold()


def _filled(start: bytes) -> tuple[str, ...]:
    sizes = {start[:4]: order for order in ("<", ">")} if len(start) >= 348 else {}
    order = next(
        (o for o in ("<", ">") if sizes and struct.unpack(o + "i", start[:4])[0] in (348, 540)), None
    )
    if order is None:
        return ()
    size = struct.unpack(order + "i", start[:4])[0]
    texts = _TEXTS_1 if size == 348 else _TEXTS_2
    found = [name for name, (place, length) in texts.items() if start[place : place + length].strip(b"\0 ")]
    if start[size : size + 1] not in (b"", b"\0"):
        found.append("extension")
    return tuple(found)


def _named(record: object, depth: int) -> set[str]:
    if depth > 16:
        return set()
    if isinstance(record, Mapping):
        own = {
            str(k)
            for k, v in record.items()
            if _bare(str(k)) in _IDENTIFYING_KEYS and v not in (None, "", [], {})
        }
        return own.union(*(_named(value, depth + 1) for value in record.values()))
    if isinstance(record, list | tuple):
        return set().union(*(_named(value, depth + 1) for value in record))
    return set()


def _bare(key: str) -> str:
    return "".join(sign for sign in key.casefold() if sign.isalnum())
