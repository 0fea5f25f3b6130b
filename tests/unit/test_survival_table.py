import numpy as np
import pytest

from fedglioma.case import Case, Genotype, Outcome
from fedglioma.errors import ConfigError, DataError
from fedglioma.survival.columns import TimeUnit
from fedglioma.survival.table import read_table, table_from_cases
from fedglioma.survival.values import Group

HEADER = "participant_id,os_days,os_event,idh,grade,age\n"
GOOD = "a,100,1,mutant,2,40\nb,200.5,0,wildtype,4,61.5\nc,300,1,,3,\n"


@pytest.fixture
def write(tmp_path):
    def write_text(text, name="clinical.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def left(table):
    return {part.reason: (part.rows, part.lines) for part in table.left_out}


def test_a_clean_table_gives_its_columns(write):
    table = read_table(write(HEADER + GOOD))
    assert table.time.tolist() == [100, 200.5, 300]
    assert table.died.tolist() == [True, False, True]
    assert table.unit is TimeUnit.DAYS
    assert table.markers[0].codes.tolist() == [1, 0, -1]
    assert table.markers[0].classes == ("wild-type", "mutant")
    assert table.groups == (Group.LOWER_GRADE, Group.GLIOBLASTOMA, Group.LOWER_GRADE)
    assert np.isnan(table.age[2])
    assert table.left_out == ()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_found_and_a_byte_order_mark_ignored(write, delimiter):
    text = "\N{ZERO WIDTH NO-BREAK SPACE}" + (HEADER + GOOD).replace(",", delimiter).replace("\n", "\r\n")
    assert read_table(write(text)).time.tolist() == [100, 200.5, 300]


def test_a_cohort_folder_is_read_by_its_participants(write, tmp_path):
    write((HEADER + GOOD).replace(",", "\t"), "participants.tsv")
    table = read_table(tmp_path)
    assert table.source == f"{tmp_path.name}/participants.tsv"
    assert len(table.time) == 3


def test_unusable_rows_are_counted_by_reason_and_named_by_line(write):
    bad = "d,-5,1,mutant,2,\ne,soon,1,mutant,2,\nf,,1,mutant,2,\ng,10,maybe,mutant,2,\nh,10,n/a,mutant,2,\n"
    table = read_table(write(HEADER + GOOD + bad + "i,1,1,mutant,2,3,4\na,50,1,mutant,2,\n"))
    assert table.rows == 10
    assert len(table.time) == 3
    assert left(table) == {
        "os_days negative": (1, (5,)),
        "os_days not a number": (1, (6,)),
        "os_days missing": (1, (7,)),
        "os_event not understood (1 died, 0 censored)": (1, (8,)),
        "os_event missing": (1, (9,)),
        "more cells than columns": (1, (10,)),
        "patient is in an earlier row too (participant_id); the first is kept": (1, (11,)),
    }


def test_an_unusable_row_does_not_push_out_the_patients_usable_one(write):
    table = read_table(write(HEADER + "a,,1,mutant,2,\nsub-A,90,1,mutant,2,\n"))
    assert table.time.tolist() == [90]


def test_only_the_first_lines_of_a_reason_are_named(write):
    rows = "".join(f"x{i},,1,mutant,2,\n" for i in range(30))
    (part,) = read_table(write(HEADER + GOOD + rows)).left_out
    assert part.rows == 30
    assert part.lines == tuple(range(5, 15))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no table"),
        ("participant_id\na\n", "no table"),
        (HEADER, "no table"),
        ("a,a,os_days,os_event,idh\n1,2,3,1,1\n", "two columns are named 'a'"),
        (HEADER + "a,-1,1,mutant,2,\n", "no usable row for time os_days and event os_event"),
        ("time,status,idh\n5,1,0\n6,2,1\n7,2,1\n8,3,1\n", "says who died"),
    ],
)
def test_a_table_without_anything_usable_is_refused_in_one_line(write, text, words):
    with pytest.raises((DataError, ConfigError), match=words) as caught:
        read_table(write(text))
    assert "\n" not in str(caught.value)


def test_events_coded_one_and_two_are_refused_not_misread(write):
    text = "time,status,idh\n" + "".join(f"{i},2,1\n" for i in range(3))
    with pytest.raises(DataError, match="write 0 for censored and 1 for died"):
        read_table(write(text), time="time", event="status")


