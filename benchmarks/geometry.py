"""Is a known movement of the head found again? Within a sequence and across sequences, thin and thick slices.

    python benchmarks/geometry.py [--data DIR] [--trials 20] [--synthetic] [--out docs/geometry.md]

Each trial draws a rigid movement (turned by up to 15 degrees about any axis through the middle of the brain,
shifted by up to 20 mm in any direction, both uniform), takes an image of the head before and another after
it, each with noise of its own and a field of view about the head, and asks ``register`` for the movement.
The error is the mean distance, over the brain, between where a point went and where it is said to be (target
registration error). CPU seconds are those of ``register`` alone.

``--data`` (default: $FEDGLIOMA_REAL_DATA) holds ``glioma/``, stripped and co-registered, for the truth across
sequences, and ``native_grid/``, the scanners' own voxels. ``--synthetic`` takes made-up whole heads instead.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from motion import Scan, draw_movement, taken, target_error
from page import fill, parser_of
from subjects import file_of, patients_of, phantoms

from fedglioma.case import Modality
from fedglioma.data.harmonize import REFERENCE_ORDER, to_ras
from fedglioma.data.register import Movement, register
from fedglioma.data.volume import VolumeError, read_volume

GOALS_MM = {True: 0.3, False: 1.0}
"""Mean target error within a sequence, and across sequences."""
GOAL_SHARE = 0.95
GROSS_MM = 3.0
PHANTOMS = 4
Load = Callable[[int, Modality], Scan]
"""Gives one sequence of the patient of a number."""


@dataclass(frozen=True)
class Kind:
    """What is tried: ``fixed_mm`` and ``moving_mm`` thick slices, None for the volume's own.

    Where it is ``relative``, the truth is what ``register`` says of the pair before it moved, then the
    movement: what the collection's own co-registration is off by does not count. ``first_mm`` thick slices
    are cut first, and all else is done to these.
    """

    name: str
    within: bool
    fixed_mm: float | None = None
    moving_mm: float | None = None
    relative: bool = False
    first_mm: float | None = None

    @property
    def goal_mm(self) -> float:
        """The largest error of a trial that counts as found."""
        return GOALS_MM[self.within]


KINDS = (
    Kind("within a sequence", within=True),
    Kind("across sequences", within=False),
    Kind("across sequences, relative to the unmoved pair", within=False, relative=True),
    Kind("within, both of 5 mm slices", within=True, fixed_mm=5.0, moving_mm=5.0),
    Kind("across, 5 mm slices onto thin ones", within=False, moving_mm=5.0),
    Kind("across, both of 5 mm slices", within=False, fixed_mm=5.0, moving_mm=5.0),
)
AGAIN = Kind("within, cut again from 5 mm slices", within=True, first_mm=5.0)
NATIVE = Kind("within, cut again from the scanners' own voxels (slices of 2.5 to 5.5 mm)", within=True)


@dataclass(frozen=True)
class Trial:
    """One movement; ``error_mm`` is None where the registration was refused."""

    pair: tuple[Modality, Modality]
    error_mm: float | None
    cpu_s: float


def try_once(kind: Kind, load: Load, count: int, number: int, seed: int) -> Trial:
    """Return what became of one movement, which the seed and the number decide."""
    rng = np.random.default_rng([seed, number])
    first, second = sorted(rng.choice(len(REFERENCE_ORDER), 2, replace=False))
    # Always in the order in which the pipeline chooses what others are laid over.
    pair = REFERENCE_ORDER[first], REFERENCE_ORDER[first if kind.within else second]
    still, other = (load(number % count, modality) for modality in pair)
    if kind.first_mm is not None:
        thick = taken(still, np.eye(4), rng, kind.first_mm)
        still = other = Scan(thick, thick.array != 0)
    movement = draw_movement(rng, still.centre)
    fixed = taken(still, np.eye(4), rng, kind.fixed_mm)
    moving = taken(other, movement, rng, kind.moving_mm)
    started = time.process_time()
    try:
        found: Movement | None = register(fixed, moving)
    except VolumeError:
        found = None
    spent = time.process_time() - started
    error = None
    if found is not None:
        before = (
            register(fixed, taken(other, np.eye(4), rng, kind.moving_mm)).matrix
            if kind.relative
            else np.eye(4)
        )
        error = target_error(found.matrix, movement @ before, still)
    return Trial(pair, error, spent)


def row(kind: Kind, trials: Sequence[Trial]) -> str:
    """Return a kind's trials as a row of the table."""
    errors = np.array([trial.error_mm for trial in trials if trial.error_mm is not None])
    refused = len(trials) - len(errors)
    good = int(np.count_nonzero(errors < kind.goal_mm))
    cells = [
        f"{good} of {len(trials)} ({good / len(trials):.0%})",
        *(f"{value:.2f}" for value in _figures(errors)),
        str(refused),
        str(int(np.count_nonzero(errors > GROSS_MM))),
        f"{np.mean([trial.cpu_s for trial in trials]):.1f}",
    ]
    return f"| {kind.name} | {kind.goal_mm} | " + " | ".join(cells) + " |"


