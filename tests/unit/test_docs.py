"""The pages against the code: links, commands, options, codes, settings, formats, cited tests."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from fedglioma import errors
from fedglioma.config.run import RunConfig
from fedglioma.console import INTERRUPTED
from fedglioma_client.cli import app as client_cli
from fedglioma_server.cli import app as server_cli
from fedglioma_server.records import HeldOutRound, RoundRecord, RunRecord, SiteData, SiteRound
from fedglioma_server.run_simulation import SYNTHETIC_DEFAULTS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("fedglioma", "server", "client")
PAGES = tuple(
    sorted(
        [
            ROOT / "README.md",
            ROOT / "fedglioma" / "CHANGELOG.md",
            *(ROOT / package / "README.md" for package in PACKAGES),
            *DOCS.glob("*.md"),
        ]
    )
)
PROGRAMS: dict[str, Any] = {
    "fedglioma-server": typer.main.get_command(server_cli),
    "fedglioma-client": typer.main.get_command(client_cli),
}
FOREIGN_OPTIONS = {
    "--index-url",
    *("--bundle_root", "--cache_dir", "--config_file", "--data_list_file", "--dataset_dir", "--filepath"),
    *("--meta_file", "--output_dir"),
}
"""Options of programs that are not ours, as pip's and those that MONAI takes from a bundle."""
LATER = "## Not in this version"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(text: str) -> str:
    """Return a page without its code blocks."""
    return FENCE.sub("", text)


def today(text: str) -> str:
    """Return a page without the section on what does not exist yet."""
    before, _, after = text.partition(LATER)
    _, _, rest = after.partition("\n## ")
    return before + rest


def spans(text: str) -> list[str]:
    return SPAN.findall(prose(text))


def code_lines(text: str) -> Iterator[str]:
    """Yield what stands in code, in blocks line by line and in the text span by span."""
    for _, block in FENCE.findall(text):
        yield from block.replace("\\\n", " ").splitlines()
    yield from spans(text)


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    bare = re.sub(r"[`*]", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", bare).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(found) for found in re.findall(r"^#+ (.+)$", prose(page.read_text()), re.MULTILINE)}


def options_of(command: click.Command) -> dict[str, click.Parameter]:
    with click.Context(command) as context:
        parameters = command.get_params(context)
    return {name: p for p in parameters for name in (*p.opts, *p.secondary_opts)}


def all_of(command: Any) -> Iterator[click.Command]:
    """Yield a command and those below it."""
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from all_of(below)


def commands_in(text: str) -> Iterator[tuple[str, str]]:
    """Yield each use of one of our programs: its name and what stands behind it."""
    for line in code_lines(today(text)):
        for found in re.finditer(r"(?<![\w./-])(fedglioma-(?:server|client))(?= |$)(.*)", line):
            yield found[1], found[2].split("#")[0]


def complaints(program: str, arguments: str) -> Iterator[str]:
    command: Any = PROGRAMS[program]
    known, words = options_of(command), iter(shlex.split(arguments, posix=True))
    for word in words:
        if word.startswith("-"):
            option = word.split("=")[0]
            if option not in known:
                yield f"{command.name or program} has no {option}"
            elif "=" not in word and not getattr(known[option], "is_flag", False):
                next(words, None)
        elif isinstance(command, click.Group):
            command = command.commands.get(word)
            if command is None:
                yield f"{program} has no command {word}"
                return
            known = options_of(command)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for target in LINK.findall(prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        if not goal.exists() or (anchor and anchor not in anchors(goal)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_on_a_page_exist(page: Path) -> None:
    wrong = [
        f"{program}{arguments}: {complaint}"
        for program, arguments in commands_in(page.read_text())
        for complaint in complaints(program, arguments)
    ]
    assert not wrong


def test_an_option_that_does_not_exist_would_be_noticed() -> None:
    assert list(complaints("fedglioma-server", " simulate --cohort DIR --crpo 3")) == [
        "simulate has no --crpo"
    ]
    assert list(complaints("fedglioma-client", " --site ningxia divulge")) == [
        "fedglioma-client has no command divulge"
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_named_alone_exist(page: Path) -> None:
    ours = {
        option
        for program in PROGRAMS.values()
        for command in all_of(program)
        for option in options_of(command)
    }
    scripts = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    named = {
        word
        for line in code_lines(today(page.read_text()))
        for word in re.findall(r"(?<!\S)--[a-z][a-z_-]*", line)
    }
    named -= ours | FOREIGN_OPTIONS | set(re.findall(r'"(--[a-z-]+)"', scripts))
    assert not named


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_environment_variables_on_a_page_are_read_somewhere(page: Path) -> None:
    read = {f"FEDGLIOMA_{name.upper()}" for name in RunConfig.model_fields}
    code = "".join(path.read_text() for top in ("server", "client") for path in (ROOT / top).rglob("*.py"))
    read |= set(re.findall(r'envvar="(FEDGLIOMA_[A-Z_]+)"', code))
    figures = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    read |= set(re.findall(r'environ\.get\("(FEDGLIOMA_[A-Z_]+)"', figures))
    scripts = "".join(path.read_text() for path in (ROOT / "deploy").rglob("*.sh"))
    read |= set(re.findall(r"\$\{(FEDGLIOMA_[A-Z_]+)", scripts))
    assert set(re.findall(r"FEDGLIOMA_[A-Z_]+\b", page.read_text())) <= read


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_tests_that_a_page_cites_are_there(page: Path) -> None:
    text = prose(page.read_text())
    tops = ("fedglioma/", "server/", "client/", "tests/", "benchmarks/", "docs/", "site_config/")
    cited = [span for span in spans(text) if span.startswith(tops) and re.fullmatch(r"[\w./-]+\.\w+", span)]
    assert [path for path in cited if not (ROOT / path).is_file()] == []
    places = dict(re.findall(r"`(test_\w+)`(?:\s+in\s+`(tests/[\w/]+\.py)`)?", text))
    defined = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    missing = []
    for test, place in places.items():
        looked = [source for path, source in defined.items() if not place or path == ROOT / place]
        if not any(f"def {test}(" in source for source in looked):
            missing.append(f"{test} in {place or 'tests'}")
    assert not missing


def test_every_statement_of_what_leaves_a_site_names_its_test() -> None:
    text = (DOCS / "what-leaves-a-site.md").read_text()
    tables = [
        block for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE) if "test |" in block.split("\n")[0]
    ]
    rows = [row for block in tables for row in block.strip().split("\n")[2:]]
    assert len(rows) > 20
    assert [row for row in rows if "`test_" not in row and "the same" not in row] == []


def test_every_exit_code_has_a_paragraph() -> None:
    raised = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.FedGliomaError)
    }
    sections = dict(
        re.findall(r"^## (\d+): .+\n\n(\S.*)$", (DOCS / "exit-codes.md").read_text(), re.MULTILINE)
    )
    assert {str(code) for code in raised | {0, 6, 7, INTERRUPTED}} == set(sections)
    assert all(len(paragraph) > 80 for paragraph in sections.values())


SPEAKERS = {"Doubt": 0, "exclude": 0, "warn": 0, "_exclude": 1, "_warn": 1, "VolumeError": 0}
"""Calls that give a finding its short name, and in which argument."""


class CodeFinder(ast.NodeVisitor):
    """Collects the short names that findings get in the source of fedglioma/data."""

    def __init__(self) -> None:
        self.codes: set[str] = set()

    def _add(self, node: ast.expr | None) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            self.codes.add(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        place = SPEAKERS.get(called)
        if place is not None and len(node.args) > place:
            self._add(node.args[place])
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        self._add(given.get("code"))
        if called == "_soft" and "code" not in given:  # then the column's name is the short name
            self._add(node.args[0])
        self.generic_visit(node)

    def visit_Tuple(self, node: ast.Tuple) -> None:
        """Take ``("two_files", f"...")``: a short name beside a sentence."""
        if len(node.elts) == 2 and _is_sentence(node.elts[1]):
            first = node.elts[0]
            if isinstance(first, ast.Constant) and re.fullmatch(r"[a-z]+(_[a-z]+)+", str(first.value)):
                self._add(first)
        self.generic_visit(node)


def _is_sentence(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and " " in node.value
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Name) and node.id == "reason")


def test_every_finding_has_a_row_for_the_data_manager() -> None:
    finder = CodeFinder()
    for path in (ROOT / "fedglioma" / "data").glob("*.py"):
        finder.visit(ast.parse(path.read_text()))
    assert {"label", "age", "two_files", "truncated", "not_stripped", "duplicate_image"} <= finder.codes
    page = (DOCS / "data-manager.md").read_text().partition("## Who was left out, and why")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert sorted(code for code, _, _ in rows) == sorted(finder.codes)


def test_every_setting_is_explained_with_its_default() -> None:
    page = (DOCS / "ml-engineer.md").read_text().partition("## Every setting")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.MULTILINE))
    for name, field in RunConfig.model_fields.items():
        told, default = rows[name].strip().strip("`"), field.default
        if isinstance(default, bool):
            assert told == ("on" if default else "off"), name
        elif isinstance(default, int | float):
            assert float(told) == pytest.approx(default), name
        else:
            assert told == default, name


