"""A study's rows without a network: what they need, and what is said where it is not there."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedglioma.case import CHANNELS, Case, Genotype, Modality, Task
from fedglioma.data.folds import Division
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.split import Split
from fedglioma_server.study_baselines import absent_baselines, absent_text, add_baselines
from fedglioma_server.study_file import Baseline
from fedglioma_server.study_results import Known, RowName

ALL: tuple[Baseline, ...] = ("majority", "age", "volume", "threshold")
MARKERS_AND_OUTLINE = (Task.IDH, Task.SEGMENTATION)
SHAPE = (4, 4, 4)


def cases(
    folder: Path, *, ages: bool = True, outlines: bool = True, tumour: bool = True, label: bool = True
) -> list[PreparedCase]:
    """Return eight patients, p0 to p7, with what is asked for."""
    made = []
    rng = np.random.default_rng(3)
    for number in range(8):
        volume = rng.normal(size=(len(CHANNELS), *SHAPE)).astype(np.float16)
        mask = (volume[CHANNELS.index(Modality.FLAIR)] > 0.5) & tumour
        np.save(folder / f"{number}.npy", volume)
        np.save(folder / f"{number}-mask.npy", mask.astype(np.uint8))
        case = Case(
            patient=f"p{number}",
            site="henan",
            volumes=dict.fromkeys(CHANNELS, folder / f"{number}.npy"),
            genotype=Genotype(idh=number % 2 if label else -1),
            age=40.0 + number if ages else None,
        )
        made.append(
            PreparedCase(
                case=case,
                array=folder / f"{number}.npy",
                present=(True, True, True, True),
                digest="",
                percentiles={},
                mask=folder / f"{number}-mask.npy" if outlines else None,
            )
        )
    return made


def fold(*reported: int) -> Division:
    parts = {f"p{i}": Split.REPORT if i in reported else Split.TRAIN for i in range(8)}
    return Division(name=str(reported), split=parts)


FOLDS = (fold(0, 1, 2, 3), fold(4, 5, 6, 7))


def test_all_rows_are_there_where_all_is_known(tmp_path: Path) -> None:
    known = Known()
    assert add_baselines(known, ALL, FOLDS, cases(tmp_path), [1, 2], MARKERS_AND_OUTLINE) == {}
    assert {row.arm for row in known.rows} == {
        "more frequent class",
        "age alone",
        "tumour volume alone",
        "FLAIR above a threshold",
    }


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        ({"ages": False}, {"age alone, IDH": "has an age and a known IDH status; fill the column age of"}),
        (
            {"outlines": False},
            {
                "tumour volume alone, IDH": "has a tumour outline and a known IDH status; give outlines",
                "FLAIR above a threshold, Tumour": "has FLAIR with an outlined tumour; give outlines, or",
            },
        ),
        (
            {"tumour": False},
            {
                "tumour volume alone, IDH": "patients with a known IDH status have the same tumour volume;",
                "FLAIR above a threshold, Tumour": "or leave threshold out of baselines",
            },
        ),
        (
            {"label": False},
            {
                "more frequent class, IDH": "has a known IDH status; give labelled patients, or",
                "age alone, IDH": "known IDH status",
                "tumour volume alone, IDH": "known IDH status",
            },
        ),
    ],
)
def test_row_that_cannot_be_computed_is_told_and_not_filled_with_something_else(
    tmp_path: Path, without: dict[str, bool], expected: dict[str, str]
) -> None:
    known = Known()
    told = add_baselines(known, ALL, FOLDS, cases(tmp_path, **without), [1], MARKERS_AND_OUTLINE)
    assert list(told) == list(expected)
    for row, words in expected.items():
        assert told[row].startswith(("in a fold no training patient has ", "in a fold all training patients"))
        assert words in told[row]
        assert RowName(row.partition(",")[0]) not in known.rows


def test_one_fold_without_is_enough_and_one_task_of_several_may_be_missing(tmp_path: Path) -> None:
    some = cases(tmp_path)
    some[4:7] = cases(tmp_path, ages=False)[4:7]
    assert list(absent_text(absent_baselines(ALL, FOLDS, some, MARKERS_AND_OUTLINE))) == ["age alone, IDH"]
    assert not absent_baselines(ALL, FOLDS[1:], some, MARKERS_AND_OUTLINE)
    known = Known()
    told = add_baselines(known, ["age"], FOLDS[1:], some, [1], [Task.IDH, Task.ATRX])
    assert list(told) == ["age alone, ATRX"]
    assert told["age alone, ATRX"].startswith("no training patient has a known ATRX status; give labelled")
    assert list(known.rows[RowName("age alone")].values) == [Task.IDH]


def test_what_nobody_asks_is_not_missed(tmp_path: Path) -> None:
    nothing = cases(tmp_path, ages=False, outlines=False, label=False)
    assert not absent_baselines(["threshold"], FOLDS, nothing, [Task.IDH])
    assert not absent_baselines(["majority", "age", "volume"], FOLDS, nothing, [Task.SEGMENTATION])


def changed(items: Sequence[PreparedCase], numbers: Sequence[int], **changes: Any) -> list[PreparedCase]:
    """Return the patients, those of these numbers with other facts of their case."""
    return [
        replace(item, case=item.case.model_copy(update=changes)) if number in numbers else item
        for number, item in enumerate(items)
    ]


def without_flair(items: Sequence[PreparedCase], *numbers: int) -> list[PreparedCase]:
    volumes = {
        modality: path for modality, path in items[0].case.volumes.items() if modality != Modality.FLAIR
    }
    return changed(items, numbers, volumes=volumes)


def test_case_without_flair_is_not_entered_and_the_others_are(tmp_path: Path) -> None:
    known = Known()
    some = without_flair(cases(tmp_path), 1)
    assert add_baselines(known, ["threshold"], FOLDS, some, [1, 2], [Task.SEGMENTATION]) == {}
    found = known.rows[RowName("FLAIR above a threshold")].values[Task.SEGMENTATION]
    assert sorted(patient for _, patient, _ in found) == ["p0", "p2", "p3", "p4", "p5", "p6", "p7"]
    assert all(np.isfinite(list(seeds.values())).all() for seeds in found.values())


def test_threshold_that_would_take_a_whole_fold_from_the_other_rows_is_left_out(tmp_path: Path) -> None:
    known = Known()
    some = without_flair(cases(tmp_path), 0, 1, 2, 3)
    told = add_baselines(known, ["threshold"], (FOLDS[0],), some, [1], [Task.SEGMENTATION])
    assert not known.rows
    assert told["FLAIR above a threshold, Tumour"].startswith(
        "no outlined patient that is reported has FLAIR;"
    )


@pytest.mark.parametrize(
    ("numbers", "facts", "why"),
    [
        (
            range(8),
            {"age": 50.0},
            "in a fold all training patients with a known IDH status have the same age;",
        ),
        (
            range(4, 8),
            {"genotype": Genotype(idh=1)},
            "in a fold all training patients have the same IDH status;",
        ),
        (range(1, 8), {"age": None}, "in a fold no training patient has an age and a known IDH status;"),
    ],
)
def test_age_that_teaches_nothing_is_no_row_with_the_majoritys_figures(
    tmp_path: Path, numbers: Sequence[int], facts: dict[str, Any], why: str
) -> None:
    known = Known()
    told = add_baselines(known, ["age"], FOLDS, changed(cases(tmp_path), numbers, **facts), [1], [Task.IDH])
    assert told["age alone, IDH"].startswith(why)
    assert not known.rows


def test_age_that_nobody_reported_has_is_left_out_and_single_gaps_are_marked(tmp_path: Path) -> None:
    some = changed(cases(tmp_path), range(4), age=None)
    told = add_baselines(Known(), ["age"], FOLDS[:1], some, [1], [Task.IDH])
    assert told["age alone, IDH"].startswith("no reported patient has an age and a known IDH status;")
    known = Known()
    assert not add_baselines(known, ["age"], FOLDS, changed(cases(tmp_path), [2], age=None), [1], [Task.IDH])
    assert known.rows[RowName("age alone")].guessed == {(0, "p2", 0)}


def test_damaged_outline_costs_the_rows_that_need_it_and_no_other(tmp_path: Path) -> None:
    some = cases(tmp_path)
    (tmp_path / "5-mask.npy").write_bytes(b"nothing")
    known = Known()
    told = add_baselines(known, ALL, FOLDS, some, [1], MARKERS_AND_OUTLINE)
    assert list(told) == ["tumour volume alone, IDH", "FLAIR above a threshold, Tumour"]
    assert all("outline cannot be read (ValueError)" in why and "5-mask" not in why for why in told.values())
    assert {row.arm for row in known.rows} == {"more frequent class", "age alone"}
