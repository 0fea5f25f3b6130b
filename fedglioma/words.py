"""Words from outside, made fit for a line of a terminal, a log or a table.

A file's or a patient's name may hold line breaks, a terminal's escape sequences, bytes that are no text, or
what a spreadsheet takes for a formula.
"""

import re
from typing import Final

_FORMULA: Final = ("=", "+", "-", "@")
_QUOTED: Final = re.compile(r"<[^<>]*>")


def one_line(text: str) -> str:
    """Return a text of printable characters alone; each that is not printable becomes ``?``."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def quoted(text: str, most: int = 120) -> str:
    """Return a file's name or a cell's text as findings hold it: shortened, between ``<`` and ``>``.

    By these marks it is found again and left out where it must not be told.
    """
    plain = one_line(text).translate({ord("<"): "?", ord(">"): "?"})
    return f"<{plain if len(plain) <= most else plain[:most] + '...'}>"


def without_quoted(text: str) -> str:
    """Return a finding's words without the names and texts that ``quoted`` put there."""
    return _QUOTED.sub("<...>", text)


def cell(text: str) -> str:
    """Return a text that a spreadsheet shows and does not compute: where needed with an apostrophe before."""
    return f"'{text}" if text.startswith(_FORMULA) else text
