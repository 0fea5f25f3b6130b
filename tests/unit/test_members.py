"""The folder of public keys: who may connect, also after it changed."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedglioma.errors import ConfigError, IdentityError
from fedglioma.nodekey import create_private_key, public_line, read_private_key
from fedglioma_server import members as module
from fedglioma_server.members import Members


def add(folder: Path, site: str) -> bytes:
    """Write a new key of a site and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    private = folder.parent / f"{site}-{len(list(folder.parent.glob('*.key')))}.key"
    key = create_private_key(private)
    assert read_private_key(private)
    (folder / f"{site}.pub").write_text(public_line(key, site))
    return key


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sites"


def test_sites_are_those_with_a_key_in_the_order_of_their_names(folder):
    keys = {site: add(folder, site) for site in ("zhengzhou", "henan")}
    members = Members(folder)
    assert list(members.sites) == ["henan", "zhengzhou"]
    assert members.sites == keys
    assert members.standing(keys["henan"]) == ("member", "henan")
    assert members.standing(b"another") == ("unknown", "")


def test_revoked_key_counts_as_revoked_even_where_it_still_lies_among_the_others(folder):
    key, other = add(folder, "henan"), add(folder, "ningxia")
    (folder / "revoked").mkdir()
    (folder / "revoked" / "henan-0a1b2c3d.pub").write_text((folder / "henan.pub").read_text())
    members = Members(folder)
    assert members.standing(key) == ("revoked", "henan")
    assert members.sites == {"ningxia": other}


def test_file_of_another_program_is_no_key(folder):
    add(folder, "henan")
    (folder / "._henan.pub").write_bytes(b"\0")
    assert list(Members(folder).sites) == ["henan"]


def test_folder_without_keys_or_that_is_not_there_is_told(folder):
    with pytest.raises(ConfigError, match=r"sites: no such folder of public keys; .*provision makes it"):
        Members(folder)
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"holds no SITE\.pub, so no hospital could join"):
        Members(folder)


def test_one_key_under_two_names_is_refused(folder):
    add(folder, "henan")
    (folder / "ningxia.pub").write_text((folder / "henan.pub").read_text())
    with pytest.raises(IdentityError, match=r"ningxia\.pub: holds the same key as henan\.pub"):
        Members(folder)


def test_file_that_is_named_like_no_site_is_refused(folder):
    add(folder, "henan")
    (folder / "henan.pub").rename(folder / "He Nan.pub")
    with pytest.raises(IdentityError, match=r"He Nan\.pub: 'He Nan' is no site's name"):
        Members(folder)


def test_file_that_is_no_key_is_refused(folder):
    add(folder, "henan")
    (folder / "ningxia.pub").write_text("hello\n")
    with pytest.raises(IdentityError, match=r"ningxia\.pub"):
        Members(folder)


@pytest.fixture
def watched(folder, monkeypatch):
    """A folder that is looked at all the time; who came and who went."""
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    first = add(folder, "henan")
    members = Members(folder)
    seen: list[tuple[str, str, bytes]] = []
    members.watch(
        lambda site, key: seen.append(("came", site, key)), lambda site, key: seen.append(("went", site, key))
    )
    yield folder, members, seen, first
    members.close()


def test_key_that_is_added_is_let_in_while_the_server_runs(watched):
    folder, members, seen, _ = watched
    key = add(folder, "ningxia")
    until(lambda: bool(seen))
    assert seen == [("came", "ningxia", key)]
    assert members.standing(key) == ("member", "ningxia")


def test_key_that_is_moved_to_the_revoked_is_shut_out_while_the_server_runs(watched):
    folder, members, seen, first = watched
    add(folder, "ningxia")
    (folder / "revoked").mkdir()
    (folder / "henan.pub").rename(folder / "revoked" / "henan.pub")
    until(lambda: ("went", "henan", first) in seen)
    assert members.standing(first) == ("revoked", "henan")


def test_new_key_of_a_site_replaces_its_old_one(watched):
    folder, members, seen, first = watched
    key = add(folder, "henan")
    until(lambda: len(seen) == 2)
    assert seen == [("went", "henan", first), ("came", "henan", key)]
    assert members.sites == {"henan": key}


def test_folder_that_cannot_be_read_for_a_while_shuts_nobody_out(watched, caplog):
    folder, members, seen, first = watched
    (folder / "ningxia.pub").write_text("half a key")
    until(lambda: "public keys are not read again" in caplog.text)
    assert members.standing(first) == ("member", "henan")
    key = add(folder, "ningxia")
    until(lambda: bool(seen))
    assert seen == [("came", "ningxia", key)]


def test_watch_ends_when_it_is_closed(watched):
    _, members, _, _ = watched
    members.close()
    until(lambda: not any(thread.name == "members" for thread in threading.enumerate()))
