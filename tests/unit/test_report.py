import re
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError
from fedglioma_server.records import RunRecord, read_json, write_json
from fedglioma_server.report import write_report
from fedglioma_server.report_run import site_rounds_table, site_summary_table, sites_table
from fedglioma_server.report_saved import read_saved
from tests.report_fixture import interrupted_run, poor_run, rich_run

SECTIONS = ["result", "markers", "survival", "data", "training", "settings", "privacy", "reading"]
HOSTILE = ("</svg><script>alert(1)</script>", 'a"b onload=x', "c$\\frac&amp;")
ADDRESS_ATTRIBUTES = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "background"}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and the text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._style = self._style and tag != "style"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = rich_run(tmp_path_factory.mktemp("rich"))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = poor_run(tmp_path_factory.mktemp("poor"))
    write_report(folder)
    return folder


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    return interrupted_run(tmp_path)


def html_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def page_of(folder: Path) -> Page:
    return Page(html_of(folder))


def test_the_report_is_one_small_file_that_asks_for_nothing_else(rich: Path) -> None:
    html = html_of(rich)
    page = Page(html)
    addresses = [value for tag in ADDRESS_ATTRIBUTES for value in page.attributes(tag)]
    assert addresses
    assert all(value.startswith("#") for value in addresses)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|@import|//[a-z]|url\((?!#)", html)
    assert len(html.encode()) < 1_500_000


def test_every_section_is_there_and_linked_from_the_top(rich: Path) -> None:
    page = page_of(rich)
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == SECTIONS
    assert [value for value in page.attributes("href") if value[1:] in SECTIONS] == [
        f"#{s}" for s in SECTIONS
    ]


@pytest.mark.parametrize("folder", ["rich", "poor"])
def test_every_id_is_unique_and_every_reference_leads_somewhere(
    folder: str, request: pytest.FixtureRequest
) -> None:
    page = page_of(request.getfixturevalue(folder))
    ids = page.attributes("id")
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    assert {value[1:] for value in page.attributes("href")} <= set(ids)
    assert set(page.attributes("aria-labelledby")) <= set(ids)


def test_figures_are_described_and_headings_of_tables_say_what_they_head(rich: Path) -> None:
    page = page_of(rich)
    figures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(figures) >= 3 + 3 + 3 + 18
    assert all(attrs.get("role") == "img" for attrs in figures)
    assert all("aria-label" in attrs or "aria-labelledby" in attrs for attrs in figures)
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")


def test_every_row_of_a_table_fills_its_columns(rich: Path, poor: Path) -> None:
    for folder in (rich, poor):
        for table in re.findall(r"<table>.*?</table>", html_of(folder), re.DOTALL):
            columns = table.split("</thead>")[0].count('scope="col"')
            open_spans: list[int] = []
            for row in re.findall(r"<tr.*?</tr>", table.split("<tbody>")[1], re.DOTALL):
                cells = re.findall(r"<(?:td|th)\b[^>]*>", row)
                assert len(cells) + len(open_spans) == columns
                spans = [int(n) for cell in cells for n in re.findall(r'rowspan="(\d+)"', cell)]
                open_spans = [left - 1 for left in (*open_spans, *spans) if left > 1]
            assert open_spans == []


def test_the_same_folder_gives_the_same_report(rich: Path) -> None:
    before = html_of(rich)
    figures = {path: path.read_bytes() for path in rich.rglob("*.svg")}
    write_report(rich)
    assert html_of(rich) == before
    assert {path: path.read_bytes() for path in rich.rglob("*.svg")} == figures


def test_figures_lie_beside_the_results_as_files_that_open_alone(rich: Path) -> None:
    names = {path.relative_to(rich).as_posix() for path in rich.rglob("*.svg")}
    assert {
        "evaluation/roc-idh.svg",
        "evaluation/roc-codel-1p19q.svg",
        "evaluation/heldout-loss.svg",
    } <= names
    assert "survival/km-measured-lower-grade-idh.svg" in names
    assert "survival/km-predicted-mixed-codel-1p19q.svg" in names
    for path in rich.rglob("*.svg"):
        ET.parse(path)  # noqa: S314
    assert not list(rich.rglob("*.part"))


def test_synthetic_data_are_called_so_at_the_top_and_in_every_figure(rich: Path) -> None:
    page = page_of(rich)
    assert page.text.count("SYNTHETIC DATA: made-up patients, not clinical evidence") == 1
    assert all("SYNTHETIC DATA" in path.read_text() for path in rich.rglob("*.svg"))


