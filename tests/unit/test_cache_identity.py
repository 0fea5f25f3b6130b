"""What may say who the patients are is found in a cache, whatever put it there; a clean one passes."""

import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import Modality
from fedglioma.config.run import RunConfig
from fedglioma.data.cache import Cache, Moved, Placed, Record, Remark
from fedglioma.data.cache_identity import check_cache, look_through
from fedglioma.data.prepare import PrepareSettings
from fedglioma.data.quality import Measures, Quality
from fedglioma.errors import IdentityError
from fedglioma.wire import STATISTICS, Refusal, StatisticsRequest, body_of, request_record
from fedglioma_client.app import app
from fedglioma_client.check import check_site
from fedglioma_client.site import SITE_CONFIG_KEY
from fedglioma_client.verdict import Status, Verdict
from fedglioma_server.inline import InlineGrid
from tests.bad_cohorts import write_cohort

KEY = "ab" * 32
PATIENTS = ("SYN0007", "sub-MÜLLER-1961", "1905", "017")
ARRAY = np.zeros((4, 3, 4, 5), np.float16)
UNMOVED = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
RECORD = Record(
    present=(True, False, True, True),
    spacing_mm=1.0,
    affine=((1.0, 0.0, 0.0, -3.0), (0.0, 1.0, 0.0, -3.0), (0.0, 0.0, 1.0, -3.0), (0.0, 0.0, 0.0, 1.0)),
    box=((0, 3), (0, 4), (0, 5)),
    inputs={Modality.T1: "00ff" * 16},
    voxels={Modality.T1: "11ff" * 16},
    settings=PrepareSettings(brain_extractor="mri_synthstrip -i {input} -m {mask}").model_dump(mode="json"),
    percentiles={Modality.T1: (-1.0, -0.5, 0.0, 0.5, 1.0)},
    reference=Modality.T1,
    grids={Modality.T1: Placed(shape=(1905, 9, 9), affine=UNMOVED)},
    movements={
        Modality.T2: Moved(degrees=1.5, millimetres=2.0, information=0.5, overlap=1.0, matrix=UNMOVED)
    },
    quality=Quality(
        brain_ml=1905.0,
        mask_agreement=None,
        modalities={Modality.T1: Measures(**dict.fromkeys(Measures.model_fields, 0.1905))},
    ),
    scale="cd" * 32,
    remarks=(
        Remark(code="brain_volume", message="the brain has 1905 mL; usual is 900 to 1900 mL"),
        Remark(code="same_contents", message="t1 and t2 show the same image (rank correlation 0.1905)"),
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Cache(tmp_path / "cache").put(KEY, ARRAY, RECORD)
    return tmp_path / "cache"


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / f"{KEY}.json"
    table = json.loads(path.read_text())
    edit(table)
    path.write_text(json.dumps(table))


def codes(folder: Path) -> list[str]:
    return [trace.code for trace in look_through(folder, PATIENTS)[1]]


def test_cache_as_it_is_written_passes(folder: Path) -> None:
    """Figures that happen to be a patient's number, and ids of three characters, are none."""
    (folder / f".{'cd' * 32}.npy.0123abcd.part").write_bytes(b"half")
    (folder / "north").mkdir()
    (folder / "north" / "findings.csv").write_text("SYN0007")
    assert check_cache(folder, PATIENTS) == 2
    assert check_cache(folder / "absent", PATIENTS) == 0


def test_older_entry_that_lacks_a_key_passes(folder: Path) -> None:
    change(folder, lambda table: table["record"].pop("voxels"))
    change(folder, lambda table: table["record"].pop("reference"))
    change(folder, lambda table: table["record"]["settings"].update(version=1))
    assert codes(folder) == []


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], list[str]]] = {
    "a name": (lambda t: t["record"].update(PatientName="ANNA"), ["identifying_key"]),
    "a date, deep": (
        lambda t: t["record"]["remarks"][0].update(more=[{"Study-Date": "20240101"}]),
        ["identifying_key"],
    ),
    "an identifying key among the settings": (
        lambda t: t["record"]["settings"].update(institution_name="East"),
        ["identifying_key"],
    ),
    "an unknown key": (lambda t: t["record"].update(note="ANNA"), ["unknown_key"]),
    "a key beside the record": (lambda t: t.update(ANNA=1), ["unknown_key"]),
    "a key in a remark": (lambda t: t["record"]["remarks"][0].update(by="ANNA"), ["unknown_key"]),
    "a key in quality": (lambda t: t["record"]["quality"].update(by="ANNA"), ["unknown_key"]),
    "a key that is no sequence": (lambda t: t["record"]["inputs"].update(ANNA="00"), ["unknown_key"]),
    "a key in a movement": (lambda t: t["record"]["movements"]["t2"].update(by=1), ["unknown_key"]),
    "a setting that is none": (lambda t: t["record"]["settings"].update(note="ANNA"), ["unknown_key"]),
    "a table among the settings": (
        lambda t: t["record"]["settings"].update(reference={"ANNA": 1}),
        ["unknown_key"],
    ),
    "settings that are none": (lambda t: t["record"].update(settings="ANNA"), ["unknown_key"]),
    "an id in a remark": (
        lambda t: t["record"]["remarks"][0].update(message="of patient SYN0007, too"),
        ["patient_named"],
    ),
    "an id in other letters": (
        lambda t: t["record"]["remarks"][0].update(message="M\u00fcller 1961"),
        ["patient_named"],
    ),
    "an id in a path": (
        lambda t: t["record"]["settings"].update(brain_extractor="/data/syn0007_t1.nii.gz"),
        ["patient_named"],
    ),
    "an id that is a number": (
        lambda t: t["record"]["remarks"][0].update(message="as of 1905, 1905"),
        ["patient_named"],
    ),
    "a key that is an id": (
        lambda t: t["record"]["inputs"].update(SYN0007="00"),
        ["unknown_key", "patient_named"],
    ),
}


