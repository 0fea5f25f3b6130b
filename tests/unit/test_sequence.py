"""What a series is taken for: vendors' names and timings, and the hospital's own table."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglioma.case import Modality
from fedglioma.data.dicom_header import SeriesText, TechnicalHeader
from fedglioma.data.sequence import Choice, SeriesMap, classify, read_series_map
from fedglioma.errors import ConfigError

ORIGINAL = ("ORIGINAL", "PRIMARY")
# description, TR, TE, TI in ms, scanning sequence, agent, expected
TABLE = [
    ("t1_mprage_sag_p2_iso", 1900, 2.5, 900, "GR IR", False, "t1"),
    ("t1_mprage_sag_p2_iso_Gd", 1900, 2.5, 900, "GR IR", True, "t1ce"),
    ("AX T1 FLAIR", 2250, 24, 860, "SE IR", False, "t1"),
    ("OAx T1 FLAIR+C", 2250, 24, 860, "SE IR", False, "t1ce"),
    ("Ax T2 FLAIR", 8500, 120, 2200, "SE IR", False, "flair"),
    ("AX T2 FLAIR +C", 8500, 120, 2200, "SE IR", True, "flair"),
    ("t2_tirm_tra_dark-fluid", 9000, 85, 2500, "SE IR", False, "flair"),
    ("T2W_TSE", 3000, 80, None, "SE", False, "t2"),
    ("t2_tse_tra", 5000, 100, None, "SE", False, "t2"),
    ("OAx T2 PROPELLER", 4500, 98, None, "SE", False, "t2"),
    ("ep2d_diff_3scan_trace_p2_ADC", 4000, 90, None, "EP", False, None),
    ("localizer", 8, 3, None, "GR", False, None),
    ("AX T2* GRE", 600, 20, None, "GR", False, None),
    ("SAG T1 SE", 500, 10, None, "SE", False, "t1"),
    ("Ax T1 +C", 600, 12, None, "SE", True, "t1ce"),
    ("3D BRAVO C+", 8, 3, 450, "GR", False, "t1ce"),
    ("T1增强 横断", 600, 12, None, "SE", False, "t1ce"),
    ("T1平扫 横断", 600, 12, None, "SE", False, "t1"),
    ("T2压水 横断", 8500, 120, 2200, "SE IR", False, "flair"),
    ("s301", 8500, 120, 2200, "SE IR", False, "flair"),
    ("s302", 500, 10, None, "SE", False, "t1"),
    ("T2 FLAIR", 500, 10, None, "SE", False, None),
    ("PD TSE", 3000, 15, None, "SE", False, None),
    ("DWI b1000", 4000, 80, None, "EP SE", False, None),
    ("T1W_3D_TFE", 8, 4, None, "GR", False, "t1"),
    ("eT1W_SE_CLEAR+gd", 500, 12, None, "SE", False, "t1ce"),
    ("t1_vibe_tra_post", 5, 2.3, None, "GR", True, "t1ce"),
    ("SWI_Images", 28, 20, None, "GR", False, None),
    ("Ax DWI 1000b", 5000, 80, None, "EP", False, None),
    ("T2_SPACE_sag", 3200, 400, None, "SE", False, "t2"),
    ("3D_FLAIR_SPACE", 5000, 390, 1800, "SE IR", False, "flair"),
    ("T1 SE TRA KM", 500, 12, None, "SE", False, "t1ce"),
    ("t1_se_tra_nativ", 500, 12, None, "SE", False, "t1"),
    ("T1 ohne KM", 500, 12, None, "SE", False, "t1"),
    ("Hirn t1 mit KM", 500, 12, None, "SE", True, "t1ce"),
    ("AX T1 posterior fossa", 500, 12, None, "SE", False, "t1"),
    ("Ax T1 non-contrast", 500, 12, None, "SE", False, "t1"),
    ("3-plane loc", 8, 3, None, "GR", False, None),
    ("MR Perfusion DSC", 1500, 30, None, "EP", True, None),
    ("3D TOF MRA", 25, 3.4, None, "GR", False, None),
    ("t1_mpr_sag_p2_iso", 2300, 2.9, 900, "GR IR", False, "t1"),
    ("t1_se mpr cor", 500, 12, None, "SE", False, None),
    ("Ax T2 FSE ASSET", 4500, 98, None, "SE", False, "t2"),
    ("ASSET calibration", 150, 2, None, "GR", False, None),
    ("t1_fl3d_fa15", 20, 4, None, "GR", False, "t1"),
    ("pre-op T1 +C", 500, 12, None, "SE", False, "t1ce"),
    ("T1 vor KM", 500, 12, None, "SE", False, "t1"),
    ("T1 nach KM", 500, 12, None, "SE", False, "t1ce"),
    ("T2 map", None, None, None, "", False, "t2"),
    ("unnamed", None, None, None, "", False, None),
    ("T1 T2 both", None, None, None, "", False, None),
]  # fmt: skip


def judge(
    description: str, tr: float | None = None, te: float | None = None, ti: float | None = None,
    sequence: str = "", agent: bool = False, image_type: tuple[str, ...] = ORIGINAL,
    own: SeriesMap | None = None,
) -> Choice:  # fmt: skip
    header = TechnicalHeader(
        repetition_ms=tr,
        echo_ms=te,
        inversion_ms=ti,
        scanning_sequence=tuple(sequence.split()),
        contrast=agent,
    )
    return classify(SeriesText(description, "", image_type), header, own or SeriesMap())


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_vendors_descriptions(row: tuple[str, float, float, float, str, bool, str | None]) -> None:
    *values, expected = row
    choice = judge(*values)
    assert (choice.modality if choice.usable else None) == expected


def test_agreement_of_name_and_timing_is_surest() -> None:
    both, name, timing = judge("t2_tse", 5000, 100), judge("t2_tse"), judge("s3", 5000, 100)
    assert both.confidence > name.confidence == timing.confidence
    assert all(choice.usable for choice in (both, name, timing))


@pytest.mark.parametrize(
    ("choice", "code"),
    [
        (judge("T2 FLAIR", 500, 10), "unclear"),
        (judge("T1 pre", 500, 10, agent=True), "unclear"),
        (judge("t2", image_type=("DERIVED", "SECONDARY")), "derived"),
        (judge("x", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")), "localizer"),
        (judge("DWI"), "not_structural"),
        (judge("PD", 3000, 15), "not_structural"),
        (judge("T1 sub"), "not_structural"),
    ],
)
def test_why_not(choice: Choice, code: str) -> None:
    assert (choice.usable, choice.code) == (False, code)


def test_an_inversion_recovery_without_its_time_is_known_by_name_alone() -> None:
    assert judge("Ax FLAIR", 9000, 120, None, "SE IR").modality is Modality.FLAIR
    assert judge("s7", 9000, 120, None, "SE IR").modality is None


def test_reasons_do_not_quote_the_header() -> None:
    for description in ("T1 ANNA GEHEIM", "ANNA GEHEIM", "localizer ANNA GEHEIM"):
        assert "GEHEIM" not in str(judge(description, 500, 10))


def own_map(tmp_path: Path, *lines: str) -> SeriesMap:
    path = tmp_path / "series_map.csv"
    path.write_text("\n".join(["description,modality", *lines]), encoding="utf-8")
    return read_series_map(path)


def test_the_hospitals_table_overrules_name_timing_and_type(tmp_path: Path) -> None:
    own = own_map(tmp_path, "AX T2 flair,t1ce", "/^kopf \\d+$/,t2", "t1 repeat,ignore", '"a,b",flair')
    assert judge("Ax T2 FLAIR ", 8500, 120, 2200, "SE IR", own=own).modality is Modality.T1CE
    assert judge("Kopf 17", image_type=("DERIVED",), own=own).modality is Modality.T2
    assert judge("a,b", own=own).modality is Modality.FLAIR
    ignored = judge("T1 repeat", 500, 10, own=own)
    assert (ignored.usable, ignored.code) == (False, "ignored")
    assert judge("AX T2 flair 2", 8500, 120, 2200, "SE IR", own=own).modality is Modality.FLAIR


def test_a_table_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_series_map(tmp_path / "series_map.csv") == SeriesMap()


@pytest.mark.parametrize("line", ["x", "x,t3", ",t1", "/(/,t1", "x,t1,y"])
def test_a_wrong_row_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"series_map\.csv, line 2"):
        own_map(tmp_path, line)


def test_a_table_without_its_first_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "series_map.csv"
    path.write_bytes(b"t1,t1\n")
    with pytest.raises(ConfigError, match="first line"):
        read_series_map(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_series_map(path)


@given(
    st.text(max_size=80), st.floats(0, 1e5), st.floats(0, 1e3), st.none() | st.floats(1, 2e4), st.booleans()
)
def test_every_series_gets_an_answer(text: str, tr: float, te: float, ti: float | None, agent: bool) -> None:
    choice = judge(text, tr, te, ti, agent=agent)
    assert 0 <= choice.confidence <= 1
    assert choice.modality is not None or not choice.usable
