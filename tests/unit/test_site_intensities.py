"""What a hospital says of its intensities, and when its cases are not laid on the scale."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedglioma.config.run import RunConfig
from fedglioma.config.site import PrivacyLimits, SiteConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import BudgetExhausted, ScaleError
from fedglioma.privacy.ledger import Ledger
from fedglioma.scale import fit_scale
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


def landmarks_of(site: Site, settings: RunConfig) -> dict:
    """Return the landmarks alone, without the epsilon of their noise."""
    return intensities.landmarks_of(site, settings)[0]


def test_asking_again_has_the_same_answer_and_another_hospital_has_another(tmp_path, cases):
    told = landmarks_of(hospital(tmp_path / "a", cases, 1.0), RUN)
    assert told
    for again in (cases, cases[::-1]):
        assert landmarks_of(hospital(tmp_path / "a", again, 1.0), RUN) == told
    other = landmarks_of(hospital(tmp_path / "b", cases, 1.0), RUN)
    assert other.keys() == told.keys()
    assert other != told, "the secret is another"


def test_one_patient_more_or_another_epsilon_is_another_noise(tmp_path, cases):
    told = landmarks_of(hospital(tmp_path, cases, 8.0), RUN)
    for other in (hospital(tmp_path, cases[:5], 8.0), hospital(tmp_path, cases, 8.5)):
        assert not set(landmarks_of(other, RUN).values()) & set(told.values())


def test_what_noisy_landmarks_cost_is_in_the_ledger_once(tmp_path, cases):
    for _ in range(3):
        landmarks_of(hospital(tmp_path, cases, 1.0), RUN)
    ledger = Ledger(tmp_path / "state", "henan")
    assert len(ledger.entries()) == 1
    assert ledger.epsilon_spent(None, 1e-5, "prv") == pytest.approx(1.0, rel=1e-3)


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
    assert len(cases_on_scale(hospital(tmp_path, cases), scale)) == len(cases)
    dark = tuple(replace(case, percentiles=dict.fromkeys(case.percentiles, DARK)) for case in cases)
    with pytest.raises(ScaleError, match=r"of t1 lie \d\d points from the .+, 20 of 100") as refused:
        cases_on_scale(hospital(tmp_path, dark), scale)
    assert "henan-" not in str(refused.value)


def test_refusal_tells_nothing_of_a_sequence_of_too_few_cases(tmp_path, cases, caplog):
    scale = fit_scale([landmarks_of(hospital(tmp_path, cases), RUN)])
    dark = tuple(replace(case, percentiles=dict.fromkeys(case.percentiles, DARK)) for case in cases)
    with pytest.raises(ScaleError) as refused:
        cases_on_scale(hospital(tmp_path, dark, limit=10), scale)
    assert str(refused.value).startswith("intensities: the mean landmarks lie too far from the consortium's")
    assert "points off" in caplog.text, "its own log has the distance"


def test_scale_of_the_last_run_is_kept_for_the_quality_report(tmp_path, cases):
    site = hospital(tmp_path, cases)
    assert last_scale(site.config) is None
    site.config.state.mkdir()
    scale = fit_scale([landmarks_of(site, RUN)])
    cases_on_scale(site, scale)
    assert last_scale(site.config) == scale
    (site.config.state / SCALE_NAME).write_text("{")
    assert last_scale(site.config) is None
    cases_on_scale(site, scale)
    assert last_scale(site.config) == scale


def test_site_with_noise_says_that_it_is_off_and_not_how_far(tmp_path, cases, caplog):
    scale = fit_scale([landmarks_of(hospital(tmp_path, cases), RUN)])
    dark = tuple(replace(case, percentiles=dict.fromkeys(case.percentiles, DARK)) for case in cases)
    with pytest.raises(ScaleError, match="of t1 lie too far from the consortium's, 20 of 100"):
        cases_on_scale(hospital(tmp_path, dark, 1.0), scale)
    assert "points off" in caplog.text, "its own log has the distance"
