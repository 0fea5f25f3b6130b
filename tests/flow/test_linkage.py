"""Two hospitals that share a patient, from their own settings to the names in each one's own folder.

The sites are real ones: settings, tables and images on disk, prepared by the run itself; only the road
between them and the server is short.
"""

import csv
import gzip
import logging
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from flwr.app import Message

from fedglioma.config.run import RunConfig
from fedglioma.linkage import create_linkage_key
from fedglioma.wire import StatisticsReply, TrainRequest, body_of
from fedglioma_client.app import app
from fedglioma_client.linkage import SHARED_NAME
from fedglioma_client.site import SITE_CONFIG_KEY, _real_site
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.federation import run_federation
from fedglioma_server.inline import InlineGrid
from fedglioma_server.records import SharedPatients
from fedglioma_server.runfolder import RunFolder
from tests.bad_cohorts import COLUMNS, PATIENTS, ROWS, brain, write_table, write_volume
from tests.federation_fixture import make_plan

SETTINGS = RunConfig(
    **{"width": 1, "crop": 16, "spacing_mm": 8.0, "rounds": 1, "batch_size": 3, "bootstrap": 100},
    find_duplicates=True,
    bias_correction=False,
)
NUMBERS = {
    "henan": ("110105194912310021", "n/a", "330106198001011234"),
    "ningxia": ("640102197505055678", "n/a", " 110105194912310021"),
}
PLANTED = [number.strip() for numbers in NUMBERS.values() for number in numbers if number != "n/a"]


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedglioma_server.federation.conclude", lambda *_args: None)


def write_hospital(root: Path, site: str, decade: int, *, key: bool = True) -> Path:
    """Write a hospital's three patients, H0001 to H0003 or N0001 to N0003, and return its settings' path."""
    folder = root / site
    names = [f"{site[0].upper()}000{number}" for number in range(1, 1 + len(PATIENTS))]
    for number, name in enumerate(names):
        (folder / "data" / name).mkdir(parents=True)
        for channel, word in enumerate(("flair", "t1ce", "t1", "t2")):
            image = brain(10 * (decade + number) + channel)
            write_volume(folder / "data" / name / f"{name}_{word}.nii.gz", image)
    rows = [
        (name, site, *row[2:], number) for name, row, number in zip(names, ROWS, NUMBERS[site], strict=True)
    ]
    write_table(folder / "data", [[*COLUMNS, "linkage_id"], *rows])
    table = {"site": site, "data": "data", "cache": "cache", "state": "state", "threads": 1}
    if key:
        table["linkage_key"] = "../linkage.key"
    (folder / f"{site}.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    return folder / f"{site}.yaml"


def share_image(root: Path) -> None:
    """Give ningxia's second patient henan's second patient's FLAIR, turned and stored in another way."""
    given = nib.load(root / "henan" / "data" / "H0002" / "H0002_flair.nii.gz")
    given = given.as_reoriented(np.array([[1, 1], [0, -1], [2, 1]]))
    target = root / "ningxia" / "data" / "N0002" / "N0002_flair.nii.gz"
    target.write_bytes(gzip.compress(given.to_bytes(), 1))


def federate(
    root: Path, paths: Sequence[Path], settings: RunConfig = SETTINGS
) -> tuple[RunFolder, list[Message]]:
    plan = make_plan(root / "server", settings, sites={}, held_out=2)
    seen: list[Message] = []
    grid = InlineGrid(app, [{SITE_CONFIG_KEY: str(path)} for path in paths], {}, tap=seen.append)
    coordinator = Coordinator(
        path=plan.run_folder, settings=settings, selection=plan.selection, threads=1, sites=len(paths)
    )
    _real_site.cache_clear()
    run_federation(grid, coordinator)
    return coordinator.folder, seen


def listed(path: Path) -> list[list[str]]:
    with (path.parent / "state" / SHARED_NAME).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))[1:]


def test_patient_of_two_hospitals_is_flagged_to_both_and_named_to_nobody_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    create_linkage_key(tmp_path / "linkage.key")
    paths = [write_hospital(tmp_path, "henan", 0), write_hospital(tmp_path, "ningxia", 5)]
    share_image(tmp_path)
    with caplog.at_level(logging.DEBUG):
        folder, seen = federate(tmp_path, paths)
    assert listed(paths[0]) == [["H0001", "linkage_id"], ["H0002", "flair"]]
    assert listed(paths[1]) == [["N0002", "flair"], ["N0003", "linkage_id"]]
    record = folder.read()
    assert record.linkage is not None
    assert record.linkage.pairs == [
        SharedPatients(sites=("henan", "ningxia"), at_least=None, small_cell_limit=5)
    ]
    assert "henan and ningxia: at least 1 patient" in caplog.text
    assert caplog.text.count("2 patients are here and at another hospital") == 2
    assert [site.status for site in folder.rounds()[1].sites.values()] == ["ok", "ok"]

    # Each site sends as many tags as its published 5 cases could have, and hears of its own alone.
    sent = {
        reply.site: set(reply.linkage)
        for reply in (
            body_of(m.content, StatisticsReply) for m in seen if '"kind":"statistics"' in text_of(m)
        )
    }
    assert {len(tags) for tags in sent.values()} == {25}
    told = [body_of(m.content, TrainRequest).shared for m in seen if '"class_counts"' in text_of(m)]
    assert [set(tags) for tags in told] == [sent["henan"] & sent["ningxia"]] * 2
    assert len(told[0]) == 2

    # The numbers and the key are in the table and the key's file, and nowhere else.
    secret = (tmp_path / "linkage.key").read_text().strip()
    words = [*PLANTED, secret, *(f"{letter}000{n}" for letter in "HN" for n in (1, 2, 3))]
    outgoing = " ".join(text_of(message) for message in seen)
    assert not [word for word in words if word in outgoing or word in caplog.text]
    allowed = {"participants.tsv", "linkage.key"}
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name not in allowed:
            content = path.read_bytes()
            assert not [word for word in (*PLANTED, secret) if word.encode() in content], path.name


def text_of(message: Message) -> str:
    return "".join(str(record.get("json", "")) for record in message.content.config_records.values())


@pytest.mark.parametrize("case", ["no key", "not asked"])
def test_nothing_is_compared_unless_run_and_both_hospitals_want_it(tmp_path: Path, case: str) -> None:
    create_linkage_key(tmp_path / "linkage.key")
    paths = [
        write_hospital(tmp_path, "henan", 0),
        write_hospital(tmp_path, "ningxia", 5, key=case != "no key"),
    ]
    share_image(tmp_path)
    settings = SETTINGS if case == "no key" else SETTINGS.model_copy(update={"find_duplicates": False})
    folder, seen = federate(tmp_path, paths, settings)
    linkage = folder.read().linkage
    if case == "no key":
        assert linkage is not None
        assert (linkage.compared, linkage.pairs) == (["henan"], [])
    else:
        assert linkage is None
        assert not [m for m in seen if '"linkage":["' in text_of(m)]
    assert not list(tmp_path.rglob(SHARED_NAME))