@pytest.mark.parametrize("kind", EDITS)
def test_voucher_that_was_edited_is_found(folder: Path, kind: str) -> None:
    edit, expected = EDITS[kind]
    change(folder, edit)
    assert codes(folder) == expected
    with pytest.raises(IdentityError, match=KEY) as raised:
        check_cache(folder, PATIENTS)
    assert raised.value.exit_code == 7
    for told in ("ANNA", "20240101", "East", "SYN0007", "1961", str(folder)):
        assert told.casefold() not in str(raised.value).casefold()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "message",
    [
        "SYN00071",
        "xSYN0007",
        "SYN 0007x",
        "19050",
        "a1905",
        "M\u00fcller 19610",
        "the brain has 1905 mL; usual is 900 mL to 1905 mL",
    ],
)
def test_part_of_a_word_is_no_id(folder: Path, message: str) -> None:
    change(folder, lambda table: table["record"]["remarks"][0].update(message=message))
    assert codes(folder) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ["not_a_voucher"]),
        (b"[]", ["not_a_voucher"]),
        (b'"ANNA"', ["not_a_voucher"]),
        (b'{"record": {}} ANNA', ["not_a_voucher"]),
        (b"\xff\xfe", ["not_a_voucher"]),
        (b"[" * 100_000, ["not_a_voucher"]),
        (b'{"a": ' * 100_000, ["not_a_voucher"]),
        (b'{"array_sha256": "ANNA", "array_sha256": ""}', ["unknown_key"]),
        (b" " * (1 << 22) + b" {}", ["not_a_voucher"]),
    ],
)
def test_voucher_that_is_none_is_found(folder: Path, content: bytes, expected: list[str]) -> None:
    (folder / f"{KEY}.json").write_bytes(content)
    assert codes(folder) == expected


def replace_header(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old, new.ljust(len(old)), 1)


