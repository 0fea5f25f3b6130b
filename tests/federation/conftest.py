"""What the tests with real processes share, made once in a session."""

from pathlib import Path

import pytest

from tests.federation_processes import Ground, lay_ground
from tests.federation_reference import Reference, run_reference


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Cohorts, consortium, kits."""
    return lay_ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="session")
def undisturbed(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The same run on the inline engine, which nothing disturbs; it also fills the cache of images."""
    return run_reference(ground, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for one federation."""
    return tmp_path / "federation"
