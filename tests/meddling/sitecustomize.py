"""A hand on the processes of a test: Python imports this at its start where PYTHONPATH names this folder.

``MEDDLE`` says what is done to which module of the program, as ``what:argument,what:argument``, and
``MEDDLE_FOLDER`` is where the two sides talk: a process that has come to an instant makes a file named
after it and waits there until the test makes the file ``go``. The programs themselves know of none of it.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

GO = "go"
_STEP_S = 0.02


def here(instant: str) -> None:
    """Say that this process is at an instant, and stay there until the test lets it go."""
    folder = Path(os.environ["MEDDLE_FOLDER"])
    if (folder / GO).exists():
        return
    (folder / instant).touch()
    while not (folder / GO).exists():
        time.sleep(_STEP_S)


def train_waits(module: ModuleType, number: str) -> None:
    """Stop in a round once the network has been trained, before anything of it is packed."""
    real = module.train_locally

    def train(learner: Any, work: Any, *rest: Any) -> Any:
        summary = real(learner, work, *rest)
        if work.round == int(number):
            here("training")
        return summary

    module.train_locally = train  # type: ignore[attr-defined]


def upload_waits(module: ModuleType, _: str) -> None:
    """Stop before the first large object of a reply is sent; its head and small objects have gone."""
    real = module.make_push_object_fn_protobuf

    def make(*arguments: Any, **options: Any) -> Callable[[str, bytes], None]:
        push = real(*arguments, **options)

        def pushed(object_id: str, content: bytes) -> None:
            if len(content) > 64 * 1024:
                here("uploading")
            push(object_id, content)

        return pushed

    module.make_push_object_fn_protobuf = make  # type: ignore[attr-defined]


def clock(module: ModuleType, seconds: str) -> None:
    """Set the clock that a module reads wrong, by so many seconds."""
    shift = timedelta(seconds=float(seconds))
    if hasattr(module, "now"):
        right = module.now
        module.now = lambda: right() + shift
        return

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + shift

    module.datetime = Shifted  # type: ignore[attr-defined]


def aggregate_waits(module: ModuleType, number: str) -> None:
    """Stop in a round when all replies are in and nothing has been added up."""
    real = module.RoundStrategy._require_quorum

    def require(strategy: Any, at: int, updates: Any) -> None:
        if at == int(number):
            here("aggregating")
        real(strategy, at, updates)

    module.RoundStrategy._require_quorum = require


def checkpoint_waits(module: ModuleType, number: str) -> None:
    """Stop when half of a round's checkpoint is written."""
    real = module.write_safetensors

    def write(path: Path, *content: Any) -> None:
        if path.name == f"round-{int(number):04d}.safetensors":
            folder = Path(os.environ["MEDDLE_FOLDER"])
            if not (folder / GO).exists():
                real(folder / "whole", *content)
                whole = (folder / "whole").read_bytes()
                part = path.with_name(f".{path.name}.{os.getpid()}.part")
                part.write_bytes(whole[: len(whole) // 2])
            here("checkpointing")
        real(path, *content)

    module.write_safetensors = write  # type: ignore[attr-defined]


def prepare_waits(module: ModuleType, number: str) -> None:
    """Stop before a patient's images are prepared, the earlier patients' lying in the cache."""
    real, begun = module._make, count(1)

    def make(*given: Any) -> Any:
        if next(begun) == int(number):
            here("preparing")
        return real(*given)

    module._make = make  # type: ignore[attr-defined]


def synthesis_waits(module: ModuleType, number: str) -> None:
    """Stop when the images of so many made-up patients are written."""
    real, written = module._write_images, count(1)

    def write(*given: Any) -> None:
        real(*given)
        if next(written) == int(number):
            here("synthesizing")

    module._write_images = write  # type: ignore[attr-defined]


def bundle(module: ModuleType, _: str) -> None:
    """Build the bundle of another version."""
    module._SETTINGS = module._SETTINGS.replace("{version}", "9.9.9")  # type: ignore[attr-defined]


def run_bundle(module: ModuleType, _: str) -> None:
    """Say at the door what is right, and ship a bundle with code in it with the run."""
    import hashlib

    from flwr.cli.build import build_fab_from_files

    from fedglioma import bundle as ours

    settings = ours._SETTINGS.format(version="0.1.0", publisher=ours.PUBLISHER)
    files = {"pyproject.toml": settings.encode(), "fedglioma_client/app.py": b"raise SystemExit(99)\n"}
    content, _ = build_fab_from_files(files)
    shipped = SimpleNamespace(content=content, digest=hashlib.sha256(content).hexdigest())
    module.build_bundle = lambda: shipped  # type: ignore[attr-defined]


MEDDLINGS: dict[str, tuple[Callable[[ModuleType, str], None], tuple[str, ...]]] = {
    "train_waits": (train_waits, ("fedglioma_client.round",)),
    "upload_waits": (upload_waits, ("flwr.supernode.fleet_http_connection",)),
    "clock": (clock, ("fedglioma_client.reach", "flwr.supercore.date")),
    "aggregate_waits": (aggregate_waits, ("fedglioma_server.strategy",)),
    "checkpoint_waits": (checkpoint_waits, ("fedglioma_server.checkpoint",)),
    "prepare_waits": (prepare_waits, ("fedglioma.data.prepare",)),
    "synthesis_waits": (synthesis_waits, ("fedglioma.data.synthetic_cohort",)),
    "bundle": (bundle, ("fedglioma.bundle",)),
    "run_bundle": (run_bundle, ("fedglioma_server.link",)),
}


class Patcher(MetaPathFinder):
    """Changes a module right after it was loaded, before anybody imports from it."""

    def __init__(self, module: str, change: Callable[[ModuleType], None]) -> None:
        self._module = module
        self._change = change

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own specification, with the change after its loading."""
        if fullname != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def loaded(module: ModuleType) -> None:
            load(module)
            self._change(module)

        spec.loader.exec_module = loaded  # type: ignore[method-assign]
        return spec


def _meddle(asked: str) -> None:
    for item in filter(None, asked.split(",")):
        what, _, argument = item.partition(":")
        change, modules = MEDDLINGS[what]
        for name in modules:
            sys.meta_path.insert(
                0, Patcher(name, lambda module, change=change, argument=argument: change(module, argument))
            )


_meddle(os.environ.get("MEDDLE", ""))
