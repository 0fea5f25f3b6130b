"""Which columns of a clinical table hold what: named by the caller, or guessed where that is obvious.

Two survival times that could both be meant are not obvious: a wrong guess would give figures that look
right, so the caller is told which names to type.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from fedglioma.case import Frozen, Gene
from fedglioma.errors import ConfigError
from fedglioma.survival import values

Cells = Mapping[str, Sequence[str]]
"""Column name to its cells, in the rows' order."""

_UNITS = {
    "days": {"d", "day", "days"},
    "months": {"mo", "mos", "month", "months"},
    "years": {"yr", "yrs", "year", "years"},
}
_UNIT_WORDS = frozenset(word for words in _UNITS.values() for word in words)
_SURVIVAL = frozenset({"os", "surv", "survival"})
_TIME = frozenset({"duration", "durations", "follow", "followup", "fu", "time"})
_EVENT = frozenset({"dead", "death", "deceased", "died", "event", "vital", "status"})
_OTHER_ENDPOINT = frozenset(
    {"dfi", "dfs", "dss", "efs", "pfi", "pfs", "rfs", "ttp", "progression", "recurrence", "relapse"}
)
_NOT_TIME = _EVENT | {"age", "birth", "censor", "censored", "date", "diagnosis", "treatment"}
_GLUE = frozenset({"at", "from", "in", "of", "overall", "patient", "since", "to", "up"})
_GENE_PATTERNS = {
    Gene.IDH: r"idh(_?1)?(_?2)?",
    Gene.ATRX: r"atrx",
    Gene.CODEL: r"(x?1p_?19q(_co_?del(etion)?)?|co_?del(etion)?(_1p_?19q)?)",
}
_GENE_SUFFIX = r"(_mut|_mutation|_mutated|_mutant)?(_status)?"
_COHORT_NAMES = ("cohort", "study", "project", "cancer_type", "tumor_type", "tumour_type")
_GRADE_NAMES = ("grade", "who_grade", "tumor_grade", "tumour_grade", "grade_who", "who_cns_grade")
_GRADE_NAMES_TCGA = ("neoplasm_histologic_grade", "histologic_grade")
_AGE_NAMES = ("age", "age_years", "age_at_diagnosis", "age_at_mri", "diagnosis_age")
_PATIENT_NAMES = ("participant_id", "patient_id", "patient", "case_id", "subject_id", "id")


class TimeUnit(StrEnum):
    """Unit of a survival time; ``unknown`` when neither the column's name nor the caller says it."""

    DAYS = "days"
    MONTHS = "months"
    YEARS = "years"
    UNKNOWN = "unknown"


class Columns(Frozen):
    """The columns of one analysis; the groups in the order in which they are shown."""

    time: str
    event: str
    groups: tuple[str, ...]
    cohort: str | None = None
    age: str | None = None
    patient: str | None = None


def choose_columns(
    cells: Cells,
    source: str,
    *,
    time: str | None = None,
    event: str | None = None,
    groups: Sequence[str] = (),
    cohort: str | None = None,
) -> Columns:
    """Return the columns to analyse; those that the caller did not name are guessed.

    Raises
    ------
    ConfigError
        A named column does not exist, or the table leaves more than one reading, or none.
    """
    for name in (time, event, cohort, *groups):
        _require(name, cells, source)
    chosen = _time_and_event(cells, source, time, event)
    return Columns(
        time=chosen[0],
        event=chosen[1],
        groups=tuple(dict.fromkeys(groups)) or _genes(cells, source),
        cohort=cohort or _cohort(cells),
        age=_named(cells, _AGE_NAMES),
        patient=_named(cells, _PATIENT_NAMES),
    )


def unit_of(column: str) -> TimeUnit:
    """Return the unit that a column's name states."""
    words = set(_tokens(column))
    found = [unit for unit, names in _UNITS.items() if words & names]
    return TimeUnit(found[0]) if len(found) == 1 else TimeUnit.UNKNOWN


def gene_of(column: str) -> Gene | None:
    """Return the gene that a column's name means: ``IDH1 status``, ``1p/19q``, ``codel_1p19q``."""
    name = "_".join(_tokens(column))
    for gene, pattern in _GENE_PATTERNS.items():
        if re.fullmatch(pattern + _GENE_SUFFIX, name):
            return gene
    return None


def _require(name: str | None, cells: Cells, source: str) -> None:
    if name is None or name in cells:
        return
    close = difflib.get_close_matches(name.casefold(), [c.casefold() for c in cells], n=1)
    near = [c for c in cells if close and c.casefold() == close[0]]
    hint = f"did you mean {near[0]}?" if near else f"the columns are {_some(list(cells))}"
    raise ConfigError(f"{source}: no column {name!r}: {hint}")


