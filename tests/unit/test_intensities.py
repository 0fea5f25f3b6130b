"""Who decides the intensity scale: sites that lie together, and none that was prepared otherwise."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedglioma.case import Modality
from fedglioma.config.run import RunConfig
from fedglioma.scale import MOST_DISTANCE, LandmarkSums, fit_scale
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.federation import _tell_of_scale
from fedglioma_server.intensities import agree_on_scale, words_of

T1, T2 = Modality.T1, Modality.T2
USUAL = (55.0, 73.0, 90.0)
FAR = (20.0, 40.0, 60.0)
FARTHER = (5.0, 15.0, 40.0)

Sums = dict[Modality, LandmarkSums]


def says(mean: tuple[float, float, float] = USUAL, cases: int = 10, modality: Modality = T1) -> Sums:
    a, b, c = (value * cases for value in mean)
    return {modality: LandmarkSums(cases=cases, sums=(a, b, c))}


def moved(by: float) -> tuple[float, float, float]:
    a, b, c = (value + by for value in USUAL)
    return (a, b, c)


def test_one_bad_of_three_is_left_out_and_the_scale_is_that_of_the_others() -> None:
    good = {"henan": says(moved(-3)), "ningxia": says(moved(2), cases=40)}
    agreed = agree_on_scale({**good, "zhengzhou": says(FAR, cases=1000)})
    assert agreed.scale == fit_scale(list(good.values()))
    (doubt,) = agreed.doubts
    assert (doubt.kind, doubt.sites, doubt.modality) == ("left_out", ["zhengzhou"], T1)
    assert doubt.distance == pytest.approx(32.0)  # 20, and the median of 20, 52 and 57
    assert "of t1 lie 32 points from the median of the hospitals, 20 of 100 are allowed" in words_of(doubt)


def test_who_is_left_out_stands_in_the_audit_log_and_the_log(tmp_path, caplog) -> None:
    heard: list[tuple[str, dict[str, object]]] = []
    coordinator = Coordinator(
        path=tmp_path, settings=RunConfig(), audit=lambda event, /, **facts: heard.append((event, facts))
    )
    _tell_of_scale(coordinator, agree_on_scale({"a": says(), "b": says(), "c": says(FAR)}))
    ((event, facts),) = heard
    assert (event, facts["site"], facts["round"]) == ("excluded", "c", 0)
    assert "points from the median" in str(facts["reason"])
    assert "c: left out of the intensity scale" in caplog.text


def test_site_whose_own_noise_is_large_neither_votes_nor_is_judged() -> None:
    said = {"a": says(), "b": says(), "c": says((30.0, 50.0, 75.0), cases=100)}
    assert agree_on_scale(said).doubts
    assert not agree_on_scale(said, {"c": 0.1}).doubts
    assert agree_on_scale(said, {"c": 100.0}).doubts, "that much epsilon hides nothing"
    assert agree_on_scale(said, {"c": 0.1}).scale.cases[T1] == 120


def test_bad_in_one_modality_is_left_out_of_all() -> None:
    both = {name: says() | says(modality=T2) for name in ("a", "b")}
    agreed = agree_on_scale({**both, "c": says(FAR) | says(moved(5), modality=T2)})
    assert agreed.scale == fit_scale(list(both.values()))
    assert agreed.scale.sites[T2] == 2


def test_of_two_nobody_can_tell_who_is_wrong() -> None:
    said = {"henan": says(), "ningxia": says(FAR)}
    agreed = agree_on_scale(said)
    assert agreed.scale == fit_scale(list(said.values()))
    (doubt,) = agreed.doubts
    assert (doubt.kind, doubt.sites, doubt.distance) == ("apart", ["henan", "ningxia"], 35.0)
    assert "too few others to tell who is wrong" in words_of(doubt)


def test_two_and_two_are_used_as_they_are_and_said_to_lie_apart() -> None:
    said = {"a": says(), "b": says(moved(1)), "c": says(FARTHER), "d": says(FARTHER)}
    agreed = agree_on_scale(said)
    assert agreed.scale == fit_scale(list(said.values()))
    (doubt,) = agreed.doubts
    assert (doubt.kind, doubt.sites) == ("apart", ["b", "c"])


def test_those_left_after_one_went_are_looked_at_again() -> None:
    """The third hospital speaks of T1 alone and is off; of the others' T2 no median is left to tell."""
    said = {
        "a": says() | says(modality=T2),
        "b": says() | says(FAR, modality=T2),
        "c": says(FAR) | says(modality=T2),
    }
    agreed = agree_on_scale(said)
    assert [(d.kind, d.sites, d.modality) for d in agreed.doubts] in (
        [("left_out", ["b"], T2), ("apart", ["a", "c"], T1)],
        [("left_out", ["c"], T1), ("apart", ["a", "b"], T2)],
    )


def test_few_sites_and_none() -> None:
    assert agree_on_scale({}).doubts == ()
    assert agree_on_scale({"a": {}, "b": says(FAR)}).doubts == ()


near = st.tuples(*[st.floats(-9, 9)] * 3).map(
    lambda by: (USUAL[0] + by[0], USUAL[1] + by[1], USUAL[2] + by[2])
)


@given(st.lists(near, min_size=3, max_size=7), st.data())
def test_a_minority_that_is_off_moves_nothing(means: list[tuple[float, float, float]], data) -> None:
    good = {f"good{number}": says(mean) for number, mean in enumerate(means)}
    fewer = data.draw(st.integers(0, (len(good) - 1) // 2))
    bad = {f"bad{number}": says((-80.0, -80.0 - number, 0.0), cases=500) for number in range(fewer)}
    agreed = agree_on_scale({**bad, **good})
    assert agreed.scale == fit_scale(list(good.values()))
    assert sorted(doubt.sites[0] for doubt in agreed.doubts) == sorted(bad)


@given(st.dictionaries(st.text("abcdefg", min_size=1, max_size=2), near, max_size=7), st.randoms())
def test_order_of_the_answers_changes_nothing(means, random) -> None:
    said = {name: says(mean) for name, mean in means.items()}
    names = list(said)
    random.shuffle(names)
    assert agree_on_scale({name: said[name] for name in names}) == agree_on_scale(said)


@given(st.lists(st.tuples(*[st.floats(-90, 190)] * 3), min_size=1, max_size=8))
def test_whatever_sites_say_most_of_them_decide(means) -> None:
    said = {str(number): says(mean) for number, mean in enumerate(means)}
    agreed = agree_on_scale(said)
    assume(len(means) > 2)
    assert agreed.scale.sites[T1] * 2 >= len(means)
    for doubt in agreed.doubts:
        assert doubt.distance >= np.floor(MOST_DISTANCE)
