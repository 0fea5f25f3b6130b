"""The one bundle that this version ships and accepts: always the same bytes, and no code."""

import hashlib
import subprocess
import sys
import tomllib
import zipfile
from io import BytesIO

from flwr.common.config import get_fused_config_from_fab
from flwr.supercore.run import Run

from fedglioma.bundle import build_bundle
from fedglioma_client.app import app as client_app
from fedglioma_server.app import app as server_app


def contents() -> zipfile.ZipFile:
    return zipfile.ZipFile(BytesIO(build_bundle().content))


def settings() -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    return tomllib.loads(contents().read("pyproject.toml").decode("utf-8"))


def test_digest_is_that_of_the_content():
    assert build_bundle().digest == hashlib.sha256(build_bundle().content).hexdigest()


def test_bundle_holds_settings_and_nothing_that_could_run():
    assert sorted(contents().namelist()) == [".info/CONTENT", "pyproject.toml"]
    assert len(build_bundle().content) < 2000
    assert (
        "config" not in settings()["tool"]["flwr"]["app"] or settings()["tool"]["flwr"]["app"]["config"] == {}
    )


def test_another_process_builds_the_same_bytes():
    text = "from fedglioma.bundle import build_bundle; print(build_bundle().digest)"
    told = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, cwd="/"
    )
    assert told.stdout.strip() == build_bundle().digest


def test_another_version_builds_another_bundle(monkeypatch):
    ours = build_bundle()
    monkeypatch.setattr("fedglioma.bundle.version", lambda _name: "9.9.9")
    assert build_bundle.__wrapped__().digest != ours.digest


def test_apps_that_it_names_are_the_installed_ones():
    named = settings()["tool"]["flwr"]["app"]["components"]
    assert named == {"serverapp": "fedglioma_server.app:app", "clientapp": "fedglioma_client.app:app"}
    assert server_app is not None
    assert client_app is not None


def test_a_site_that_reads_its_settings_finds_none():
    assert get_fused_config_from_fab(build_bundle().content, Run.create_empty(run_id=1)) == {}
