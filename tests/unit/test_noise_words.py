"""What the coordinator says of a private run: how much the noise is, and what each site has spent."""

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant

from fedglioma.config.run import RunConfig
from fedglioma.noise import DELTA
from fedglioma.privacy.accounting import Mechanism, Spent, gaussian_equivalent
from fedglioma_server.privacy import noise_words, privacy_record
from fedglioma_server.records import (
    Linkage,
    RoundRecord,
    RunRecord,
    SharedPatients,
    SiteData,
    SiteRound,
)
from fedglioma_server.spending import (
    epsilon_after,
    noise_over_gradient,
    spent_by_site,
    spent_of,
    with_epsilon,
    with_noise,
)


def record_of(settings: RunConfig, cases: list[int], parameters: int) -> RunRecord:
    sites = {
        f"site{number}": SiteData(cases=count, labels={}, modalities={}, small_cell_limit=5)
        for number, count in enumerate(cases)
    }
    return RunRecord.model_construct(
        run_id="r", created="2026", settings=settings, sites=sites, parameters=parameters, cohorts=[]
    )


def private(noise: float, rate: float = 0.1) -> RunConfig:
    return RunConfig(privacy="site", noise_multiplier=noise, sampling_rate=rate, clip_norm=0.7)


@pytest.mark.parametrize("cases", [[100], [40, 160], [30, 60, 90, 120, 150]])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_noise_of_a_step_is_as_long_as_that_of_a_simulated_one(cases: list[int], rate: float) -> None:
    settings, parameters, draw = private(1.3, rate), 20_000, np.random.default_rng(1)
    mean = np.zeros(parameters)
    for count in cases:
        noise = draw.normal(0, 1.3 * settings.clip_norm, parameters) / (rate * count)
        mean += noise * count / sum(cases)
    told = noise_over_gradient(record_of(settings, cases, parameters))
    assert told == pytest.approx(np.linalg.norm(mean) / settings.clip_norm, rel=0.03)


def test_noise_in_the_centre_is_divided_by_the_hospitals() -> None:
    settings = RunConfig(privacy="central", noise_multiplier=8.0, clip_norm=0.7)
    draw = np.random.default_rng(1).normal(0, 8.0 * 0.7, 20_000) / 5
    told = noise_over_gradient(record_of(settings, [10] * 5, 20_000))
    assert told == pytest.approx(np.linalg.norm(draw) / 0.7, rel=0.03)


def test_noise_that_drowns_the_gradient_is_told_with_what_helps() -> None:
    drowned = noise_words(record_of(private(1.5), [20, 20], 100_000))
    assert "168 times" not in drowned  # two digits are all that such an estimate has
    assert "expect a model that guesses. More patients" in drowned
    heard = noise_words(record_of(private(1.5), [4000, 4000], 10_000))
    assert heard.endswith("in the mean of the sites.")


def test_so_few_patients_that_noise_hides_them_all_are_told_without_a_number() -> None:
    words = noise_words(record_of(private(1.0), [0, 0], 1000))
    assert words.startswith(
        "There are so few patients that the hospitals' noised counts add up to none: expect"
    )


def test_patient_at_several_hospitals_is_named_as_not_covered_and_who_shares_any() -> None:
    record = record_of(private(1.0), [40, 40], 1000)
    (said,) = [line for line in privacy_record(record).not_covered if "at several hospitals" in line]
    assert "share patients" not in said
    pair = SharedPatients(sites=("site0", "site1"), at_least=10, small_cell_limit=5)
    linked = record.model_copy(update={"linkage": Linkage(compared=["site0", "site1"], pairs=[pair])})
    (said,) = [line for line in privacy_record(linked).not_covered if "at several hospitals" in line]
    assert said.endswith("these seem to share patients: site0 and site1, at least 10 patients")


def test_nothing_is_said_without_privacy_or_sites() -> None:
    assert noise_words(record_of(RunConfig(), [100], 1000)) == ""
    assert noise_words(record_of(private(1.0), [], 1000)) == ""