def _tokens(column: str) -> list[str]:
    """Return a name's words in lower case: ``osMonths``, ``OS (months)`` and ``OS_MONTHS`` alike."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).casefold()
    return [word for word in re.split(r"[^a-z0-9]+", spaced) if word]


def _time_and_event(cells: Cells, source: str, time: str | None, event: str | None) -> tuple[str, str]:
    if time is not None:
        return time, event or _event_for(time, cells, source)
    best = _best(cells, _time_rank, _numeric)
    if event is not None:
        fitting = [t for t in best if _source(t) == _source(event)]
        best = fitting or best
    if not best:
        raise ConfigError(
            f"{source}: no column looks like a survival time: name it with --time COLUMN, "
            f"one of {_some(list(cells))}"
        )
    if len(best) > 1:
        options = " or ".join(f"--time {t}" + _with_event(t, cells) for t in best)
        raise ConfigError(f"{source}: {len(best)} columns could be the survival time: choose with {options}")
    return best[0], event or _event_for(best[0], cells, source)


def _with_event(time: str, cells: Cells) -> str:
    events = _events(time, cells)
    return f" (event {events[0]})" if len(events) == 1 else ""


def _event_for(time: str, cells: Cells, source: str) -> str:
    found = _events(time, cells)
    if len(found) == 1:
        return found[0]
    if found:
        options = " or ".join(f"--event {name}" for name in found)
        raise ConfigError(f"{source}: {len(found)} columns could say who died: choose with {options}")
    raise ConfigError(
        f"{source}: no column beside {time} says who died: name it with --event COLUMN "
        "(1 died, 0 censored), one of " + _some([c for c in cells if c != time])
    )


def _events(time: str, cells: Cells) -> list[str]:
    """Return the columns that could be the event of ``time``: same endpoint, then same source.

    ``os_days_cdr`` goes with ``dead_cdr`` and ``pfi_days_cdr`` with ``pfi_event_cdr``: what is left of
    both names without the words for time, unit and event must agree. Where no name agrees in that, any
    event of the endpoint will do, if there is only one.
    """
    endpoint = set(_tokens(time)) & _OTHER_ENDPOINT

    def rank(words: list[str]) -> int | None:
        if set(words) & _OTHER_ENDPOINT != endpoint:
            return None
        return _event_rank([w for w in words if w not in endpoint])

    same_source = {name: cells[name] for name in cells if _source(name) == _source(time) and name != time}
    return _best(same_source, rank, _says_who_died) or _best(cells, rank, _says_who_died)


def _source(column: str) -> frozenset[str]:
    words = frozenset(_tokens(column))
    return words - _SURVIVAL - _TIME - _UNIT_WORDS - _EVENT - _OTHER_ENDPOINT - _GLUE


def _time_rank(words: list[str]) -> int | None:
    found = set(words)
    if found & (_OTHER_ENDPOINT | _NOT_TIME):
        return None
    has_unit = bool(found & _UNIT_WORDS)
    if words == ["os", "days"]:
        return 0
    if found & _SURVIVAL:
        return 1 if has_unit else 2
    if found & _TIME:
        return 3
    return 4 if has_unit and words[-1] in _UNIT_WORDS and len(words) > 1 else None


def _event_rank(words: list[str]) -> int | None:
    found = set(words)
    if not found & _EVENT or found & (_UNIT_WORDS | _TIME | {"date", "cause", "censor", "censored"}):
        return None
    if words == ["os", "event"]:
        return 0
    # idh_status and mgmt_status are no events; os_status, vital_status_2018 and a bare status are.
    if "status" in found and not found & ((_EVENT - {"status"}) | _SURVIVAL):
        return 2 if all(w.isdigit() for w in found - {"status"} - _GLUE) else None
    return 1


def _best(
    cells: Cells, rank: Callable[[list[str]], int | None], fits: Callable[[Sequence[str]], bool]
) -> list[str]:
    ranks = {name: rank(_tokens(name)) for name in cells}
    fitting = {name: r for name, r in ranks.items() if r is not None and fits(cells[name])}
    return [name for name, r in fitting.items() if r == min(fitting.values())]


def _numeric(cells: Sequence[str]) -> bool:
    numbers = sum(values.number(cell) is not None for cell in cells)
    words = sum(values.number(cell) is None and not values.is_missing(cell) for cell in cells)
    return numbers >= max(words, 1)


def _says_who_died(cells: Sequence[str]) -> bool:
    known = [cell for cell in cells if not values.is_missing(cell)]
    return 2 * sum(values.died(cell) is not None for cell in known) >= max(len(known), 1)


def _genes(cells: Cells, source: str) -> tuple[str, ...]:
    chosen: list[str] = []
    for gene in Gene:
        found = [gene.value] if gene.value in cells else [c for c in cells if gene_of(c) is gene]
        if len(found) > 1:
            options = " or ".join(f"--group {_quoted(name)}" for name in found)
            raise ConfigError(
                f"{source}: {len(found)} columns could be {gene.value}: choose with {options}, "
                "and name every other column to compare the same way"
            )
        chosen += found
    if not chosen:
        raise ConfigError(
            f"{source}: no column looks like IDH, ATRX or 1p/19q: name what to compare with --group COLUMN, "
            f"one of {_some(list(cells))}"
        )
    return tuple(chosen)


def _cohort(cells: Cells) -> str | None:
    """Return the column that divides lower-grade from glioblastoma: a cohort's name before a grade."""
    for names in (_COHORT_NAMES, (*_GRADE_NAMES, *_GRADE_NAMES_TCGA)):
        column = _named(cells, names)
        known = [cell for cell in cells[column] if not values.is_missing(cell)] if column else []
        if 2 * sum(values.group(cell) is not None for cell in known) > len(known):
            return column
    return None


def _named(cells: Cells, names: Sequence[str]) -> str | None:
    normal = {"_".join(_tokens(column)): column for column in reversed(list(cells))}
    return next((normal[name] for name in names if name in normal), None)


def _quoted(name: str) -> str:
    return f"'{name}'" if re.search(r"[^\w.-]", name) else name


def _some(names: Sequence[str], limit: int = 12) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
