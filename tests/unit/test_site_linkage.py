"""A site's part in the search for patients at two hospitals: its tags, and whom the answer means."""

import csv
import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedglioma.case import Case, Modality
from fedglioma.config.site import SiteConfig, load_site_config
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError, IdentityError
from fedglioma.linkage import create_linkage_key, image_tag, person_tag, read_linkage_key
from fedglioma_client import cli
from fedglioma_client.linkage import SHARED_NAME, check_linkage, name_shared, tags_of
from fedglioma_client.site import Site
from fedglioma_client.verdict import Status
from tests.federation_fixture import MARK, TINY, prepared_case

ASKED = TINY.model_copy(update={"find_duplicates": True})
NUMBERS = ("110105194912310021", None, "998877 ")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Three patients with their images' digests, two of them with a number; a key."""
    create_linkage_key(tmp_path / "linkage.key")
    config = SiteConfig(
        site="henan",
        data=tmp_path,
        linkage_key=tmp_path / "linkage.key",
        state=tmp_path / "state",
        small_cell_limit=5,
    )
    return Site(config, tuple(known(tmp_path, n, number) for n, number in enumerate(NUMBERS)))


def known(folder: Path, number: int, person: str | None) -> PreparedCase:
    made = prepared_case(folder / "cache", "henan", number)
    voxels = {modality: f"{number} {modality}" for modality in made.case.present}
    return replace(made, case=made.case.model_copy(update={"linkage_id": person}), voxels=voxels)


def key_of(site: Site) -> bytes:
    assert site.config.linkage_key is not None
    return read_linkage_key(site.config.linkage_key)


def listed(site: Site) -> list[dict[str, str]]:
    with (site.config.state / SHARED_NAME).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_tags_go_out_only_where_run_and_site_want_it(site: Site) -> None:
    assert tags_of(site, TINY, 5) == ()
    assert tags_of(replace(site, config=site.config.model_copy(update={"linkage_key": None})), ASKED, 5) == ()
    sent = tags_of(site, ASKED, 5)
    key = key_of(site)
    assert len(sent) == 25
    assert {person_tag(key, "998877"), person_tag(key, str(NUMBERS[0]))} <= set(sent)
    for number, made in enumerate(site.cases):
        assert {image_tag(key, f"{number} {modality}") for modality in made.case.present} <= set(sent)


def test_nothing_of_a_patient_stands_in_the_tags(site: Site) -> None:
    sent = " ".join(tags_of(site, ASKED, 5))
    assert re.fullmatch(r"([PI][A-Z2-7]{20} ?)+", sent)
    assert MARK not in sent
    assert not any(number and number.strip() in sent for number in NUMBERS)


def test_who_is_shared_is_named_in_the_sites_own_folder_for_its_owner_alone(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    key = key_of(site)
    shared = (
        person_tag(key, "998877"),
        image_tag(key, f"0 {Modality.T1}"),
        image_tag(key, f"0 {Modality.FLAIR}"),
        image_tag(key, "somebody else's"),
    )
    with caplog.at_level(logging.DEBUG):
        name_shared(site, ASKED, shared)
    assert listed(site) == [
        {"patient": f"{MARK}-henan-0", "matched": "flair t1"},
        {"patient": f"{MARK}-henan-2", "matched": "linkage_id"},
    ]
    path = site.config.state / SHARED_NAME
    assert path.stat().st_mode & 0o777 == 0o600
    assert "998877" not in path.read_text()
    assert "2 patients are here and at another hospital" in caplog.text
    assert MARK not in caplog.text
    assert str(site.config.state) not in caplog.text


def test_list_is_told_of_when_it_changes_and_goes_when_nobody_is_shared(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    shared = (person_tag(key_of(site), "998877"),)
    for _ in range(3):
        name_shared(site, ASKED, shared)
    assert [record.getMessage() for record in caplog.records] == [
        "1 patient is here and at another hospital of this run, at least by one image or number; "
        f"{SHARED_NAME} in the state folder names them; nobody was left out"
    ]
    name_shared(site, TINY, ())
    assert len(listed(site)) == 1
    name_shared(site, ASKED, ())
    assert not (site.config.state / SHARED_NAME).exists()


def test_tags_that_are_not_the_sites_own_say_nothing(site: Site) -> None:
    assert name_shared(site, ASKED, ("P" + "A" * 20, "I" + "7" * 20)) == ()
    assert not site.config.state.exists()


def test_name_that_a_spreadsheet_would_compute_is_shown(site: Site) -> None:
    first = site.cases[2]
    odd = replace(first, case=first.case.model_copy(update={"patient": "=1+1"}))
    name_shared(replace(site, cases=(odd,)), ASKED, (person_tag(key_of(site), "998877"),))
    assert listed(site)[0]["patient"] == "'=1+1"


@pytest.mark.parametrize(("damage", "error"), [("mode", IdentityError), ("gone", ConfigError)])
def test_key_that_cannot_be_used_keeps_the_site_from_answering(
    site: Site, damage: str, error: type[Exception]
) -> None:
    path = site.config.linkage_key
    assert path is not None
    if damage == "gone":
        path.unlink()
    else:
        path.chmod(0o644)
    with pytest.raises(error):
        tags_of(site, ASKED, 5)
    (verdict,) = check_linkage(site.config, [made.case for made in site.cases])
    assert verdict.status is Status.FAILED
    assert verdict.exit_code == (2 if damage == "gone" else 7)


def test_check_says_whose_number_is_known(site: Site) -> None:
    cases: list[Case] = [made.case for made in site.cases]
    (verdict,) = check_linkage(site.config, cases)
    assert (verdict.status, verdict.detail) == (
        Status.OK,
        "the key can be read; linkage_id is known of 2 of 3 patients",
    )
    (doubt,) = check_linkage(site.config, cases[1:2])
    assert doubt.status is Status.WARNING
    assert check_linkage(site.config.model_copy(update={"linkage_key": None}), cases) == []


def test_key_is_found_beside_the_settings(tmp_path: Path) -> None:
    (tmp_path / "henan.yaml").write_text("site: henan\ndata: data\nlinkage_key: keys/linkage.key\n")
    assert load_site_config(tmp_path / "henan.yaml").linkage_key == tmp_path / "keys" / "linkage.key"
    (tmp_path / "henan.yaml").write_text("site: henan\ndata: data\nlinkage_key: null\n")
    assert load_site_config(tmp_path / "henan.yaml").linkage_key is None


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> Result:
    monkeypatch.setattr("fedglioma.log.configure", lambda *_args, **_options: None)
    monkeypatch.delenv("FEDGLIOMA_SITE", raising=False)
    return CliRunner().invoke(cli.app, ["linkage-key", *words])


def test_command_makes_a_key_once_and_says_who_must_never_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "linkage.key"
    result = command(monkeypatch, str(path))
    assert result.exit_code == 0
    secret = path.read_text().strip()
    assert read_linkage_key(path).hex() == secret
    assert "data managers of the other hospitals" in result.stdout
    assert "never: give it to the coordinating centre" in result.stdout
    assert secret not in result.output
    again = command(monkeypatch, str(path))
    assert again.exit_code == 2
    assert "is there already and is never overwritten" in again.stderr
    assert path.read_text().strip() == secret
    told = command(monkeypatch, str(tmp_path / "second.key"), "--format", "json")
    assert json.loads(told.stdout)["data"] == {"linkage_key": str(tmp_path / "second.key")}
