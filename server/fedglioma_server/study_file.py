"""A study as it is written down: what is compared, on whom, how often, and what a paper found.

One YAML file. ``size`` picks one of ``sizes``, each of which changes or adds to what stands outside it, so
that the same study runs in minutes at test size and at full size by changing that one line.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from fedglioma.case import TASKS, Frozen, Gene, Task
from fedglioma.config.reading import checked, read_yaml
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError

Protocol = Literal["federated", "centralised", "local", "finetuned"]
Baseline = Literal["majority", "age", "volume", "threshold"]
Kind = Literal["split", "kfold", "sites", "file"]

MEASURES = ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "dice")
MOST_CELLS = 10_000
_SLUG = re.compile(r"[^a-z0-9]+")
_SEEDS = "seeds stand in 'seeds: [1, 2]', and each row is trained with every one of them"


def answers(baseline: Baseline) -> tuple[Task, ...]:
    """Return the tasks of which a row that needs no network can say something."""
    return (Task.SEGMENTATION,) if baseline == "threshold" else tuple(Task(gene) for gene in Gene)


class Data(Frozen):
    """Whose patients: cohort folders (relative to the study's file), or so many made-up ones."""

    cohorts: tuple[Path, ...] = ()
    sites: str | None = None
    synthetic: int | None = Field(default=None, ge=12)
    synthetic_size: int = Field(default=24, ge=16, le=176)
    synthetic_overlap: float = Field(default=0.5, ge=0, le=1)


class Divisions(Frozen):
    """Who trains, who selects, who is reported.

    ``split`` draws once, as every run does; ``kfold`` gives ``folds`` divisions stratified by ``stratify``,
    each patient reported once; ``sites`` leaves one hospital out at a time; ``file`` reads ``file``.
    """

    kind: Kind = "kfold"
    folds: int = Field(default=5, ge=2, le=100)
    stratify: tuple[Gene, ...] = (Gene.IDH,)
    file: Path | None = None

    @model_validator(mode="after")
    def _file_where_it_is_needed(self) -> Self:
        if (self.kind == "file") != (self.file is not None):
            raise ValueError("file: is for kind file, and needed there")
        return self


class Arm(Frozen):
    """One row of a table: a name, and the run settings that make it.

    ``alike`` is whether another row's name makes the same folder's; the study finds that out.
    """

    name: str = Field(min_length=1, max_length=80)
    settings: dict[str, Any] = Field(default={})
    alike: bool = Field(default=False, repr=False)

    @property
    def slug(self) -> str:
        """The name as a folder's, of a-z, 0-9 and hyphens.

        Where letters of the name are lost in it, or another row has the same, the name's hash goes with it. A
        study that goes on finds its runs, unless a row was added or left out whose name has the same letters.
        """
        plain = self.plain
        lost = any(letter.isalnum() and not letter.isascii() for letter in self.name)
        if plain and not lost and not self.alike:
            return plain
        digest = hashlib.sha256(self.name.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{plain or 'arm'}-{digest[:8]}"

    @property
    def plain(self) -> str:
        """What of the name a folder's can hold; perhaps nothing."""
        return _SLUG.sub("-", self.name.lower()).strip("-")


class Published(Frozen):
    """What a paper reports for the same rows, on its own patients.

    ``rows`` maps an arm's name, or a further row's, to figures by measure (``idh.auc``, ``idh.accuracy``,
    ``segmentation.dice``, ...).
    """

    source: str
    data: str
    note: str = ""
    rows: dict[str, dict[str, float]] = Field(default={})

    @field_validator("rows")
    @classmethod
    def _known_measures(cls, rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for figures in rows.values():
            unknown = _unknown(figures)
            if unknown is not None:
                raise ValueError(unknown)
        return rows


class Study(Frozen):
    """A study at one size, ready to be expanded into runs."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    title: str
    file: str = Field(default="study", description="name of the file, for errors")
    description: str = ""
    size: str
    data: Data = Data()
    divisions: Divisions = Divisions()
    seeds: tuple[int, ...] = (1234,)
    protocols: tuple[Protocol, ...] = ("federated",)
    finetune: dict[str, Any] = Field(
        default={}, description="run settings of the rounds that a hospital adds alone; by default one tenth"
    )
    baselines: tuple[Baseline, ...] = ("majority",)
    run: dict[str, Any] = Field(default={}, description="run settings of every arm")
    arms: tuple[Arm, ...] = Field(min_length=1)
    reference: str = ""
    measures: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()

    @field_validator("arms")
    @classmethod
    def _folders_apart(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        plain = [arm.plain for arm in arms]
        return tuple(arm.model_copy(update={"alike": plain.count(arm.plain) > 1}) for arm in arms)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [arm.name for arm in self.arms]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"arms: two are called {twice}")
        if self.reference and self.reference not in [arm.name for arm in self.arms]:
            raise ValueError(f"reference: {self.reference!r} is none of the arms")
        if "finetuned" in self.protocols and "federated" not in self.protocols:
            raise ValueError("protocols: finetuned goes on from federated; name both")
        if not self.seeds or not self.protocols:
            raise ValueError("seeds and protocols: name at least one of each")
        unknown = _unknown(self.measures)
        if unknown is not None:
            raise ValueError(f"measures: {unknown}")
        return self

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for key in ("seeds", "protocols", "baselines", "measures"):
            values: tuple[object, ...] = getattr(self, key)
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"{key}: {twice} stands there twice; name it once")
        return self

    @model_validator(mode="after")
    def _seeds_in_one_place(self) -> Self:
        places = {"run": self.run, "finetune": self.finetune}
        places |= {f"arm {arm.name}": arm.settings for arm in self.arms}
        for place, settings in places.items():
            if "seed" in settings:
                raise ValueError(f"{place}: seed: {_SEEDS}")
        return self

    @model_validator(mode="after")
    def _models_that_can_be_measured(self) -> Self:
        alone = next((name for name in self.protocols if name in ("local", "finetuned")), None)
        if self.divisions.kind == "sites" and alone is not None:
            raise ValueError(
                f"protocols: {alone}: with divisions of kind sites the hospital that is reported trains "
                "nothing and has no model of its own; with sites go federated and centralised"
            )
        return self

    @property
    def compared_with(self) -> str:
        """The arm that the others are compared with: ``reference``, or the first."""
        return self.reference or self.arms[0].name

    def settings(self, arm: Arm, seed: int, given: Mapping[str, Any]) -> RunConfig:
        """Return an arm's run settings; ``given`` stands above the file, the seed above all.

        Raises
        ------
        ConfigError
            A setting is unknown or not allowed.
        """
        place = f"{self.file}: arm {arm.name}"
        return RunConfig.from_mapping({**self.run, **arm.settings, **given, "seed": seed}, place)


def _unknown(measures: Iterable[str]) -> str | None:
    """Return what is wrong with the first measure that cannot be; None where there is none such."""
    for name in measures:
        task, _, measure = name.partition(".")
        right_task = (task == Task.SEGMENTATION) == (measure == "dice")
        if task not in TASKS or measure not in MEASURES or not right_task:
            return f"{name}: write TASK.MEASURE, of {', '.join(MEASURES)}; segmentation has dice alone"
    return None


def read_study(path: Path, size: str | None = None) -> Study:
    """Return the study of a file at the size that it names, or at ``size``.

    Raises
    ------
    ConfigError
        The file cannot be read, a key is unknown, or a value is not allowed.
    """
    merged = _sized(read_yaml(path), size, path)
    grid = merged.pop("grid", None)
    merged["file"] = path.name
    merged["arms"] = [*_arms_of(merged.get("arms", []), path), *_grid(grid, path)]
    study = checked(Study, merged, str(path))
    base = path.resolve().parent
    data = study.data.model_copy(update={"cohorts": tuple(base / folder for folder in study.data.cohorts)})
    file = study.divisions.file
    divisions = study.divisions.model_copy(update={"file": None if file is None else base / file})
    return study.model_copy(update={"data": data, "divisions": divisions})


def _sized(table: Mapping[str, Any], size: str | None, path: Path) -> dict[str, Any]:
    """Return a study's table at the size that it names, or at ``size``; without ``sizes``."""
    rest = {key: value for key, value in table.items() if key != "sizes"}
    sizes = {} if table.get("sizes") is None else table["sizes"]
    if not isinstance(sizes, dict) or not all(isinstance(over, dict | None) for over in sizes.values()):
        raise ConfigError(
            f"{path}: sizes: write a table of sizes by name, each with the keys that it changes"
        )
    if not sizes:
        if size is not None:
            raise ConfigError(f"{path}: --study-size {size}: the study has no sizes; leave it out")
        return rest | {"size": str(rest.get("size") or "full")}
    wanted = str(size or rest.get("size") or "")
    by_name = {str(name): over for name, over in sizes.items()}
    if not wanted:
        raise ConfigError(f"{path}: size: is needed and not set; choose one of {', '.join(by_name)}")
    if wanted not in by_name:
        raise ConfigError(f"{path}: size: {wanted!r} is none of {', '.join(by_name)}")
    return _laid_over(rest, by_name[wanted] or {}) | {"size": wanted}


def _laid_over(table: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with another one's keys in it; tables inside are merged, everything else replaced."""
    merged = dict(table)
    for key, value in over.items():
        inside = merged.get(key)
        both = isinstance(inside, dict) and isinstance(value, dict)
        merged[key] = _laid_over(inside, value) if both and isinstance(inside, dict) else value
    return merged


def _arms_of(arms: object, path: Path) -> list[dict[str, Any]]:
    """Return arms whose settings stand beside their name in the file."""
    if not isinstance(arms, list) or not all(isinstance(arm, dict) for arm in arms):
        raise ConfigError(f"{path}: arms: a list of tables, each with a name and run settings")
    return [
        {"name": arm.get("name"), "settings": {k: v for k, v in arm.items() if k != "name"}} for arm in arms
    ]


def _grid(grid: object, path: Path) -> list[dict[str, Any]]:
    """Return one arm per combination of a grid's values."""
    if grid is None:
        return []
    if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
        raise ConfigError(f"{path}: grid: 'setting: [value, value]' lines")
    if "seed" in grid:
        raise ConfigError(f"{path}: grid: seed: {_SEEDS}")
    names: Sequence[str] = list(grid)
    arms = []
    for values in product(*grid.values()):
        settings = dict(zip(names, values, strict=True))
        arms.append({"name": ", ".join(f"{k} {v}" for k, v in settings.items()), "settings": settings})
    if len(arms) > MOST_CELLS:
        raise ConfigError(f"{path}: grid: {len(arms)} combinations; at most {MOST_CELLS}")
    return arms
