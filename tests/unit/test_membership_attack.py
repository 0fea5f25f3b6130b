"""Membership attacks against closed forms, scikit-learn, scipy, and networks that memorised or never saw."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor, nn

from fedglioma.attack.bounds import Bound
from fedglioma.attack.likelihood import likelihood_ratio
from fedglioma.attack.membership import attacked_set, by_patient, familiarity
from fedglioma.attack.result import attack_result, clopper_pearson
from fedglioma.attack.shadows import halves, shadow_models
from fedglioma.case import Case, Genotype, Modality
from fedglioma.config.run import RunConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError, DataError
from fedglioma.losses.segmentation import SGPLoss
from fedglioma.losses.tasks import Targets
from fedglioma.training.learner import Learner

FloatArray = NDArray[np.float64]
CPU = torch.device("cpu")
EDGE = 4
SETTINGS = RunConfig(model="sgpnet", targets="idh", crop=32)


class Small(nn.Module):
    """Two linear layers from an image to IDH: enough to learn twenty cases by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4 * EDGE**3, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, image: Tensor, present: Tensor) -> dict[str, Tensor]:
        return {"idh": self.layers(image * present[:, :, None, None, None])}


def prepared(folder: Path, number: int, idh: int, patient: str | None = None) -> PreparedCase:
    generator = np.random.default_rng([7, number])
    path = folder / f"{number}.npy"
    np.save(path, generator.normal(size=(4, EDGE, EDGE, EDGE)).astype(np.float16))
    case = Case(
        patient=patient or f"p{number}",
        site="henan",
        volumes=dict.fromkeys(Modality, folder / "none.nii"),
        genotype=Genotype(idh=idh),
    )
    return PreparedCase(case, path, (True,) * 4, f"{number:064d}", {})


def cohort(folder: Path, cases: int) -> list[PreparedCase]:
    """Return cases of noise whose labels are coin falls: whatever is learned of them is learned by heart."""
    coins = np.random.default_rng(3).permutation(np.arange(cases) % 2)
    return [prepared(folder, number, int(coin)) for number, coin in enumerate(coins)]


def dataset_of(cases: Sequence[PreparedCase]) -> object:
    whole = attacked_set(cases, SETTINGS)
    whole.crop = EDGE
    return whole


