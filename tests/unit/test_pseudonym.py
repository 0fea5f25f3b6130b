"""Ids become keyed hashes, the key stays, and identity left in a file is found."""

import base64
import hashlib
import hmac
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglioma.errors import ConfigError, IdentityError
from fedglioma.pseudonym import identifying_fields, patient_tag, pseudonym, site_secret

SECRET = bytes(range(32))


def test_it_is_base32_of_a_keyed_sha256() -> None:
    expected = base64.b32encode(hmac.new(SECRET, b"p-17", hashlib.sha256).digest())[:16].decode()
    assert pseudonym(SECRET, "P-17") == expected


def test_spelling_makes_no_difference_and_the_secret_does() -> None:
    assert pseudonym(SECRET, " Müller\0") == pseudonym(SECRET, "Mu\u0308LLER")
    assert pseudonym(SECRET, "P1") != pseudonym(bytes(32), "P1") != pseudonym(bytes(32), "P2")


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(IdentityError, match="needs at least 32"):
        pseudonym(b"x" * 16, "P1")


@given(st.text())
def test_every_id_gets_sixteen_letters_and_digits(patient: str) -> None:
    tag = pseudonym(SECRET, patient)
    assert len(tag) == 16
    assert tag.isalnum()
    assert tag.isupper() or tag.isdigit()


@pytest.mark.parametrize("filler", ["", "  ", "ANON", "Anonymous", "unknown", "0", "Removed"])
def test_fillers_are_nobody(filler: str) -> None:
    assert patient_tag(SECRET, filler) == ""


def test_the_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "site_secret"
    secret = site_secret(path)
    assert len(secret) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert site_secret(path) == secret
    assert [entry.name for entry in tmp_path.iterdir()] == ["site_secret"]
    assert site_secret(tmp_path / "other") != secret


@pytest.mark.parametrize("content", [b"", b"short", b"00" * 31, b"\xff" * 80, b"zz" * 32])
def test_what_is_no_secret_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "site_secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="restore it"):
        site_secret(path)
    assert path.read_bytes() == content


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site_secret"
    site_secret(path)
    path.chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        site_secret(path)


def test_a_link_in_place_of_the_secret_is_refused(tmp_path: Path) -> None:
    site_secret(tmp_path / "real")
    (tmp_path / "site_secret").symlink_to(tmp_path / "real")
    with pytest.raises(IdentityError, match="link"):
        site_secret(tmp_path / "site_secret")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read or made"):
        site_secret(tmp_path / "absent" / "site_secret")


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        *((nib.Nifti1Image, field) for field in ("descrip", "aux_file", "intent_name", "db_name", None)),
        *((nib.Nifti2Image, field) for field in ("descrip", "aux_file", "intent_name", None)),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_filled_texts_of_a_nifti_header_are_found(kind: type, field: str | None, order: str) -> None:
    header = kind.header_class(endianness=order)
    image = kind(np.zeros((4, 4, 4), np.int16), np.eye(4), header)
    if field:
        image.header[field] = b"ANNA"
    assert identifying_fields(image.to_bytes()) == ((field,) if field else ())


def test_an_extension_of_a_nifti_header_is_found() -> None:
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"ANNA"))
    assert identifying_fields(image.to_bytes()) == ("extension",)


def test_identifying_keys_of_a_record_are_found_at_any_depth() -> None:
    record = {
        "present": [True], "inputs": {"t1": "ab12"}, "site": "north",
        "remarks": [{"code": "x", "extra": {"PatientName": "ANNA", "Study_Date": "2024"}}],
        "AcquisitionTime": "", "patient_id": 7,
    }  # fmt: skip
    assert identifying_fields(record) == ("PatientName", "Study_Date", "patient_id")
    assert identifying_fields({"percentiles": {"t1": [1.0]}, "settings": {"version": 2}}) == ()


@given(st.binary(max_size=600))
def test_any_bytes_are_judged(content: bytes) -> None:
    assert isinstance(identifying_fields(content), tuple)


def test_two_at_once_agree_on_one_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "site_secret"
    other = tmp_path / "theirs"
    theirs = site_secret(other)
    link = os.link

    def late(source: Path, target: Path) -> None:
        if not path.exists():
            link(other, path)
        link(source, target)

    monkeypatch.setattr("fedglioma.newfile.os.link", late)
    assert site_secret(path) == theirs
