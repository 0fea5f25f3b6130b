"""The Flower bundle that ``flwr build`` would make of this project: settings, and no code."""

import hashlib
import importlib
import shutil
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's own

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("fedglioma", "server", "client", "site_config", "docs", "deploy")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a checkout holds, with a hospital's own files in the places where they would lie."""
    folder = tmp_path_factory.mktemp("checkout") / "fedglioma"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in FOLDERS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("site_config/beijing.yaml", "site_config/README.md", "cohort/README.md", "keys/ca.key"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("stays here", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def bundle(project: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(BytesIO(build_fab_from_disk(project)))


def test_bundle_holds_the_settings_and_the_readme_only(bundle: zipfile.ZipFile) -> None:
    assert sorted(bundle.namelist()) == [".info/CONTENT", "README.md", "pyproject.toml"]


def test_bundle_carries_no_code_and_no_hospitals_settings(bundle: zipfile.ZipFile) -> None:
    assert not [name for name in bundle.namelist() if name.endswith((".py", ".yaml", ".key"))]
    assert not [name for name in bundle.namelist() if b"stays here" in bundle.read(name)]


def test_bundle_of_the_same_project_is_the_same_to_the_bit(project: Path) -> None:
    one, other = build_fab_from_disk(project), build_fab_from_disk(project)
    assert hashlib.sha256(one).digest() == hashlib.sha256(other).digest()


def test_apps_that_the_bundle_names_are_the_installed_ones(bundle: zipfile.ZipFile) -> None:
    table = tomllib.loads(bundle.read("pyproject.toml").decode("utf-8"))
    found = {}
    for role, reference in table["tool"]["flwr"]["app"]["components"].items():
        module, name = reference.split(":")
        found[role] = getattr(importlib.import_module(module), name)
    assert isinstance(found["serverapp"], ServerApp)
    assert isinstance(found["clientapp"], ClientApp)