@pytest.mark.parametrize("page", ["ml-engineer.md", "researcher.md"])
def test_settings_of_test_size_are_told_as_they_are(page: str) -> None:
    told = ", ".join(f"`{name}` {value:g}" for name, value in SYNTHETIC_DEFAULTS.items())
    assert told in (DOCS / page).read_text()


def test_demo_is_described_as_the_makefile_runs_it() -> None:
    command = re.search(r"simulate --synthetic (\d+)", (ROOT / "Makefile").read_text())
    assert command
    readme = (ROOT / "README.md").read_text()
    assert f"on {command[1]} made-up patients" in readme
    assert f"`fedglioma-server simulate --synthetic {command[1]}`" in readme


@pytest.mark.parametrize("record", [RunRecord, RoundRecord, SiteRound, HeldOutRound, SiteData])
def test_every_field_of_a_run_folder_is_described(record: Any) -> None:
    named = set(spans((DOCS / "ml-engineer.md").read_text()))
    assert set(record.model_fields) <= named


def test_every_module_has_one_line_in_the_structure() -> None:
    block = (ROOT / "README.md").read_text().partition("## Structure")[2].split("```")[1]
    listed, top = [], ""
    for line in block.splitlines()[1:]:
        first = line.split(maxsplit=1)[0]
        if not line.startswith(" "):
            top = first if first.endswith("/") else ""
        listed.append(top + first if line.startswith(" ") else first)
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in (*PACKAGES, "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(path for path in listed if path.endswith(".py")) == sorted(modules)
    assert [path for path in listed if not (ROOT / path).exists()] == []


def test_walks_name_functions_that_exist() -> None:
    text = (ROOT / "fedglioma" / "README.md").read_text().partition("## Who may import whom")[0]
    steps = re.findall(r"`([\w/]+\.py): (\w+)", text)
    assert len(steps) > 30
    missing = []
    for place, name in steps:
        found = [
            path
            for top in ("fedglioma", "server/fedglioma_server", "client/fedglioma_client", "server", "client")
            if (path := ROOT / top / place).is_file()
        ]
        if not any(re.search(rf"^\s*(def|class) {name}\b", path.read_text(), re.MULTILINE) for path in found):
            missing.append(f"{place}: {name}")
    assert not missing