def test_real_data_are_not_called_synthetic(poor: Path) -> None:
    assert "synthetic" not in page_of(poor).text.lower()


def test_a_reader_is_told_that_it_is_no_medical_device(rich: Path, poor: Path) -> None:
    for folder in (rich, poor):
        assert "Research use only, not a medical device" in page_of(folder).text


def test_few_patients_bring_the_caution_to_the_top(poor: Path) -> None:
    text = page_of(poor).text
    head = text[: text.index("MDPNet, a network")]
    assert "patients with a known status" in head
    assert "No survival comparison has enough deaths" in head


def test_accuracy_never_stands_without_the_majority_beside_it(rich: Path) -> None:
    html = html_of(rich)
    assert html.count("<dt>Accuracy</dt>") == html.count("<dt>Always guessing") == 3
    for head in re.findall(r"<thead>.*?</thead>", html, re.DOTALL):
        assert ("Sensitivity" not in head) or ("Accuracy" in head and "Always guessing" in head)


def test_no_value_is_printed_as_nan_or_none(rich: Path, poor: Path, stopped: Path) -> None:
    write_report(stopped)
    for folder in (rich, poor, stopped):
        assert not re.search(r"\bnan\b|\bNone\b|\bnull\b|\binf\b", page_of(folder).text)


def test_what_is_undefined_shows_a_dash_with_its_reason(poor: Path) -> None:
    text = page_of(poor).text
    assert "1p/19q: no curve, one class only: none of the 6 known cases is positive." in text
    assert "Cannot be given: one class only" in text
    assert "no value in any round for 1p/19q" in text


def test_hospitals_left_out_of_a_round_are_named_with_the_reason(poor: Path) -> None:
    text = page_of(poor).text
    assert "Round 2, henryford: error, the update holds numbers that are not finite." in text
    assert "Round 3, ucsf: no reply, no reply within the round's time." in text
    assert "upenn had no patient with a known marker and did not train." in text


def test_excluded_cases_are_told_by_hospital_and_reason(poor: Path) -> None:
    text = page_of(poor).text
    assert "<5 cases left out, <5 cases kept with a warning" in text
    assert "henryford left out a volume holds one value only <5" in text


def test_suppressed_counts_show_as_less_than_the_limit(poor: Path) -> None:
    html = html_of(poor)
    assert "<td>&lt;5</td>" in html
    assert "31 such counts in this run" in html


def test_intensity_scale_is_shown_with_its_id_and_who_decided_it(rich: Path) -> None:
    text = page_of(rich).text
    scale = read_json(rich / "run.json", RunRecord).scale_id
    assert scale is not None
    assert f"Intensities of all hospitals lie on one scale ({scale[:12]})." in text
    assert f"Scale {scale}." in text
    assert "T1 with contrast 0.0 55.1 73.2 90.3 100.0 3 30" in text


def test_who_was_off_the_scale_and_who_added_noise_is_told(poor: Path) -> None:
    text = page_of(poor).text
    for part in (
        "Grey: no hospital has 5 cases of the sequence; its landmarks are the usual ones.",
        "henryford: left out of the intensity scale: the mean landmarks of t1ce lie 31 points from",
        "casewestern and jefferson: the mean landmarks of flair lie 22 points apart",
        "With noise on its landmarks: casewestern (epsilon 2), delta 1e-05",
        "with Gaussian noise at casewestern (epsilon 2)",
    ):
        assert part in text, part


def test_without_a_common_scale_the_report_says_that_cases_keep_their_own(stopped: Path) -> None:
    record = read_json(stopped / "run.json", RunRecord)
    settings = record.settings.model_copy(update={"standardize": "zscore"})
    write_json(stopped / "run.json", record.model_copy(update={"settings": settings}))
    text = page_of(write_report(stopped).parent).text
    assert "Each case keeps an intensity scale of its own" in text
    assert "Percentile of the brain" not in text


def test_settings_versions_and_privacy_can_be_read(rich: Path) -> None:
    text = page_of(rich).text
    for part in (
        "fedglioma-server simulate --synthetic 240",
        "edge of the training crop in voxels",
        "2.13.0+cpu",
        "9f2c" * 16,
        "8,641,417",
        "34.6 MB (34,567,890 bytes)",
        "Not differentially private.",
        "What never leaves a hospital",
    ):
        assert part in text


