"""A study's result as it is written: no number of few patients, and none that another one follows from.

What is few says ``counts.py``. The measures of few patients were never computed (``study_table.py``); here go
the numbers of cases, and the reasons that name one.
"""

from collections.abc import Sequence

from fedglioma.counts import coded, roughly, shown
from fedglioma.metrics.bootstrap import Measure
from fedglioma.metrics.paired import Comparison
from fedglioma_server import report_text as words
from fedglioma_server.study_table import ALL, Entry, Gain, StudyResult


def passed_on(result: StudyResult) -> StudyResult:
    """Return what may be written of a study; again, nothing more changes."""
    lines = [
        line.model_copy(update={"entries": {name: _total(entry) for name, entry in line.entries.items()}})
        for line in result.lines
    ]
    return result.model_copy(
        update={"patients": _number(result.patients), "lines": lines, "gains": _gains(result.gains)}
    )


def cases_of(gain: Gain) -> int | str:
    """Return how many cases one hospital's row rests on."""
    return most(list(gain.lines.values()))


def most(entries: Sequence[Entry]) -> int | str:
    """Return the largest number of cases of entries of one measure; one in words where there is no number."""
    numbers = [entry.cases for entry in entries]
    known = [number for number in numbers if isinstance(number, int)]
    return max(known) if known else next(iter(numbers), 0)


def cases_text(cases: int | str) -> str:
    """Return a number of cases as it may be printed."""
    return f"{cases:,}" if isinstance(cases, int) else cases


def _number(cases: int | str) -> int | str:
    """Return a number that is no part of a sum that is told, in words where it is few."""
    if isinstance(cases, int) and (text := shown(cases)) != cases_text(cases):
        return text
    return cases


def _total(entry: Entry) -> Entry:
    return entry.model_copy(update={"cases": _number(entry.cases)})


def _gains(gains: Sequence[Gain]) -> list[Gain]:
    """Return the hospitals' rows; the numbers of one measure add up to the row of all."""
    told: dict[tuple[str, str, str], int | str] = {}
    for arm, measure in dict.fromkeys((gain.arm, gain.measure) for gain in gains):
        group = [g for g in gains if (g.arm, g.measure) == (arm, measure) and g.site != ALL]
        told |= {(arm, measure, g.site): n for g, n in zip(group, _parts(group), strict=True)}
    return [
        gain.model_copy(
            update={
                "lines": {
                    name: _total(entry)
                    if gain.site == ALL
                    else _part(entry, told[gain.arm, gain.measure, gain.site])
                    for name, entry in gain.lines.items()
                }
            }
        )
        for gain in gains
    ]


def _parts(group: Sequence[Gain]) -> list[int | str]:
    numbers = [cases_of(gain) for gain in group]
    exact = [number for number in numbers if isinstance(number, int)]
    codes = coded(exact) if len(exact) == len(numbers) else None
    return numbers if codes is None else [roughly(code) for code in codes]


def _part(entry: Entry, cases: int | str) -> Entry:
    return entry.model_copy(
        update={
            "cases": cases,
            "value": _general(entry.value),
            "comparison": None if entry.comparison is None else _uncounted(entry.comparison),
        }
    )


def _uncounted(comparison: Comparison) -> Comparison:
    """Return a comparison without its number of patients, of which there may be few to several cases each."""
    measures = {name: _general(getattr(comparison, name)) for name in ("value_a", "value_b", "difference")}
    return comparison.model_copy(update={"n_patients": None, **measures})


def _general(measure: Measure) -> Measure:
    if measure.reason is None:
        return measure
    return measure.model_copy(update={"reason": words.general(measure.reason)})
