"""Shadow models: trained on halves of the patients, remembered by what they said, never as weights.

What a finished shadow said is a small file of numbers under a digest of all that decided it, so that an
interrupted attack continues, and other settings or patients begin anew.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue, ValidationError

from fedglioma.case import Frozen
from fedglioma.console import Progress, silent
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError, DataError
from fedglioma.newfile import PRIVATE, replacing
from fedglioma.seeds import derive_seed
from fedglioma.training.learner import Learner

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

Train = Callable[[Sequence[PreparedCase], int], Learner]
"""Trains a model as the attacked one was, on cases and with a seed."""
Say = Callable[[Learner], FloatArray]
"""Returns what a model says of all cases, (n,)."""

LEAST_SHADOWS: Final = 2


@dataclass(frozen=True)
class Shadows:
    """What s shadow models said of n cases: ``said`` (s, n), and which of them were trained on which."""

    said: FloatArray
    trained_on: BoolArray


class _Saved(Frozen):
    """A finished shadow on disk."""

    key: str
    said: tuple[float | None, ...]


def shadow_models(
    cases: Sequence[PreparedCase],
    patients: Sequence[str],
    train: Train,
    say: Say,
    *,
    shadows: int,
    seed: int,
    folder: Path,
    about: Mapping[str, JsonValue],
    progress: Progress = silent,
) -> Shadows:
    """Return what shadow models say of cases, having trained those that were not finished before.

    Parameters
    ----------
    cases : sequence of PreparedCase
        Members and non-members together.
    patients : sequence of str
        Whose case each is; the words themselves change nothing and are not kept.
    folder : Path
        Where finished shadows are kept; its files are for their owner alone.
    about : mapping
        All that decides the training besides the cases and the seed, such as settings and rounds.

    Raises
    ------
    ConfigError
        Fewer than two shadows.
    DataError
        There is no case, or a prepared volume is gone or damaged.
    """
    require_shadows(shadows)
    trained_on = halves(patients, shadows, seed)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    said = []
    progress(0, shadows)
    for number, chosen in enumerate(trained_on):
        own_seed = derive_seed(seed, "shadow", number)
        key = _key(cases, chosen, own_seed, about)
        file = folder / f"shadow-{key[:16]}.json"
        found = _read(file, key, len(cases))
        if found is None:
            found = say(train([item for item, on in zip(cases, chosen, strict=True) if on], own_seed))
            _write(file, key, found)
        said.append(found)
        progress(number + 1, shadows)
    return Shadows(np.stack(said), trained_on)


def require_shadows(shadows: int) -> None:
    """Raise ``ConfigError`` for a number of shadow models that cannot tell anything."""
    if shadows < LEAST_SHADOWS:
        raise ConfigError(f"--shadows {shadows}: at least {LEAST_SHADOWS}, or 0 for the loss threshold alone")


def halves(patients: Sequence[str], shadows: int, seed: int) -> BoolArray:
    """Return who is in which shadow's training, (shadows, n): half of the patients, each with all cases.

    The second shadow of a pair has whom the first has not, so that of an even number each patient is in
    exactly half.

    Raises
    ------
    DataError
        There are fewer than two patients.
    """
    people = list(dict.fromkeys(patients))
    if len(people) < 2:
        raise DataError(f"shadow models: {len(people)} patient: two or more are needed to divide them")
    place = {name: number for number, name in enumerate(people)}
    index = np.array([place[name] for name in patients], dtype=np.int64)
    rows: list[BoolArray] = []
    for number in range(shadows):
        if number % 2:
            rows.append(~rows[-1])
            continue
        order = np.random.default_rng(derive_seed(seed, "halves", number)).permutation(len(people))
        chosen: BoolArray = np.zeros(len(people), dtype=np.bool_)
        chosen[order[: len(people) // 2]] = True
        rows.append(chosen[index])
    return np.stack(rows)


def _key(cases: Sequence[PreparedCase], chosen: BoolArray, seed: int, about: Mapping[str, JsonValue]) -> str:
    described: list[JsonValue] = [
        [item.digest, item.mask_digest, list(item.case.genotype.labels()), bool(on)]
        for item, on in zip(cases, chosen, strict=True)
    ]
    text = json.dumps({"about": dict(about), "seed": seed, "cases": described}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(file: Path, key: str, cases: int) -> FloatArray | None:
    """Return what a finished shadow said, or None where there is no such one."""
    try:
        saved = _Saved.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        saved = None
    if saved is None or saved.key != key or len(saved.said) != cases:
        logger.warning("%s: not a finished shadow model; it is trained again", file.name)
        return None
    return np.array([np.nan if value is None else value for value in saved.said], dtype=np.float64)


def _write(file: Path, key: str, said: FloatArray) -> None:
    told = tuple(None if np.isnan(value) else float(value) for value in said)
    with replacing(file, mode=PRIVATE) as open_file:
        open_file.write(_Saved(key=key, said=told).model_dump_json().encode())
