import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from fedglioma_server.figures import Curve, SurvivalStep, embed, kaplan_meier, roc_curve, round_curves

SVG = "{http://www.w3.org/2000/svg}"


def rounds(name: str = "IDH") -> str:
    return round_curves(
        [0, 1, 2], [Curve(name, [0.9, None, 0.7]), Curve("mean", [0.8, 0.7, 0.6], None)], title="Loss",
        axis="Loss", chosen=2, chosen_label="chosen: round 2", stamp="SYNTHETIC DATA",
    )  # fmt: skip


def roc(name: str = "IDH") -> str:
    return roc_curve(
        [0, 0, 0.5, 1], [0, 0.5, 1, 1], title=name, subtitle="AUC 0.88", threshold_point=(0.5, 1.0),
        stamp="SYNTHETIC DATA",
    )  # fmt: skip


def survival(name: str = "mutant") -> str:
    groups = [
        SurvivalStep(
            label=name, times=[0, 10, 20], survival=[1, 0.5, 0.5], lower=[1, 0.1, None], upper=[1, 0.9, None],
            censored=[15, 20], at_risk=[37, 11], patients=37, style=0,
        ),
        SurvivalStep(
            label="wild-type", times=[0, 4], survival=[1, 0], lower=[1, None], upper=[1, None],
            censored=[], at_risk=[23, 0], patients=23, style=1,
        ),
    ]  # fmt: skip
    return kaplan_meier(groups, [0, 12], title="IDH", subtitle="log-rank p < 0.001", stamp="SYNTHETIC DATA")


DRAWERS = pytest.mark.parametrize("draw", [rounds, roc, survival])


def words_of(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314


@DRAWERS
def test_the_same_numbers_give_the_same_text(draw: Callable[[], str]) -> None:
    assert draw() == draw()


@DRAWERS
def test_a_figure_is_well_formed_and_names_neither_date_nor_tool(draw: Callable[[], str]) -> None:
    svg = draw()
    assert ET.fromstring(svg).tag == f"{SVG}svg"  # noqa: S314
    assert "atplotlib" not in svg
    assert not re.search(r"20\d\d-\d\d-\d\d", svg)


@DRAWERS
def test_missing_values_leave_gaps_and_no_nan(draw: Callable[[], str]) -> None:
    assert not re.search(r"\bnan\b|None", draw())


@DRAWERS
def test_the_stamp_stays_with_the_figure(draw: Callable[[], str]) -> None:
    assert "SYNTHETIC DATA" in words_of(draw())


@pytest.mark.parametrize("draw", [rounds, roc, survival])
@pytest.mark.parametrize("name", ["<script>x</script>", "$\\frac{1", "a & b", 'quo"te', "\u5b81\u590f"])
def test_names_are_shown_as_they_are_and_never_as_markup(draw: Callable[[str], str], name: str) -> None:
    assert any(name in text for text in words_of(draw(name)))


def test_numbers_at_risk_and_group_sizes_stand_as_text() -> None:
    words = words_of(survival())
    for text in ("37", "11", "23", "mutant (n = 37)", "wild-type (n = 23)", "At risk"):
        assert text in words


def test_words_keep_their_decimals() -> None:
    assert "log-rank p < 0.001" in words_of(survival())


def test_a_curve_of_a_single_round_is_drawn() -> None:
    svg = round_curves([1], [Curve("a", [0.5], None)], title="Loss", axis="Loss", chosen=1)
    assert "Round" in words_of(svg)


def test_long_names_are_shortened_and_many_sites_still_fit() -> None:
    curves = [Curve(f"the-hospital-with-a-long-name-{i}", [1.0, 0.5], i) for i in range(12)]
    words = words_of(round_curves([1, 2], curves, title="Loss", axis="Loss"))
    assert max(map(len, words)) <= 24
    assert sum(word.startswith("the-hospital") for word in words) == 12


def test_figures_on_one_page_share_no_id_and_keep_their_references() -> None:
    page = embed(survival(), "one", "a") + embed(survival(), "two", "b")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', page))
    assert used
    assert used <= set(ids)


def test_an_embedded_figure_names_no_address_and_is_described() -> None:
    inline = embed(roc(), "roc", 'AUC < 0.9 & "so"')
    assert "://" not in inline
    assert inline.startswith("<svg")
    assert 'aria-labelledby="roc-label"' in inline
    assert '<title id="roc-label">AUC &lt; 0.9 &amp; "so"</title>' in inline
    assert inline.count("<title") == 1