def test_a_file_that_is_no_utf8_text_is_refused(tmp_path):
    path = tmp_path / "clinical.csv"
    path.write_bytes(b"\xd0\xd4\xb1\xf0,os_days\n\xff\xfe,3\n")
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_table(path)


def test_a_spreadsheet_or_other_binary_file_is_refused(tmp_path):
    path = tmp_path / "clinical.xlsx"
    path.write_bytes(b"PK\x03\x04\x00\x00,\x00\n\x00\x00\n")
    with pytest.raises(DataError, match=r"clinical\.xlsx: not a text table"):
        read_table(path)


def test_an_absent_table_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="no such table"):
        read_table(tmp_path / "absent.csv")
    with pytest.raises(ConfigError, match="no such table"):
        read_table(tmp_path)


def test_codes_and_words_for_a_marker_mean_the_same(write):
    rows = "a,1,1,1,2,\nb,2,1,mutant,2,\nc,3,1,0,2,\nd,4,1,WT,2,\ne,5,1,n/a,2,\nf,6,1,odd,2,\n"
    (marker,) = read_table(write(HEADER + rows)).markers
    assert marker.codes.tolist() == [1, 1, 0, 0, -1, -1]
    assert (marker.not_understood, marker.example) == (1, "odd")


def test_a_column_of_words_divides_by_word(write):
    text = HEADER.replace("age", "sex") + "a,1,1,1,2,F\nb,2,1,1,2,m\nc,3,1,1,2,M\nd,4,1,1,2,\n"
    (marker,) = read_table(write(text), groups=["sex"]).markers
    assert marker.classes == ("F", "m")
    assert marker.codes.tolist() == [0, 1, 1, -1]


def test_a_binary_column_keeps_its_own_words(write):
    text = HEADER.replace("age", "mgmt") + "a,1,1,1,2,methylated\nb,2,1,1,2,unmethylated\n"
    (marker,) = read_table(write(text), groups=["mgmt"]).markers
    assert marker.classes == ("unmethylated", "methylated")
    assert marker.codes.tolist() == [1, 0]


def test_a_measurement_is_no_group(write):
    rows = "".join(f"p{i},{i + 1},1,mutant,2,{20 + i}\n" for i in range(12))
    with pytest.raises(ConfigError, match="age has 12 different values"):
        read_table(write(HEADER + rows), groups=["age"])


def test_the_unit_can_be_named_and_a_missing_or_odd_one_is_noted(write):
    text = (HEADER + GOOD).replace("os_days", "time")
    assert "name it with --unit" in read_table(write(text)).notes[0]
    assert read_table(write(text), unit=TimeUnit.MONTHS).unit is TimeUnit.MONTHS
    long = (HEADER + GOOD).replace("os_days", "os_months").replace("300", "3000")
    assert "over a hundred years" in read_table(write(long)).notes[0]


def test_a_column_named_censored_is_read_as_asked_but_remarked_on(write):
    text = (HEADER + GOOD).replace("os_event", "censored")
    assert "check that it is not the reverse" in read_table(write(text), event="censored").notes[0]


def test_ages_in_days_are_not_taken_for_years(write):
    assert read_table(write(HEADER + "a,1,1,1,2,14600\nb,2,1,0,2,20000\n")).age is None


def test_cases_in_memory_give_the_same_table():
    def case(patient, outcome, **labels):
        return Case(
            patient=patient, site="henan", volumes={}, genotype=Genotype(**labels), grade=4, outcome=outcome
        )

    table = table_from_cases(
        [
            case("a", Outcome(os_days=10, os_event=1), idh=1),
            case("a", Outcome(os_days=10, os_event=1), idh=1),
            case("b", Outcome(os_days=20.5, os_event=0), atrx=0),
            case("c", None, idh=0),
        ],
        "held-out",
    )
    assert table.time.tolist() == [10, 20.5]
    assert table.died.tolist() == [True, False]
    assert [m.codes.tolist() for m in table.markers] == [[1, -1], [-1, 0], [-1, -1]]
    assert table.groups == (Group.GLIOBLASTOMA,) * 2
    assert sum(part.rows for part in table.left_out) == 2


def test_cases_without_any_follow_up_are_a_data_error():
    with pytest.raises(DataError, match="no usable row"):
        table_from_cases([Case(patient="a", site="henan", volumes={})], "held-out")
    with pytest.raises(DataError, match="the table is empty"):
        table_from_cases([], "held-out")
