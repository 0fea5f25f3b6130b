import pytest

from fedglioma.case import Gene
from fedglioma.errors import ConfigError
from fedglioma.survival.columns import TimeUnit, choose_columns, gene_of, unit_of

NUMBERS, EVENTS, MARKER = (
    ["100", "250.5", "", "900"],
    ["1", "0", "1", "0"],
    ["mutant", "wildtype", "", "mutant"],
)


def table(*names):
    """Return cells that fit the names: numbers for times, 0 and 1 for events, words for the rest."""
    cells = {}
    for name in names:
        low = name.casefold()
        is_event = any(word in low for word in ("event", "dead", "status", "died", "vital"))
        is_marker = any(word in low for word in ("idh", "atrx", "1p", "codel", "site"))
        cells[name] = MARKER if is_marker else EVENTS if is_event else NUMBERS
    return cells


@pytest.mark.parametrize(
    ("names", "time", "event"),
    [
        (("participant_id", "os_days", "os_event", "idh"), "os_days", "os_event"),
        (("id", "OS_MONTHS", "OS_STATUS", "IDH_status"), "OS_MONTHS", "OS_STATUS"),
        (("id", "survival_months", "died", "idh"), "survival_months", "died"),
        (("time", "status", "idh_status", "mgmt_status"), "time", "status"),
        (("age", "Overall survival, days", "Vital status", "IDH"), "Overall survival, days", "Vital status"),
        (("os_days", "dead", "pfs_days", "pfs_event", "idh"), "os_days", "dead"),
        (("os_days", "os_event", "os_months_2016", "dead_2016", "idh"), "os_days", "os_event"),
        (("followup_days", "event", "age_at_diagnosis", "idh"), "followup_days", "event"),
    ],
)  # fmt: skip
def test_time_and_event_are_guessed_where_obvious(names, time, event):
    columns = choose_columns(table(*names), "t.csv")
    assert (columns.time, columns.event) == (time, event)


TWO = table(
    "cohort", "idh", "os_months_2016", "dead_2016", "os_days_cdr", "dead_cdr", "pfi_days_cdr", "pfi_event_cdr"
)


def test_two_equally_good_times_are_refused_with_what_to_type():
    with pytest.raises(ConfigError) as caught:
        choose_columns(TWO, "clinical.csv")
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert message.startswith("clinical.csv: 2 columns could be the survival time")
    assert "--time os_months_2016 (event dead_2016)" in message
    assert "--time os_days_cdr (event dead_cdr)" in message


@pytest.mark.parametrize(
    ("time", "event"),
    [("os_days_cdr", "dead_cdr"), ("os_months_2016", "dead_2016"), ("pfi_days_cdr", "pfi_event_cdr")],
)
def test_a_named_time_finds_the_event_of_its_own_source_and_endpoint(time, event):
    assert choose_columns(TWO, "t.csv", time=time).event == event


def test_a_named_event_finds_its_time():
    assert choose_columns(TWO, "t.csv", event="dead_2016").time == "os_months_2016"


def test_two_equally_good_events_are_refused_with_what_to_type():
    with pytest.raises(ConfigError, match=r"choose with --event dead or --event died"):
        choose_columns(table("os_days", "dead", "died", "idh"), "t.csv")


def test_a_mistyped_column_is_answered_with_the_near_one():
    with pytest.raises(ConfigError, match=r"t\.csv: no column 'os_dais': did you mean os_days\?"):
        choose_columns(table("os_days", "os_event", "idh"), "t.csv", time="os_dais")
    with pytest.raises(ConfigError, match="no column 'xyz': the columns are os_days, os_event, idh"):
        choose_columns(table("os_days", "os_event", "idh"), "t.csv", groups=["xyz"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("patient", "idh", "event"), "no column looks like a survival time: name it with --time"),
        (("os_days", "idh"), "no column beside os_days says who died: name it with --event"),
        (("os_days", "os_event", "site"), "no column looks like IDH, ATRX or 1p/19q"),
        (("os_days", "os_event", "idh1", "idh_status"), "choose with --group idh1 or --group idh_status"),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(names, words):
    with pytest.raises(ConfigError, match=words):
        choose_columns(table(*names), "t.csv")


def test_a_text_column_is_no_time_whatever_its_name():
    cells = table("os_days", "os_event", "idh") | {"survival_months": ["short", "long", "", "long"]}
    del cells["os_days"]
    with pytest.raises(ConfigError, match="no column looks like a survival time"):
        choose_columns(cells, "t.csv")


def test_groups_keep_the_order_in_which_they_are_named():
    columns = choose_columns(
        table("os_days", "os_event", "idh", "site"), "t.csv", groups=["site", "idh", "site"]
    )
    assert columns.groups == ("site", "idh")


def test_a_cohort_column_is_preferred_to_a_grade_only_if_it_divides():
    base = table("os_days", "os_event", "idh")
    grades = {"grade": ["WHO 2", "", "IV", "3"]}
    assert choose_columns(base | grades | {"cohort": ["LGG", "GBM", "GBM", ""]}, "t.csv").cohort == "cohort"
    assert choose_columns(base | grades | {"cohort": ["a", "b", "a", ""]}, "t.csv").cohort == "grade"
    assert choose_columns(base, "t.csv").cohort is None


@pytest.mark.parametrize(
    ("name", "gene"),
    [
        ("idh", Gene.IDH), ("IDH1", Gene.IDH), ("IDH status", Gene.IDH), ("IDH1/2 mutation", Gene.IDH),
        ("ATRX_status", Gene.ATRX), ("codel_1p19q", Gene.CODEL), ("1p/19q", Gene.CODEL),
        ("1p19q codeletion", Gene.CODEL), ("1p/19q co-deletion status", Gene.CODEL),
        ("idh_codel_subtype", None), ("atrx_expression_z", None), ("mgmt", None),
    ],
)  # fmt: skip
def test_gene_columns_are_known_by_their_usual_names(name, gene):
    assert gene_of(name) is gene


@pytest.mark.parametrize(
    ("name", "unit"),
    [("os_days", "days"), ("OS (months)", "months"), ("osMonths", "months"), ("survival_years", "years"),
     ("time", "unknown")],
)  # fmt: skip
def test_the_unit_is_read_from_the_name(name, unit):
    assert unit_of(name) is TimeUnit(unit)
