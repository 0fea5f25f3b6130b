"""Tags of people and images: keyed, of one form, kept apart by kind, and as many as tell nothing."""

import base64
import gzip
import hashlib
import hmac
import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fedglioma.case import Case, Modality
from fedglioma.data.manifest import read_participants
from fedglioma.data.source import Source, voxel_digest
from fedglioma.errors import ConfigError, IdentityError
from fedglioma.linkage import (
    MOST_TAGS,
    Tag,
    create_linkage_key,
    image_tag,
    padded,
    person_tag,
    read_linkage_key,
)

KEY = bytes(range(32))
NUMBER = "11010519491231002X"
FORM = re.compile(r"[PI][A-Z2-7]{20}")


def reference(kind: str, domain: bytes, text: str) -> str:
    digest = hmac.new(KEY, b"fedglioma linkage " + domain + b"\0" + text.encode(), hashlib.sha256).digest()
    return kind + base64.b32encode(digest).decode()[:20]


def test_a_tag_is_a_kind_and_a_hundred_bits_of_a_keyed_hash() -> None:
    assert person_tag(KEY, NUMBER) == reference("P", b"person", NUMBER.lower())
    assert image_tag(KEY, "00ff") == reference("I", b"image", "00ff")


def test_spelling_makes_no_difference_and_the_key_does() -> None:
    assert person_tag(KEY, f" {NUMBER.lower()}\t") == person_tag(KEY, NUMBER)
    assert person_tag(KEY, "\uff11\uff12\uff13\uff14\uff15\uff16") == person_tag(KEY, "123456")
    assert person_tag(bytes(32), NUMBER) != person_tag(KEY, NUMBER)


def test_one_text_gives_another_tag_as_a_person_and_as_an_image() -> None:
    assert person_tag(KEY, "00ff")[1:] != image_tag(KEY, "00ff")[1:]


@pytest.mark.parametrize("filler", ["", "  ", "anonymous", "N/A", "0"])
def test_nobody_has_no_tag(filler: str) -> None:
    assert person_tag(KEY, filler) == ""


def test_a_short_key_is_refused() -> None:
    with pytest.raises(IdentityError, match="needs at least 32"):
        image_tag(b"x" * 31, "00")


@given(st.text(), st.text())
def test_every_tag_has_the_form_that_travels(number: str, digest: str) -> None:
    for tag in (person_tag(KEY, number), image_tag(KEY, digest)):
        assert not tag or FORM.fullmatch(tag)
        assert not tag or TypeAdapter(Tag).validate_python(tag) == tag


@pytest.mark.parametrize(
    "text",
    ["", "P", "PABC", "Q" + "A" * 20, "P" + "A" * 21, "P" + "a" * 20, "P" + "A" * 20 + "\n", "P" + "1" * 20],
)
def test_what_has_another_form_cannot_travel(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Tag).validate_python(text)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 30).flatmap(
        lambda cases: st.tuples(
            st.just(cases), st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=cases)
        )
    )
)
def test_how_many_tags_there_are_follows_from_the_published_cases_alone(
    drawn: tuple[int, list[tuple[bool, int]]],
) -> None:
    cases, held = drawn
    own = {person_tag(KEY, f"number {n}") for n, (known, _) in enumerate(held) if known}
    own |= {image_tag(KEY, f"{n} {m}") for n, (_, images) in enumerate(held) for m in range(images)}
    sent = padded(KEY, "henan", own, cases)
    assert own <= set(sent)
    assert list(sent) == sorted(set(sent))
    assert sum(tag[0] == "P" for tag in sent) == cases
    assert sum(tag[0] == "I" for tag in sent) == 4 * cases
    assert sent == padded(KEY, "henan", own, cases)


def test_tags_of_nobody_are_no_other_sites_and_not_each_others() -> None:
    one, other = (padded(KEY, site, (), 50) for site in ("henan", "ningxia"))
    assert not set(one) & set(other)
    assert len({tag[1:] for tag in (*one, *other)}) == 500


def test_no_site_sends_more_than_a_message_may_hold() -> None:
    own = [person_tag(KEY, f"number {n}") for n in range(3)]
    sent = padded(KEY, "henan", own, 30_000)
    assert len(set(sent)) == MOST_TAGS
    assert set(own) <= set(sent)
    assert len(json.dumps(json.dumps(sent))) < 5 * 2**20


def test_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "linkage.key"
    create_linkage_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(rb"[0-9a-f]{64}\n", path.read_bytes())
    assert read_linkage_key(path) == bytes.fromhex(path.read_text())
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        create_linkage_key(path)
    assert path.read_bytes() == before