def trained(cases: Sequence[PreparedCase], seed: int, steps: int = 60) -> Learner:
    torch.manual_seed(seed)
    learner = Learner(Small(), SGPLoss("idh"))
    data = [dataset_of(cases)[number] for number in range(len(cases))]
    image, present, genotype = (torch.stack(part) for part in list(zip(*data, strict=True))[:3])
    optimizer = torch.optim.Adam(learner.model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        learner.loss(learner.model(image, present), Targets(genotype)).backward()
        optimizer.step()
    return learner


finite = st.floats(-5, 5)
scores = arrays.arrays(np.float64, st.integers(2, 40), elements=finite)


@settings(deadline=None, max_examples=50)
@given(scores, scores)
def test_auc_and_curve_are_those_of_scikit_learn(members: FloatArray, others: FloatArray) -> None:
    found = attack_result("x", members, others, resamples=0)
    labels = np.repeat([1, 0], (len(members), len(others)))
    both = np.concatenate((members, others))
    assert found.auc.value == pytest.approx(roc_auc_score(labels, both))
    false, true, _ = roc_curve(labels, both, drop_intermediate=False)
    assert np.allclose(np.array(found.curve), np.column_stack((false, true)))
    assert found.tpr.value == pytest.approx(true[false <= 0.01].max())
    assert found.advantage == pytest.approx((true - false).max())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_is_that_of_scipy(count_total: tuple[int, int]) -> None:
    count, total = count_total
    exact = binomtest(count, total).proportion_ci(0.95, method="exact")
    assert clopper_pearson(count, total) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_rate_of_false_alarms_is_covered_as_often_as_is_said() -> None:
    generator = np.random.default_rng(0)
    n, trials = 250, 2000
    draws = np.sort(generator.uniform(size=(trials, n)), axis=1)[:, ::-1]
    true_rates = 1 - draws[:, int(0.01 * n)]  # above the threshold of each trial
    at_most = attack_result("x", np.ones(3), draws[0], resamples=0).fpr_at_most
    assert np.mean(true_rates <= at_most) == pytest.approx(0.975, abs=0.011)


def test_with_few_non_members_no_false_alarm_is_allowed_and_that_is_said() -> None:
    found = attack_result("x", np.array([3.0, 2.0, 0.5]), np.linspace(0, 1, 50), resamples=0)
    assert found.false_alarms == 0
    assert found.tpr.value == pytest.approx(2 / 3)
    assert "not one false alarm" in found.notes[0]
    assert attack_result("x", np.ones(3), np.arange(100.0), resamples=0).notes == ()


def test_perfect_separation_has_an_interval_and_is_above_a_strict_bound() -> None:
    found = attack_result("x", np.arange(40) + 100.0, np.arange(40.0), bound=Bound.of(1.0, 1e-5))
    assert found.auc.value == 1.0
    assert found.auc.low == pytest.approx(0.025 ** (1 / 40))
    assert found.verdict == "above"
    assert len(found.reasons) == 2


def test_few_false_alarms_among_few_non_members_prove_nothing() -> None:
    # One in three above all twenty others is luck that epsilon 1 cannot be blamed for.
    members = np.concatenate((np.full(7, 2.0), np.zeros(13)))
    found = attack_result("x", members, np.linspace(-1, 1, 20), bound=Bound.of(1.0, 1e-5))
    assert found.tpr.low is not None
    assert found.largest_tpr is not None
    assert found.tpr.low > found.largest_tpr
    assert found.verdict == "within"


def test_scores_without_information_are_within_any_bound_nearly_always() -> None:
    generator = np.random.default_rng(1)
    bound = Bound.of(0.0, 0.0)
    verdicts = [
        attack_result("x", *generator.normal(size=(2, 60)), bound=bound, resamples=200).verdict
        for _ in range(60)
    ]
    assert verdicts.count("above") <= 8  # two tests of 2.5 % and 5 % at most: 4.5 expected


def test_advantage_by_chance_is_what_scores_without_information_have() -> None:
    generator = np.random.default_rng(2)
    found = [attack_result("x", *generator.normal(size=(2, 100)), resamples=0) for _ in range(200)]
    assert np.mean([f.advantage for f in found]) == pytest.approx(found[0].advantage_by_chance, rel=0.1)


def test_attack_on_nobody_and_damaged_scores_are_refused() -> None:
    with pytest.raises(DataError, match="members and non-members are needed"):
        attack_result("x", np.empty(0), np.ones(3))
    with pytest.raises(DataError, match="not a finite number"):
        attack_result("x", np.array([np.nan]), np.ones(3))


def test_likelihood_ratio_is_that_of_two_normal_densities() -> None:
    generator = np.random.default_rng(0)
    said = generator.normal(size=(80, 3))
    trained_on = np.zeros((80, 3), dtype=bool)
    trained_on[:40] = True
    target = np.array([0.3, -1.0, 2.0])
    inside = norm(said[:40].mean(0), said[:40].std(0, ddof=1))
    outside = norm(said[40:].mean(0), said[40:].std(0, ddof=1))
    expected = inside.logpdf(target) - outside.logpdf(target)
    assert likelihood_ratio(target, said, trained_on) == pytest.approx(expected)


def test_likelihood_ratio_finds_members_that_a_threshold_cannot() -> None:
    # Cases differ far more in difficulty than training moves any of them.
    generator = np.random.default_rng(5)
    people, shadows = 200, 8
    difficulty = generator.normal(scale=10, size=people)
    member = np.arange(people) < people // 2
    seen = halves([str(n) for n in range(people)], shadows, 0)
    said = difficulty + 2.0 * seen + generator.normal(scale=0.5, size=(shadows, people))
    target = difficulty + 2.0 * member + generator.normal(scale=0.5, size=people)
    ratio = likelihood_ratio(target, said, seen)
    by_ratio = attack_result("ratio", ratio[member], ratio[~member], resamples=100)
    by_loss = attack_result("loss", target[member], target[~member], resamples=100)
    assert by_ratio.auc.low is not None
    assert by_loss.auc.high is not None
    assert by_ratio.auc.low > 0.95 > 0.7 > by_loss.auc.high


def test_patient_in_no_shadow_or_in_all_is_refused() -> None:
    with pytest.raises(DataError, match="in all of them, or in none"):
        likelihood_ratio(np.zeros(2), np.zeros((2, 2)), np.array([[True, True], [False, True]]))
    with pytest.raises(DataError, match="shapes"):
        likelihood_ratio(np.zeros(3), np.zeros((2, 2)), np.zeros((2, 2), dtype=bool))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30), st.integers(1, 5))
def test_halves_keep_patients_whole_and_everybody_in_half_of_the_shadows(
    patients: list[str], pairs: int
) -> None:
    if len(set(patients)) < 2:
        return
    chosen = halves(patients, 2 * pairs, 0)
    for name in set(patients):
        mine = chosen[:, [number for number, other in enumerate(patients) if other == name]]
        assert (mine == mine[:, :1]).all()
        assert mine[:, 0].sum() == pairs
    assert (np.abs(np.array([len({p for p, on in zip(patients, row, strict=True) if on}) for row in chosen])
                   - len(set(patients)) / 2) <= 0.5).all()  # fmt: skip


def test_mean_of_a_patients_scans_is_one_score() -> None:
    values = np.array([[1.0, 5.0, 3.0], [0.0, 1.0, 1.0]])
    assert by_patient(values, ["b", "a", "b"]).tolist() == [[2.0, 5.0], [0.5, 1.0]]


