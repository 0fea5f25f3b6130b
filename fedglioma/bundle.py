"""The bundle that travels with a run: a settings file without settings and without code.

Flower ships every run as a bundle (FAB). Ours names the apps that each machine has installed and holds
nothing else, so the same version of fedglioma always builds the same bytes. A site refuses any other.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

from flwr.cli.build import build_fab_from_files

PUBLISHER = "fedglioma"
_SETTINGS = """[project]
name = "fedglioma"
version = "{version}"
description = "Settings only: every site runs the fedglioma that it installed"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "{publisher}"

[tool.flwr.app.components]
serverapp = "fedglioma_server.app:app"
clientapp = "fedglioma_client.app:app"

[tool.flwr.app.config]
"""


@dataclass(frozen=True)
class Bundle:
    """A bundle's bytes and their sha256."""

    content: bytes
    digest: str


@lru_cache(maxsize=1)
def build_bundle() -> Bundle:
    """Return the one bundle that this version builds and accepts."""
    settings = _SETTINGS.format(version=version("fedglioma"), publisher=PUBLISHER)
    content, _ = build_fab_from_files({"pyproject.toml": settings.encode()})
    return Bundle(content, hashlib.sha256(content).hexdigest())
