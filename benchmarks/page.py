"""Measured figures in the docs: a benchmark replaces what stands between its two marks."""

import argparse
import os
from pathlib import Path

from fedglioma_server.records import write_text


def parser_of(description: str | None, *, page: str) -> argparse.ArgumentParser:
    """Return a parser of what benchmarks of images ask for: the folder of real cases, the page to fill."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("FEDGLIOMA_REAL_DATA"), help="folder of real cases"
    )
    parser.add_argument("--out", type=Path, help=f"page whose table is replaced, {page}")
    return parser


def fill(page: Path, what: str, text: str) -> None:
    """Replace what stands between ``<!-- WHAT: begin -->`` and ``<!-- WHAT: end -->`` in a page."""
    begin, end = f"<!-- {what}: begin -->", f"<!-- {what}: end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page}: has no place for the figures, the lines {begin} and {end}")
    write_text(page, f"{before}{begin}\n{text.rstrip()}\n{end}{after}")