@pytest.mark.parametrize(
    ("status", "code", "paid"),
    [
        ("ok", None, True),
        ("no_reply", "no_reply", True),
        ("refused", "privacy", True),
        ("refused", "data", True),
        ("error", "norm", True),
        ("no_reply", "not_connected", False),
        ("no_reply", "not_masked", False),
        ("refused", "policy", False),
        ("refused", "budget", False),
        ("idle", "idle", False),
    ],
)
def test_round_counts_for_a_site_unless_it_was_left_out_before_the_first_step(
    status: str, code: str | None, paid: bool
) -> None:
    settings = private(2.0)
    line = RoundRecord.model_construct(
        round=1, sites={"henan": SiteRound.model_validate({"status": status, "code": code})}
    )
    found = spent_by_site(record_of(settings, [20], 1000), [line])
    assert found == {"henan": pytest.approx(epsilon_after(settings, int(paid)))}


def test_hospitals_without_a_file_of_their_own_count_within_the_run_and_that_is_said() -> None:
    record = record_of(private(2.0), [20], 1000)
    own = privacy_record(record, [ROUND])
    made_up = privacy_record(record.model_copy(update={"made_up_sites": ["henan"]}), [ROUND])
    assert "A hospital's own ledger adds up all its runs" in own.statement
    assert "begin with this run and end with it" in made_up.statement
    (more,) = set(made_up.not_covered) - set(own.not_covered)
    assert "their limits count within this run only" in more


ROUND = RoundRecord.model_construct(round=1, sites={"henan": SiteRound(status="ok")})
GIVEN = Spent(unit="patient", mechanisms=(Mechanism(noise_multiplier=1.1),))


@pytest.mark.parametrize(
    ("spent", "private_run"),
    [(GIVEN, True), (None, False), (GIVEN.model_copy(update={"unit": "site"}), False)],
)
def test_run_that_goes_on_from_a_model_states_what_both_spent_or_nothing(
    spent: Spent | None, private_run: bool
) -> None:
    record = record_of(private(2.0), [20], 1000).model_copy(
        update={"initial_digest": "0" * 64, "initial_spent": spent}
    )
    told = privacy_record(record, [ROUND])
    assert told.differentially_private is private_run
    assert told.ledger_run == record.key, "the hospitals' ledgers have it all the same"
    lines = with_epsilon(record, [], ROUND.sites)
    assert lines["henan"].epsilon == (pytest.approx(told.epsilon) if private_run else None)
    if not private_run:
        assert told.epsilon is None
        assert told.statement.startswith("Not differentially private.")
        assert spent_of(record, [ROUND]) is None
        return
    settings = private(2.0)
    counts = [gaussian_equivalent(settings.counts_epsilon, 1e-5)] * 2  # counts and landmarks
    accountant = RdpAccountant()
    for noise in (1.1, *counts):
        accountant.compose(GaussianDpEvent(noise))
    steps = PoissonSampledDpEvent(settings.sampling_rate, GaussianDpEvent(2.0))
    accountant.compose(SelfComposedDpEvent(steps, settings.steps_per_round))
    assert told.epsilon == pytest.approx(accountant.get_epsilon(settings.delta), rel=0.1)
    alone = privacy_record(record_of(settings, [20], 1000), [ROUND]).epsilon
    assert told.epsilon is not None
    assert alone is not None
    assert told.epsilon > 1.5 * alone


def test_run_on_the_scale_of_a_model_spends_nothing_for_landmarks() -> None:
    settings = private(2.0)
    record = record_of(settings, [10], 100)
    rounds = [RoundRecord.model_construct(round=1, sites={"henan": SiteRound(status="ok")})]
    asked, taken = (
        spent_of(record.model_copy(update={"scale_from_model": told}), rounds) for told in (False, True)
    )
    assert asked is not None
    assert taken is not None
    landmarks = Mechanism(
        noise_multiplier=gaussian_equivalent(settings.counts_epsilon, DELTA), sampling_rate=1, steps=1
    )
    assert sorted(map(str, asked.mechanisms)) == sorted(map(str, (*taken.mechanisms, landmarks)))
    assert epsilon_after(settings, 5, landmarks=False) < epsilon_after(settings, 5)
    target = RunConfig(privacy="site", target_epsilon=3)
    assert with_noise(target, landmarks=False).noise_multiplier < with_noise(target).noise_multiplier
