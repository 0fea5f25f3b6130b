import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglioma.words import cell, one_line, quoted, without_quoted

ANY = st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))


@given(ANY)
def test_any_text_becomes_one_line_that_every_file_takes(text: str) -> None:
    line = one_line(text)
    assert len(line) == len(text)
    assert line.isprintable()
    assert line.encode("utf-8").decode("utf-8") == line
    assert "\n" not in line
    assert one_line(line) == line


def test_what_people_write_stays_as_it_is() -> None:
    for text in ("Müller, Jörg", "头颅平扫", "a 'b' <c> & \"d\"", "Ω ± 3°"):
        assert one_line(text) == text


@pytest.mark.parametrize(
    "text",
    ["\x1b[2J", "a\nERROR forged", "\u202egpj.exe", "a\udcffb", "\x00", "\x85", "\u2028", "\ufeff"],
)
def test_what_could_harm_a_terminal_or_forge_a_line_is_gone(text: str) -> None:
    assert not set(one_line(text)) & set("\x1b\n\u202e\ud800\udcff\x00\x85\u2028\ufeff")


@given(ANY, ANY, ANY)
def test_what_was_quoted_is_found_again_whatever_it_is(before: str, name: str, after: str) -> None:
    plain, rest = (one_line(text).replace("<", "(").replace(">", ")") for text in (before, after))
    assert without_quoted(f"{plain}{quoted(name)}{rest}") == f"{plain}<...>{rest}"
    assert len(quoted(name, 10)) <= 15


@given(ANY)
def test_no_cell_is_a_formula_and_none_is_lost(text: str) -> None:
    shown = cell(text)
    assert not shown.startswith(("=", "+", "-", "@"))
    assert shown.removeprefix("'") == text.removeprefix("'")


def test_formulas_are_text_in_a_spreadsheet() -> None:
    table = io.StringIO()
    csv.writer(table).writerow([cell("=HYPERLINK(A1)"), cell("-2"), cell("P2"), cell("")])
    assert table.getvalue() == "'=HYPERLINK(A1),'-2,P2,\r\n"