ARRAYS: dict[str, Callable[[bytes], bytes]] = {
    "bytes behind the data": lambda content: content + b"ANNA",
    "cut off": lambda content: content[:-2],
    "empty": lambda _: b"",
    "a comment in the header": replace_header(b" " * 20, b"# ANNA"),
    "text in place of padding": replace_header(b" " * 10, b"ANNA"),
    "one more key": replace_header(b"}" + b" " * 20, b"'x': 'ANNA'}"),
    "objects": replace_header(b"'<f2'", b"'|O8'"),
    "text": replace_header(b"'<f2'", b"'<U9'"),
    "a name in the shape": replace_header(b"(4, 3", b"(ANN"),
    "another magic": lambda content: b"ANNA" + content[4:],
    "a picture": lambda _: b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_array_that_is_more_or_less_than_numbers_is_found(folder: Path, kind: str) -> None:
    path = folder / f"{KEY}.npy"
    before = path.read_bytes()
    path.write_bytes(ARRAYS[kind](before))
    assert path.read_bytes() != before
    assert codes(folder) == ["array_header"]


def test_array_without_its_voucher_and_a_long_header_pass(folder: Path, tmp_path: Path) -> None:
    (folder / f"{KEY}.json").unlink()
    with (folder / f"{'cd' * 32}.npy").open("wb") as file:
        np.lib.format.write_array(file, ARRAY, version=(2, 0))
    assert check_cache(folder, PATIENTS) == 2


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 4), max_size=5), st.sampled_from(["<f2", ">f4", "|u1", "|b1", "<i8"]))
def test_any_array_that_numpy_writes_plainly_passes(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], kind: str
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    np.save(folder / f"{KEY}.npy", np.zeros(shape, kind))
    assert codes(folder) == []
    np.save(folder / f"{KEY}.npy", np.full(shape, "ANNA", "S9"))
    assert codes(folder) == ["array_header"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Anna_t1.nii.gz", "a .nii.gz file"),
        ("ANNA.DCM", "a .dcm file"),
        ("anna.png", "a .png file"),
        ("anna.csv", "a .csv file"),
        ("anna.json", "a .json file"),
        ("scan.anna", "a file of another kind"),
        (f"{KEY}.txt", "a .txt file"),
        (f"{'AB' * 32}.npy", "a .npy file"),
        (".anna.npy.0123abcd.part", "a file of another kind"),
    ],
)
def test_file_that_is_no_entry_is_told_by_its_kind_alone(folder: Path, name: str, told: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(IdentityError) as raised:
        check_cache(folder, PATIENTS)
    assert f"1 not_an_entry ({told})" in str(raised.value)
    assert "anna" not in str(raised.value).casefold()


def test_link_or_pipe_in_place_of_an_entry_is_found_and_not_opened(folder: Path) -> None:
    (folder / f"{'cd' * 32}.npy").symlink_to(folder / f"{KEY}.npy")
    os.mkfifo(folder / f"{'ef' * 32}.json")
    assert codes(folder) == ["not_a_plain_file", "not_a_plain_file"]


def test_many_findings_are_counted_and_three_are_named(folder: Path) -> None:
    for number in range(20):
        (folder / f"anna-{number}.csv").write_bytes(b"")
    with pytest.raises(IdentityError, match=r"20 not_an_entry \(a .csv file, .* and 17 more\)"):
        check_cache(folder, PATIENTS)


def test_five_hundred_entries_are_judged_in_a_moment(folder: Path) -> None:
    text, array = (folder / f"{KEY}.json").read_text(), (folder / f"{KEY}.npy").read_bytes()
    for number in range(500):
        (folder / f"{number:064x}.json").write_text(text)
        (folder / f"{number:064x}.npy").write_bytes(array)
    before = time.process_time()
    assert check_cache(folder, [f"HOSPITAL-{number}" for number in range(500)]) == 1002
    assert time.process_time() - before < 2.0


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    ),
    st.data(),
)
def test_any_json_anywhere_is_judged_and_an_id_in_it_is_found(
    tmp_path_factory: pytest.TempPathFactory, value: Any, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    record = RECORD.model_dump(mode="json")
    place = data.draw(st.sampled_from([*record, "other"]))
    table = {"array_sha256": "", "record_sha256": "", "record": copy.deepcopy(record) | {place: value}}
    (folder / f"{KEY}.json").write_text(json.dumps(table))
    found = codes(folder)
    assert set(found) <= {"identifying_key", "unknown_key", "patient_named"}
    assert ("unknown_key" in found or "identifying_key" in found) or place != "other"
    table["record"] |= {place: [value, {"t1": "seen in SYN0007."}]}
    (folder / f"{KEY}.json").write_text(json.dumps(table))
    assert "patient_named" in codes(folder)


def test_preflight_shows_it_and_ends_with_7(tmp_path: Path) -> None:
    write_cohort(tmp_path / "data")
    path = tmp_path / "north.yaml"
    path.write_text(yaml.safe_dump({"site": "north", "data": "data", "cache": "cache"}))

    def verdict() -> Verdict:
        (found,) = [v for v in check_site("north", path, 8.0).verdicts if v.subject == "identity"]
        return found

    assert verdict().status is Status.OK
    Cache(tmp_path / "cache").put(KEY, ARRAY, RECORD)
    assert verdict().detail == "2 files in the cache, none says who the patients are"
    (tmp_path / "cache" / "Anna.dcm").write_bytes(b"")
    assert (verdict().status, verdict().exit_code) == (Status.FAILED, 7)
    assert "a .dcm file" in verdict().detail
    assert "anna" not in str(verdict()).casefold()


def test_site_refuses_to_take_part_and_tells_the_server_nothing_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_cohort(tmp_path / "data")
    path = tmp_path / "north.yaml"
    path.write_text(yaml.safe_dump({"site": "north", "data": "data", "cache": "cache", "state": "state"}))
    Cache(tmp_path / "cache").put(KEY, ARRAY, RECORD)
    (tmp_path / "cache" / "Anna_Schmidt.nii.gz").write_bytes(b"")
    change(tmp_path / "cache", lambda table: table["record"].update(PatientName="ANNA"))
    asked = StatisticsRequest(run="r", settings=RunConfig(width=1, crop=16, spacing_mm=8))
    grid = InlineGrid(app, [{SITE_CONFIG_KEY: str(path)}], {})
    message = Message(request_record(asked), dst_node_id=1, message_type=STATISTICS, group_id="0")
    (reply,) = grid.send_and_receive([message])
    refusal = body_of(reply.content, Refusal)
    assert (refusal.site, refusal.error, refusal.exit_code) == ("north", "IdentityError", 7)
    assert refusal.reason == "the reason is in the site's own log"
    assert "1 identifying_key" in caplog.text
    assert "patientname" in caplog.text
    assert "1 not_an_entry (a .nii.gz file)" in caplog.text
    assert "anna" not in caplog.text.casefold()
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [
        "Anna_Schmidt.nii.gz",
        f"{KEY}.json",
        f"{KEY}.npy",
    ]
