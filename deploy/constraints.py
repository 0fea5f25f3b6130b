"""The exact versions that the images are built with: those of the environment that the tests ran in.

    .venv/bin/pip install hatchling && .venv/bin/python deploy/constraints.py

writes ``deploy/constraints.txt`` from the metadata of the installed fedglioma: what the extras ``client``
and ``server`` need, what that needs in turn, and what builds the wheel. Nothing is downloaded.
"""

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TARGET = Path(__file__).with_name("constraints.txt")
PROJECT = "fedglioma"
ROOTS = ("fedglioma[client,server]", "hatchling")
HARDWARE = re.compile(r"nvidia-.*|cuda-.*|triton")
"""What PyTorch's GPU builds bring along; each build names its versions exactly by itself."""


def closure(roots: tuple[str, ...] = ROOTS) -> dict[str, str]:
    """Return all distributions that the roots need on this machine, each with its installed version.

    Raises
    ------
    PackageNotFoundError
        One of them is not installed.
    """
    pins: dict[str, str] = {}
    waiting = [Requirement(root) for root in roots]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = str(canonicalize_name(wanted.name))
        extras = {"", *wanted.extras}
        new = {extra for extra in extras if (name, extra) not in seen}
        if not new or HARDWARE.fullmatch(name):
            continue
        seen |= {(name, extra) for extra in new}
        pins[name] = version(name).partition("+")[0]  # a build's own suffix, as of torch 2.13.0+cpu
        for line in distribution(name).requires or ():
            needed = Requirement(line)
            if any(needed.marker is None or needed.marker.evaluate({"extra": extra}) for extra in new):
                waiting.append(needed)
    return {name: pin for name, pin in sorted(pins.items()) if name != PROJECT}


def text(pins: dict[str, str]) -> str:
    """Return the pins as pip reads them."""
    head = [
        "# The versions that the tests ran with. Made by: .venv/bin/python deploy/constraints.py",
        f"# Python {'.'.join(platform.python_version_tuple()[:2])}",
    ]
    return "\n".join([*head, *(f"{name}=={pin}" for name, pin in pins.items())]) + "\n"


def main() -> None:
    """Write the file."""
    try:
        pins = closure()
    except PackageNotFoundError as error:
        sys.exit(f"{error.name} is not installed; pip install '.[client,server]' hatchling")
    TARGET.write_text(text(pins), encoding="utf-8")
    sys.stdout.write(f"{TARGET}: {len(pins)} pins\n")


if __name__ == "__main__":
    main()