def _figures(errors: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    if not errors.size:
        return (float("nan"),) * 3
    return float(np.median(errors)), float(np.percentile(errors, 95)), float(errors.max())


def table(rows: Iterable[str]) -> str:
    """Return the rows under their heads."""
    heads = (
        "trials",
        "goal, mm",
        "within the goal",
        "median mm",
        "95th percentile mm",
        "largest mm",
        "refused",
        f"wrong by over {GROSS_MM:g} mm and not refused",
        "CPU s each",
    )
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *rows])


def measure(kind: Kind, load: Load, count: int, asked: argparse.Namespace) -> str:
    """Try, and return the row; with ``--each`` every trial is printed."""
    found = []
    for number in range(asked.trials):
        found.append(try_once(kind, load, count, number, asked.seed))
        if asked.each:
            fixed, moving = found[-1].pair
            print(f"{kind.name}, {number}, {moving} on {fixed}: {found[-1].error_mm}", flush=True)
    return row(kind, found)


def loader(patients: Sequence[Path]) -> Load:
    """Return how a stripped sequence of these patients is read, one at a time: all would fill the memory."""

    def load(number: int, modality: Modality) -> Scan:
        volume = to_ras(read_volume(file_of(patients[number], modality)))
        return Scan(volume, volume.array != 0)

    return load


def real(asked: argparse.Namespace) -> str:
    """Measure on the real cases, and return the figures as Markdown."""
    together, native = patients_of(asked.data / "glioma"), patients_of(asked.data / "native_grid")
    rows = [
        measure(kind, loader(together), len(together), asked)
        for kind in (*KINDS, AGAIN)
        if wanted(kind, asked)
    ]
    if wanted(NATIVE, asked):
        rows.append(measure(NATIVE, loader(native), len(native), asked))
    head = f"{len(together)} real cases, stripped and co-registered; {len(native)} on their scanners' voxels."
    return f"{head}\n\n{table(rows)}"


def synthetic(asked: argparse.Namespace) -> str:
    """Measure on made-up heads, and return the figures as Markdown."""
    heads = [phantom.subject() for phantom in phantoms(PHANTOMS, skull=True)]

    def load(number: int, modality: Modality) -> Scan:
        return Scan(heads[number].volumes[modality], heads[number].brain[modality])

    rows = [measure(kind, load, PHANTOMS, asked) for kind in KINDS if wanted(kind, asked)]
    return f"SYNTHETIC DATA: {PHANTOMS} made-up heads with skull, 1 mm.\n\n{table(rows)}"


def wanted(kind: Kind, asked: argparse.Namespace) -> bool:
    """Return whether ``--only`` asks for a kind."""
    return asked.only is None or asked.only in kind.name


def main() -> None:
    """Measure, print, and write the table where asked."""
    parser = parser_of(__doc__, page="docs/geometry.md")
    parser.add_argument("--trials", type=int, default=20, help="movements of each kind")
    parser.add_argument("--synthetic", action="store_true", help="made-up heads instead of real cases")
    parser.add_argument("--only", help="only kinds whose name holds this")
    parser.add_argument("--each", action="store_true", help="print every trial")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.data is None and not asked.synthetic:
        parser.error("give --data, set FEDGLIOMA_REAL_DATA, or use --synthetic")
    text = synthetic(asked) if asked.synthetic else real(asked)
    if asked.out:
        what = "synthetic" if asked.synthetic else "real"
        fill(asked.out, f"table of benchmarks/geometry.py, {what}", text)
    print(text)


if __name__ == "__main__":
    main()
