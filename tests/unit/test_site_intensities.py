"""What a hospital says of its intensities, and when its cases are not laid on the scale."""

from contextlib import nullcontext
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest

from fedglioma.config.run import RunConfig
from fedglioma.config.site import PrivacyLimits, SiteConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import BudgetExhausted, ProtocolError, ScaleError
from fedglioma.noise import delta_of, sigma_for
from fedglioma.privacy.ledger import Ledger
from fedglioma.scale import Scale, fit_scale
from fedglioma_client import intensities
from fedglioma_client.intensities import cases_on_scale
from fedglioma_client.known_scale import SCALE_NAME, last_scale
from fedglioma_client.site import Site
from tests.federation_fixture import prepared_case

RUN = RunConfig()
DARK = (-1.3, -1.2, -1.1, -1.0, 2.0)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedCase, ...]:
    folder = tmp_path_factory.mktemp("data")
    return tuple(prepared_case(folder, "henan", number) for number in range(6))


def hospital(
    folder: Path, cases: tuple[PreparedCase, ...], epsilon: float | None = None, limit: int = 5
) -> Site:
    config = SiteConfig(
        site="henan",
        data=folder,
        state=folder / "state",
        landmark_epsilon=epsilon,
        small_cell_limit=limit,
        privacy=PrivacyLimits(max_epsilon=None),
    )
    return Site(config, cases)


def landmarks_of(site: Site, settings: RunConfig, run: str = "first") -> dict:
    """Return the landmarks alone, without the epsilon of their noise."""
    return intensities.landmarks_of(site, settings, run)[0]


def test_what_a_run_was_told_stands_whoever_came_or_went_since(tmp_path, cases):
    told = landmarks_of(hospital(tmp_path / "a", cases, 8.0), RUN)
    assert told
    for later in (cases, cases[::-1], cases[:5], cases[:3]):  # of three nothing would be told
        assert landmarks_of(hospital(tmp_path / "a", later, 8.0), RUN) == told


def test_another_run_or_hospital_or_epsilon_draws_other_noise(tmp_path, cases):
    told = set(landmarks_of(hospital(tmp_path / "a", cases, 8.0), RUN).values())
    others = [
        landmarks_of(hospital(tmp_path / "a", cases, 8.0), RUN, run="second"),
        landmarks_of(hospital(tmp_path / "a", cases, 8.5), RUN),
        landmarks_of(hospital(tmp_path / "b", cases, 8.0), RUN),
    ]
    for other in others:
        assert len(other) == len(told)
        assert not told & set(other.values())


def test_what_noisy_landmarks_cost_is_in_the_ledger_once(tmp_path, cases):
    for _ in range(3):
        landmarks_of(hospital(tmp_path, cases, 1.0), RUN)
    ledger = Ledger(tmp_path / "state", "henan")
    assert len(ledger.entries()) == 1
    assert ledger.epsilon_spent(None, 1e-5, "prv") == pytest.approx(1.0, rel=1e-3)
    landmarks_of(hospital(tmp_path, cases, 1.0), RUN, run="second")
    # Two Gaussian mechanisms of noise s are one of s / sqrt(2).
    both = sigma_for(1.0, 1.0) / sqrt(2)
    assert delta_of(both, ledger.epsilon_spent(None, 1e-5, "prv"), 1.0) == pytest.approx(1e-5, rel=1e-3)


def test_answer_that_was_lost_is_drawn_and_paid_for_anew(tmp_path, cases):
    told = landmarks_of(hospital(tmp_path, cases, 8.0), RUN)
    for kept in (tmp_path / "state" / "privacy" / "outbox").iterdir():
        kept.unlink()
    assert not set(landmarks_of(hospital(tmp_path, cases, 8.0), RUN).values()) & set(told.values())
    assert len(Ledger(tmp_path / "state", "henan").entries()) == 2


def test_landmarks_that_would_cost_more_than_is_left_are_not_told(tmp_path, cases):
    poor = hospital(tmp_path, cases, 1.0)
    poor = replace(poor, config=poor.config.model_copy(update={"privacy": PrivacyLimits(max_epsilon=0.9)}))
    with pytest.raises(BudgetExhausted):
        landmarks_of(poor, RUN)