def test_hostile_names_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    folder = rich_run(tmp_path, sites=HOSTILE, survival=False)
    page = page_of(write_report(folder).parent)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not page.attributes("onload")
    for name in HOSTILE:
        assert name in page.text
    for path in folder.rglob("*.svg"):
        ET.parse(path)  # noqa: S314


def test_an_interrupted_run_gets_a_report_that_says_so(stopped: Path) -> None:
    page = page_of(write_report(stopped).parent)
    assert "This run was interrupted: 2 of 10 rounds done." in page.text
    assert "The model was not evaluated yet" in page.text
    assert "best so far: round 2" in page.text
    assert "markers" not in page.attributes("id")
    assert "treat it as not differentially private" in page.text


def test_a_run_that_has_only_begun_gets_a_report(stopped: Path) -> None:
    record = read_json(stopped / "run.json", RunRecord)
    begun = record.model_copy(update={"status": "running", "sites": {}, "splits": {}})
    write_json(stopped / "run.json", begun)
    (stopped / "rounds.jsonl").unlink()
    text = page_of(write_report(stopped).parent).text
    assert "This run is not finished: 0 of 10 rounds done." in text
    assert "No round is on record yet" in text


def test_a_real_server_that_knows_no_splits_shows_rounded_totals(stopped: Path) -> None:
    record = read_json(stopped / "run.json", RunRecord)
    write_json(stopped / "run.json", record.model_copy(update={"splits": {}, "engine": "superlink"}))
    text = page_of(write_report(stopped).parent).text
    assert "was trained at 2 hospitals (henan and ningxia) on about 80 training cases" in text
    assert "About: rounded up by the hospital." in text


def test_report_of_a_private_simulation_has_the_noised_numbers_alone(rich: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(rich, folder)
    record = read_json(folder / "run.json", RunRecord)
    exact = [split.train for split in record.splits.values()]
    private = RunConfig(privacy="site", noise_multiplier=2.0)
    noised = {
        site: data.model_copy(update={"cases": 205 + 105 * number, "counts_epsilon": 0.5})
        for number, (site, data) in enumerate(record.sites.items())
    }
    changed = {"settings": private, "sites": noised}
    write_json(folder / "run.json", record.model_copy(update=changed))
    write_report(folder)
    text = page_of(folder).text
    assert f"on about {3 * 205 + 3 * 105} made-up training cases" in text
    assert f"{sum(exact)} made-up" not in text
    assert "About: with noise, and rounded up by the hospital." in text
    table = sites_table(record.model_copy(update=changed))
    rows = [[cell.text for cell in row.cells] for row in table.rows]
    assert [row[1] for row in rows] == ["205", "310", "415"]
    assert [row[2] for row in rows] == [str(split.selection) for split in record.splits.values()]
    told = {site: data.model_copy(update={"cases": 1}) for site, data in record.sites.items()}
    plain = sites_table(record.model_copy(update={"sites": told}))
    assert [row.cells[1].text for row in plain.rows] == [str(n) for n in exact]


def test_hospitals_that_told_no_loss_are_said_to_have_told_none(rich: Path) -> None:
    rounds = [
        line.model_copy(
            update={"sites": {n: s.model_copy(update={"loss": None}) for n, s in line.sites.items()}}
        )
        for line in read_saved(rich).rounds
    ]
    for table in (site_summary_table(rounds), site_rounds_table(rounds)):
        assert "No hospital told its training loss." in table.remark
    assert site_summary_table(read_saved(rich).rounds).remark == ""


def test_a_run_without_follow_up_says_why_there_are_no_curves(stopped: Path) -> None:
    write_json(stopped / "survival" / "none.json", {"reason": "no patient has a follow-up"})
    assert (
        "There is no survival analysis: no patient has a follow-up"
        in page_of(write_report(stopped).parent).text
    )


def test_a_folder_without_a_run_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is this a run folder"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b"{"),
        ("run.json", b"\xff\xfe"),
        ("rounds.jsonl", b'{"round": "seven"}\n'),
        ("rounds.jsonl", b"\xff\xfe"),
        ("privacy.json", b"[]"),
        ("evaluation/metrics.json", b'{"split": "report"}'),
        ("evaluation/predictions.csv", b"case,site\n1,2\n"),
        ("survival/results.json", b"{}"),
        ("survival/predicted.json", b"null"),
        ("survival/none.json", b"none"),
        ("model/config.json", b"{}"),
    ],
)
def test_a_damaged_file_is_named_and_leaves_the_old_report(
    rich: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(rich, folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(name.split("/")[-1])):
        write_report(folder)
    assert html_of(folder) == html_of(rich)