def test_key_that_cannot_be_made_or_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written \(No such file"):
        create_linkage_key(tmp_path / "absent" / "key")
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file .* get it from the hospital"):
        read_linkage_key(tmp_path / "absent")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.chmod(0o640), "mode 0640 lets others read the linkage key"),
        (lambda path: path.write_text("short"), "should be 64 hex digits"),
        (lambda path: (path.rename(f"{path}2"), path.symlink_to(f"{path}2")), "is a link"),
    ],
    ids=["mode", "content", "link"],
)
def test_key_that_proves_nothing_is_refused(tmp_path: Path, damage, said: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "linkage.key"
    create_linkage_key(path)
    damage(path)
    with pytest.raises(IdentityError, match=said):
        read_linkage_key(path)


# What is the same about an image, however it is stored


def digest_of(path: Path) -> str:
    source = Source((path,))
    return voxel_digest(source.read(source.digest()))


def image(seed: int = 0) -> nib.Nifti1Image:
    values = np.random.default_rng(seed).integers(0, 900, (5, 6, 7)).astype(np.int16)
    return nib.Nifti1Image(values, np.diag([1.0, 1.1, 1.2, 1.0]))


def test_digest_of_voxels_does_not_depend_on_how_they_are_stored(tmp_path: Path) -> None:
    plain = image()
    nib.save(plain, tmp_path / "plain.nii")
    (tmp_path / "small.nii.gz").write_bytes(gzip.compress((tmp_path / "plain.nii").read_bytes(), 9, mtime=7))
    nib.save(nib.Nifti1Image(plain.get_fdata().astype(">f4"), plain.affine), tmp_path / "float.nii.gz")
    turned = plain.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, tmp_path / "turned.nii")
    moved = nib.Nifti1Image(
        plain.get_fdata().astype(np.int16), plain.affine + np.eye(4)[3] * [[9], [9], [9], [0]]
    )
    moved.header["descrip"] = b"another"
    nib.save(moved, tmp_path / "moved.nii.gz")
    found = {path.name: digest_of(path) for path in sorted(tmp_path.iterdir())}
    assert len(found) == 5
    assert len(set(found.values())) == 1, found
    values = plain.get_fdata().astype("<f4")
    assert found["plain.nii"] == hashlib.sha256(b"(5, 6, 7)" + values.tobytes()).hexdigest()


def test_digest_of_another_image_or_of_one_other_voxel_is_another(tmp_path: Path) -> None:
    values = np.asanyarray(image().dataobj).copy()
    values[1, 2, 3] += 1
    for name, volume in (
        ("a", image()),
        ("b", image(1)),
        ("c", nib.Nifti1Image(values, image().affine)),
        ("d", nib.Nifti1Image(np.asanyarray(image().dataobj)[:-1], image().affine)),
    ):
        nib.save(volume, tmp_path / f"{name}.nii")
    assert len({digest_of(path) for path in tmp_path.iterdir()}) == 4


def test_real_image_is_the_same_compressed_or_not(tmp_path: Path) -> None:
    root = os.environ.get("FEDGLIOMA_REAL_DATA")
    if not root:
        pytest.skip("FEDGLIOMA_REAL_DATA names no folder of real cases")
    path = min(Path(root).rglob("*t1ce.nii.gz"), key=lambda path: path.stat().st_size, default=None)
    if path is None:
        pytest.skip("FEDGLIOMA_REAL_DATA has no T1ce image")
    (tmp_path / "plain.nii").write_bytes(gzip.decompress(path.read_bytes()))
    assert digest_of(path) == digest_of(tmp_path / "plain.nii")


# The number in the table


def table(folder: Path, *numbers: str) -> Path:
    rows = [f"P{n}\t1\t{number}" for n, number in enumerate(numbers)]
    path = folder / "participants.tsv"
    path.write_text("\n".join(["participant_id\tidh\tlinkage_id", *rows]) + "\n", encoding="utf-8")
    return path


def test_number_is_read_and_neither_shown_nor_written(tmp_path: Path) -> None:
    (row,) = read_participants(table(tmp_path, NUMBER)).participants
    assert row.linkage_id == NUMBER
    case = Case(volumes={Modality.T1: tmp_path / "t1.nii"}, **dict(row))
    assert case.linkage_id == NUMBER
    for text in (repr(row), str(row), row.model_dump_json(), repr(case), case.model_dump_json()):
        assert NUMBER not in text
        assert "linkage" not in text
    assert case.model_copy(update={"site": "henan"}).linkage_id == NUMBER


@pytest.mark.parametrize("number", ["", "n/a", "unknown", "anonymous", "none"])
def test_number_that_is_unknown_is_none(tmp_path: Path, number: str) -> None:
    read = read_participants(table(tmp_path, number))
    assert [row.linkage_id for row in read.participants] == [None]
    assert {warning.code for warning in read.warnings} == {"no_column"}


@pytest.mark.parametrize("number", ["12345", "9" * 65, "12\u000745678"])
def test_number_that_cannot_be_one_is_warned_of_and_not_told(tmp_path: Path, number: str) -> None:
    read = read_participants(table(tmp_path, number))
    assert [row.linkage_id for row in read.participants] == [None]
    (warning,) = [warning for warning in read.warnings if warning.code == "linkage_id"]
    assert warning.patient == "P0"
    assert number[:12] not in warning.message
