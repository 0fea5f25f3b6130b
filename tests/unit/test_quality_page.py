import json
import re
import stat
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fedglioma.case import CHANNELS, Case, Finding, Modality
from fedglioma.data.cache import Cache, Record
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.quality import Measures, Quality
from fedglioma.scale import Scale
from fedglioma_client import quality as quality_module
from fedglioma_client.agreement import agreement
from fedglioma_client.pictures import pictures_of
from fedglioma_client.quality import describe, write_quality
from fedglioma_client.thumbnail import BRAIN_COLOUR, TUMOUR_COLOUR, picture

HOSTILE = '<script>alert("x")</script> & "quoted"'
SHAPE = (30, 36, 28)
SPACING = 5.0


class Page(HTMLParser):
    """Every tag with its attributes, and the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def brain_mask() -> np.ndarray:
    axes = [np.arange(n) - (n - 1) / 2 for n in SHAPE]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return np.asarray((x / 13) ** 2 + (y / 16) ** 2 + (z / 12) ** 2 < 1)


def measures(raw: float = 100.0, **changed: float) -> Measures:
    figures = {
        "snr": 30.0, "cnr": 2.0, "cjv": 0.5, "coverage": 1.0, "information": 1.05, "peak": 3.0, "raw": raw,
        "raw_span": raw / 2, "white_raw": raw * 1.2, "white": 0.4,
    }  # fmt: skip
    return Measures.model_validate(figures | changed)


def made(
    folder: Path,
    patient: str,
    *,
    raw: float = 100.0,
    scanner: str | None = None,
) -> tuple[PreparedCase, Record]:
    array = np.zeros((4, *SHAPE), np.float16)
    values = np.random.default_rng(len(patient)).normal(0, 1, SHAPE)
    for channel in (0, 1, 2):  # no T2
        array[channel] = np.where(brain_mask(), values, 0)
    affine = np.diag([SPACING] * 3 + [1.0])
    record = Record(
        present=(True, True, True, False),
        spacing_mm=SPACING,
        affine=tuple(map(tuple, affine.tolist())),
        box=tuple((0, n) for n in SHAPE),
        inputs=dict.fromkeys(CHANNELS[:3], "00"),
        settings={"brain_extractor": "auto"},
        percentiles=dict.fromkeys(CHANNELS[:3], (-1.0, -0.5, 0.0, 0.5, 1.0)),
        reference=Modality.T1CE,
        movements={},
        quality=Quality(
            brain_ml=1400.0, mask_agreement=None, modalities={m: measures(raw) for m in CHANNELS[:3]}
        ),
    )
    stored = Cache(folder / "cache").put(f"{abs(hash(patient)):064x}"[:64], array, record)
    case = Case(patient=patient, site="north", volumes={}, scanner=scanner)
    return stored.as_case(case), record


def written(folder: Path, made_cases: list[tuple[PreparedCase, Record]], **told: tuple[Finding, ...]) -> Path:
    prepared, records = [one for one, _ in made_cases], [record for _, record in made_cases]
    report = describe(
        "north",
        prepared,
        records,
        told.get("exclusions", ()),
        told.get("warnings", ()),
        spacing_mm=SPACING,
        small_cell_limit=5,
        synthetic=True,
    )
    write_quality(folder / "report", report, prepared, records)
    return folder / "report"


def finding(patient: str, code: str = "coverage", message: str = "t1 shows 80 % of the brain") -> Finding:
    return Finding(patient=patient, site="north", code=code, message=message, stage="prepare")


def test_page_holds_every_case_with_its_pictures_figures_and_remedies(tmp_path: Path) -> None:
    cases = [made(tmp_path, f"patient-{n}") for n in range(3)]
    report = written(
        tmp_path, cases, warnings=(finding("patient-1"),), exclusions=(finding("gone", "truncated", "short"),)
    )
    page = Page(report / "quality.html")
    for words in ("patient-0", "patient-1", "patient-2", "gone", "short", "1400 mL", "not there"):
        assert words in page.text
    assert "t1 shows 80 % of the brain" in page.text
    assert "check whether the sequence was cut short" in page.text
    assert "copy the file again" in page.text
    assert "made-up patients" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 9
    assert sum(tag == "details" and "case" in (given.get("class") or "") for tag, given in page.tags) == 3


def test_page_fetches_nothing_runs_nothing_and_escapes_names(tmp_path: Path) -> None:
    report = written(
        tmp_path, [made(tmp_path, HOSTILE, scanner=HOSTILE)], warnings=(finding(HOSTILE, "code", HOSTILE),)
    )
    page = Page(report / "quality.html")
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(HOSTILE) >= 3
    for _, given in page.tags:
        assert not any(name.startswith("on") for name in given)
        for name in ("src", "href"):
            assert (given.get(name) or "data:").startswith("data:")
    source = (report / "quality.html").read_text()
    assert not re.search(r"https?://|url\(|@import", source)
    assert str(tmp_path) not in source
    assert str(tmp_path) not in (report / "quality.json").read_text()


def test_series_that_every_exam_has_are_listed_and_make_no_case_doubtful(tmp_path: Path) -> None:
    cases = [made(tmp_path, "patient-0"), made(tmp_path, "patient-1")]
    told = (
        finding("patient-0", "localizer", "s1: a localizer"),
        finding("patient-1", "localizer", "s1: a localizer"),
        finding("patient-1", "unclear", "s7: name and timing disagree"),
    )
    report = written(tmp_path, cases, warnings=told)
    data = json.loads((report / "quality.json").read_text())
    assert [case["status"] for case in data["cases"]] == ["pass", "warn"]
    text = Page(report / "quality.html").text
    assert "left aside" in text
    assert text.count("s1: a localizer") == 2


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    report = written(tmp_path, [made(tmp_path, "p")])
    for name in ("quality.html", "quality.json"):
        assert stat.S_IMODE((report / name).stat().st_mode) == 0o600


def test_machine_file_has_the_same_figures_and_counts_that_hide_small_groups(tmp_path: Path) -> None:
    cases = [made(tmp_path, f"patient-{n}") for n in range(12)]
    warnings = (*(finding(f"patient-{n}") for n in range(7)), finding("patient-0", "noise"))
    exclusions = (finding("gone", "truncated"), finding("gone", "truncated"))
    report = written(tmp_path, cases, warnings=warnings, exclusions=exclusions)
    data = json.loads((report / "quality.json").read_text())
    assert [case["patient"] for case in data["cases"]] == [f"patient-{n}" for n in range(12)]
    assert data["cases"][0]["modalities"]["t1"] == measures().model_dump(mode="json")
    assert [case["status"] for case in data["cases"]] == ["warn"] * 7 + ["pass"] * 5
    counts = data["public_counts"]
    assert counts == {
        "limit": 5,
        "cases": 15,
        "passed": 5,
        "warned": 5,  # 7, to the nearest 5
        "excluded": None,
        "warned_by_code": {"coverage": 5, "noise": None},
        "excluded_by_code": {"truncated": None},
    }
    assert "patient" not in json.dumps(counts)


def test_large_cohort_is_paged_and_pages_of_before_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_module, "CASES_PER_PAGE", 2)
    cases = [made(tmp_path, f"patient-{n}") for n in range(5)]
    report = written(tmp_path, cases)
    assert sorted(path.name for path in report.glob("*.html")) == [
        "quality-2.html", "quality-3.html", "quality.html",
    ]  # fmt: skip
    assert "patient-4" in Page(report / "quality-3.html").text
    assert "patient-4" not in Page(report / "quality.html").text
    links = [given["href"] for tag, given in Page(report / "quality-2.html").tags if tag == "a"]
    assert links == ["quality.html", "quality-3.html"]
    written(tmp_path, cases[:2])
    assert [path.name for path in report.glob("*.html")] == ["quality.html"]


def test_cohort_without_a_usable_case_has_a_page_too(tmp_path: Path) -> None:
    report = written(tmp_path, [], exclusions=(finding("gone", "truncated", "too short"),))
    page = Page(report / "quality.html")
    assert "too short" in page.text
    assert "No case was prepared" in page.text


def pixels(png: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the palette indices and the palette of a PNG, as an independent reader would."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + length
    assert set(chunks) == {b"IHDR", b"PLTE", b"IDAT", b"IEND"}  # no text, no date
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    return np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8), np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(
        -1, 3
    )


def test_picture_shows_front_on_top_and_the_right_side_on_the_left() -> None:
    plane = np.zeros((40, 60), np.float32)
    plane[30:35, 50:55] = 1  # right, front
    indices, palette = pixels(picture(plane, (80, 120), np.ones(plane.shape, bool)))
    assert indices.shape == (144, 96)
    bright = palette[indices].sum(axis=2) > 600
    rows, columns = np.nonzero(bright)
    assert rows.mean() < 40
    assert columns.mean() < 40


def test_picture_draws_outlines_and_stays_small() -> None:
    plane = np.random.default_rng(0).normal(0, 1, (150, 180)).astype(np.float32)
    x, y = np.meshgrid(np.arange(150) - 75, np.arange(180) - 90, indexing="ij")
    brain, tumour = (x / 70) ** 2 + (y / 85) ** 2 < 1, x**2 + y**2 < 400
    png = picture(plane, (150, 180), brain, tumour)
    indices, palette = pixels(png)
    colours = {tuple(colour) for colour in palette[np.unique(indices)].tolist()}
    assert {BRAIN_COLOUR, TUMOUR_COLOUR} <= colours
    assert len(png) <= 12_000


def test_mask_is_laid_over_and_its_volume_said(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[12:16, 15:20, 10:14] = 3
    np.save(tmp_path / "mask.npy", labels)
    prepared, record = made(tmp_path, "a")
    bare = pictures_of(prepared, record)
    shown = pictures_of(replace(prepared, mask=tmp_path / "mask.npy"), record)
    assert (bare.tumour_ml, shown.tumour_ml) == (None, pytest.approx(4 * 5 * 4 * 0.125))
    for pictures, drawn in ((bare, False), (shown, True)):
        indices, palette = pixels(pictures.modalities[Modality.T1])
        assert (TUMOUR_COLOUR in {tuple(c) for c in palette[np.unique(indices)].tolist()}) is drawn


def test_agreement_is_that_of_the_scanners_medians(tmp_path: Path) -> None:
    cases = [made(tmp_path, f"a{n}", raw=100.0, scanner="A") for n in range(5)]
    cases += [made(tmp_path, f"b{n}", raw=300.0, scanner="B") for n in range(5)]
    cases += [made(tmp_path, f"c{n}", raw=900.0, scanner="C") for n in range(4)]  # too few to count
    records, scanners = [record for _, record in cases], [one.case.scanner for one, _ in cases]
    scale = Scale(
        landmarks=dict.fromkeys(CHANNELS, (0.0, 40.0, 60.0, 80.0, 100.0)),
        cases=dict.fromkeys(CHANNELS, 5),
        sites=dict.fromkeys(CHANNELS, 1),
    )
    found = {(one.modality, one.tissue): one for one in agreement(records, scanners, scale)}
    assert len(found) == 6
    row = found[Modality.T1, "brain"]
    assert (row.scanners, row.cases) == (2, 10)
    assert row.iiv_raw == pytest.approx(0.5)  # 100 and 300 about 200
    assert row.raw == pytest.approx(1.0)  # 100 off, of a range of 50 to 150: 100
    assert (row.zscore, row.common, row.iiv_common) == (0, 0, 0)
    assert agreement(records[:5], scanners[:5]) == ()
    assert agreement(records, [None] * len(records)) == ()