def test_without_noise_no_secret_is_made(tmp_path, cases):
    assert landmarks_of(hospital(tmp_path, cases), RUN)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("change", [{"standardize": "zscore"}, {"preprocessing": "mdpnet"}])
def test_nothing_is_said_where_there_is_no_common_scale(change, tmp_path, cases):
    assert landmarks_of(hospital(tmp_path, cases), RUN.model_copy(update=change)) == {}


def test_site_that_is_off_is_refused_with_the_distance(tmp_path, cases):
    scale = fit_scale([landmarks_of(hospital(tmp_path, cases), RUN)])
    assert len(cases_on_scale(hospital(tmp_path, cases), scale, "first")) == len(cases)
    dark = tuple(replace(case, percentiles=dict.fromkeys(case.percentiles, DARK)) for case in cases)
    with pytest.raises(ScaleError, match=r"of t1 lie \d\d points from the .+, 20 of 100") as refused:
        cases_on_scale(hospital(tmp_path, dark), scale, "first")
    assert "henan-" not in str(refused.value)


def test_refusal_tells_nothing_of_a_sequence_of_too_few_cases(tmp_path, cases, caplog):
    scale = fit_scale([landmarks_of(hospital(tmp_path, cases), RUN)])
    dark = tuple(replace(case, percentiles=dict.fromkeys(case.percentiles, DARK)) for case in cases)
    with pytest.raises(ScaleError) as refused:
        cases_on_scale(hospital(tmp_path, dark, limit=10), scale, "first")
    assert str(refused.value).startswith("intensities: the mean landmarks lie too far from the consortium's")
    assert "points off" in caplog.text, "its own log has the distance"


def test_scale_of_the_last_run_is_kept_for_the_quality_report(tmp_path, cases):
    site = hospital(tmp_path, cases)
    assert last_scale(site.config) is None
    site.config.state.mkdir()
    scale = fit_scale([landmarks_of(site, RUN)])
    cases_on_scale(site, scale, "first")
    assert last_scale(site.config) == scale
    (site.config.state / SCALE_NAME).write_text("{")
    assert last_scale(site.config) is None
    cases_on_scale(site, scale, "first")
    assert last_scale(site.config) == scale


def darkened(cases: tuple[PreparedCase, ...]) -> tuple[PreparedCase, ...]:
    return tuple(replace(case, percentiles=dict.fromkeys(case.percentiles, DARK)) for case in cases)


@pytest.mark.parametrize(("epsilon", "silent"), [(1.0, False), (None, True), (1.0, True)])
def test_site_whose_landmarks_are_hidden_says_nothing_of_where_it_lies(
    epsilon, silent, tmp_path, cases, caplog
):
    """Else a coordinator finds them to the last digit, by which of its scales are refused."""
    scale = fit_scale([landmarks_of(hospital(tmp_path, cases), RUN)])
    off = hospital(tmp_path, darkened(cases), epsilon)
    (tmp_path / "state").mkdir()
    for run in ("first", "second"):
        assert len(cases_on_scale(off, scale, run, silent=silent)) == len(cases)
        assert len(cases_on_scale(off, shifted(scale, 1.0), run, silent=silent)) == len(cases)
    assert "points off" in caplog.text, "its own log has the distance"


def shifted(scale: Scale, points: float) -> Scale:
    marks = {m: (a, b + points, c, d, e) for m, (a, b, c, d, e) in scale.landmarks.items()}
    return scale.model_copy(update={"landmarks": marks})


@pytest.mark.parametrize("off", [False, True])
def test_a_run_has_one_scale_whether_the_site_fits_it_or_not(off, tmp_path, cases):
    scale = fit_scale([landmarks_of(hospital(tmp_path, cases), RUN)])
    site = hospital(tmp_path, darkened(cases) if off else cases)
    site.config.state.mkdir()
    refuses = pytest.raises(ScaleError) if off else nullcontext()
    for _ in range(2):  # as in every round, and after a restart
        with refuses:
            cases_on_scale(site, scale, "first")
    with pytest.raises(ProtocolError, match="had another intensity scale before"):
        cases_on_scale(site, shifted(scale, 1e-9), "first")
    with refuses:
        cases_on_scale(site, shifted(scale, 1e-9), "another run")