def test_loss_and_confidence_of_a_case_follow_from_its_probability(tmp_path: Path) -> None:
    cases = [*cohort(tmp_path, 3), prepared(tmp_path, 9, -1)]
    learner = trained(cases[:3], 0, steps=3)
    found = familiarity(learner, dataset_of(cases), CPU)  # type: ignore[arg-type]
    for number, item in enumerate(cases[:3]):
        sample = dataset_of(cases)[number]
        odds = learner.model(sample.image[None], sample.present[None])["idh"].softmax(1)[0].double()
        p = float(odds[item.case.genotype.idh].detach())
        assert found.losses[number] == pytest.approx(-math.log(p), rel=1e-5)
        assert found.confidences[number] == pytest.approx(math.log(p / (1 - p)), rel=1e-4, abs=1e-5)
    assert np.isnan(found.losses[3])
    assert np.isnan(found.confidences[3])


def test_network_that_learned_by_heart_gives_its_members_away(tmp_path: Path) -> None:
    cases = cohort(tmp_path, 60)
    loss = familiarity(trained(cases[:30], 0), dataset_of(cases), CPU).losses  # type: ignore[arg-type]
    found = attack_result("loss threshold", -loss[:30], -loss[30:], bound=Bound.of(0.5, 1e-5))
    assert found.above_chance
    assert found.auc.value is not None
    assert found.auc.value > 0.95
    assert found.verdict == "above"


def test_network_that_saw_neither_group_is_at_chance(tmp_path: Path) -> None:
    cases = cohort(tmp_path, 90)
    loss = familiarity(trained(cases[60:], 0), dataset_of(cases[:60]), CPU).losses  # type: ignore[arg-type]
    found = attack_result("loss threshold", -loss[:30], -loss[30:], bound=Bound.of(0.1, 0.0))
    assert found.auc.low is not None
    assert found.auc.high is not None
    assert found.auc.low < 0.5 < found.auc.high
    assert found.verdict == "within"


def test_shadows_tell_members_of_a_network_that_learned_by_heart(tmp_path: Path) -> None:
    cases = cohort(tmp_path, 40)
    data = dataset_of(cases)
    target = familiarity(trained(cases[:20], 99, 20), data, CPU)  # type: ignore[arg-type]
    shadows = shadow_models(
        cases,
        [item.case.patient for item in cases],
        lambda chosen, seed: trained(chosen, seed, 20),
        lambda shadow: familiarity(shadow, data, CPU).confidences,  # type: ignore[arg-type]
        shadows=4,
        seed=0,
        folder=tmp_path / "shadows",
        about={},
    )
    ratio = likelihood_ratio(target.confidences, shadows.said, shadows.trained_on)
    assert roc_auc_score(np.arange(40) < 20, ratio) > 0.8


def test_shadows_continue_and_other_settings_begin_anew(tmp_path: Path) -> None:
    cases, trainings = cohort(tmp_path, 6), []

    def train(chosen: Sequence[PreparedCase], seed: int) -> Learner:
        trainings.append((tuple(item.digest for item in chosen), seed))
        return Learner(Small(), SGPLoss("idh"))

    def ask(about: str, shadows: int) -> FloatArray:
        return shadow_models(
            cases,
            [item.case.patient for item in cases],
            train,
            lambda _: np.array([np.nan, *map(float, range(5))]),
            shadows=shadows,
            seed=1,
            folder=tmp_path / "s",
            about={"settings": about},
        ).said

    first = ask("a", 2)
    assert len(trainings) == 2
    assert np.array_equal(ask("a", 4)[:2], first, equal_nan=True)
    assert len(trainings) == 4
    assert set(trainings[0][0]) | set(trainings[1][0]) == {item.digest for item in cases}
    ask("b", 2)
    assert len(trainings) == 6
    saved = sorted((tmp_path / "s").iterdir())
    assert not any("p1" in file.read_text() for file in saved)
    assert {file.stat().st_mode & 0o777 for file in saved} == {0o600}


def test_damaged_shadow_file_is_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases, trainings = cohort(tmp_path, 4), []

    def train(_chosen: Sequence[PreparedCase], seed: int) -> Learner:
        trainings.append(seed)
        return Learner(Small(), SGPLoss("idh"))

    def ask() -> None:
        said = np.zeros(4)
        people, folder = list("abcd"), tmp_path / "s"
        shadow_models(cases, people, train, lambda _: said, shadows=2, seed=1, folder=folder, about={})

    ask()
    next((tmp_path / "s").iterdir()).write_text("{")
    ask()
    assert len(trainings) == 3
    assert "trained again" in caplog.text


def test_one_shadow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--shadows 1: at least 2"):
        shadow_models(
            cohort(tmp_path, 4),
            list("abcd"),
            lambda c, s: trained(c, s),
            lambda _: np.zeros(4),
            shadows=1,
            seed=0,
            folder=tmp_path,
            about={},
        )
