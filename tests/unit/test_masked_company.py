"""What a site adds to a masked sum, and which heads enough sites teach."""

import numpy as np
import pytest

from fedglioma.case import GENES, Task
from fedglioma.errors import PrivacyError
from fedglioma.masked_update import coded_update, shares, update_parts
from fedglioma.pooled import Pooled
from fedglioma.privacy.fixed_point import decode_parts
from fedglioma.weights import GROUPS, TRUNK
from fedglioma.wire import StatisticsReply
from fedglioma_server.company import frozen_words, too_few, totals_of

SIZES = dict.fromkeys(GROUPS, 3)


def said(site: str, **weights: float) -> StatisticsReply:
    return StatisticsReply(
        site=site,
        version="0",
        layout="",
        cases=0,
        labels=dict.fromkeys(GENES, (None, None, None)),
        modalities={},
        weights={TRUNK: 10.0, **weights},
        small_cell_limit=1,
    )


def counted(having: int, sites: tuple[str, ...]) -> Pooled:
    return Pooled(
        cases=0,
        masks=0,
        labels={},
        modalities={},
        weights={TRUNK: 40.0, "atrx": 12.0},
        landmarks={},
        speaking={},
        having={TRUNK: len(sites), "atrx": having},
        sites=sites,
    )


@pytest.mark.parametrize(
    ("weight", "total", "share"),
    [
        (3, 12, 0.25),
        (19, 20, 0.95),
        (12, 0, 0.0),
        (0, 12, 0.0),
        (12, 8, 1.5),  # joined late: the total has nothing of it
    ],
)
def test_share_is_nothing_where_nothing_is_summed(weight: float, total: float, share: float) -> None:
    found = shares({TRUNK: 1.0, "atrx": weight}, {TRUNK: 4.0, "atrx": total})
    assert found["atrx"] == share
    assert found[TRUNK] == 0.25


def test_step_of_a_head_without_a_total_is_sent_as_zeros() -> None:
    parts = update_parts(SIZES, 4.0)
    zeros = {group: np.zeros(3, np.float32) for group in GROUPS}
    ones = {group: np.ones(3, np.float32) for group in GROUPS}
    weights = {TRUNK: 5.0, "idh": 5.0, "atrx": 5.0}
    vector = coded_update(ones, zeros, weights, {TRUNK: 20.0, "idh": 10.0}, parts, 4)
    found = decode_parts(parts, 4, vector, 1)
    assert found[TRUNK].tolist() == [0.25] * 3
    assert found["idh"].tolist() == [0.5] * 3
    assert found["atrx"].tolist() == [0.0] * 3
    assert found["atrx weight"].tolist() == [0.0]


@pytest.mark.parametrize(("weight", "total"), [(96, 100), (12, 12), (20, 20.4)])
def test_site_takes_no_part_where_it_is_nearly_alone_in_a_head(weight: float, total: float) -> None:
    with pytest.raises(PrivacyError, match="of one head"):
        shares({TRUNK: 1.0, "atrx": weight}, {TRUNK: 4.0, "atrx": total})


def test_no_total_makes_one_site_silent_and_keeps_it_in_the_sum() -> None:
    weights = {"a": 30.0, "b": 21.0, "c": 13.0}
    for total in np.linspace(1.0, 100.0, 991):
        for weight in weights.values():
            try:
                found = shares({TRUNK: 1.0, "idh": weight}, {TRUNK: 4.0, "idh": float(total)})
            except PrivacyError:
                continue
            assert found["idh"] == weight / total


@pytest.mark.parametrize("total", [0.0, 10.0, 10.1])
def test_site_takes_no_part_where_it_is_nearly_alone_in_the_trunk(total: float) -> None:
    with pytest.raises(PrivacyError, match="nearly all cases of the run"):
        shares({TRUNK: 10.0}, {TRUNK: total})


@pytest.mark.parametrize(
    ("labels", "present", "frozen"),
    [
        ({"a": 4, "b": 4, "c": 4, "d": 0}, "abcd", False),
        ({"a": 4, "b": 4, "c": 4, "d": 0}, "abd", True),
        ({"a": 4, "b": 4, "c": 0, "d": 0}, "abcd", True),
        ({"a": 4, "b": 0, "c": 0, "d": 0}, "abcd", True),
        ({"a": 400, "b": 1, "c": 1, "d": 1}, "abcd", True),  # it would be nearly the step of a
        ({"a": 400, "b": 1, "c": 1, "d": 1}, "bcd", False),
    ],
)
def test_head_is_frozen_unless_three_sites_in_the_sum_add_to_it(
    labels: dict[str, float], present: str, frozen: bool
) -> None:
    sites = [said(site, idh=5.0, atrx=weight) for site, weight in labels.items()]
    totals = totals_of(sites, None)
    assert totals["atrx"] == sum(labels.values())
    assert ("atrx" in too_few(totals, present, sites, None)) == frozen
    assert TRUNK not in too_few(totals, present, sites, None)
    assert "idh" not in too_few(totals, present, sites, None)


@pytest.mark.parametrize(
    ("having", "present", "frozen"),
    [
        (3, "abcd", False),
        (2, "abcd", True),
        (3, "abc", True),  # d may be one of the three
        (4, "abc", False),
        (3, "abce", True),  # e came late, and told nothing
        (5, "abcde", False),
    ],
)
def test_under_masked_counts_each_site_that_is_missing_may_be_one_that_teaches(
    having: int, present: str, frozen: bool
) -> None:
    counts = counted(having, ("a", "b", "c", "d"))
    sites = [said(site) for site in "abcde"]
    assert ("atrx" in too_few(totals_of(sites, counts), present, sites, counts)) == frozen


def test_counts_of_a_run_that_did_not_tell_how_many_teach_freeze_every_head() -> None:
    counts = counted(3, ("a", "b", "c")).model_copy(update={"having": {}, "sites": ()})
    assert too_few(counts.weights, "abc", [], counts) == {"atrx"}


def test_words_name_heads_and_rounds_and_nothing_where_none_was_frozen() -> None:
    assert frozen_words({}) == frozen_words({Task.ATRX: []}) == ""
    words = frozen_words({Task.ATRX: [1, 2, 3, 7], Task.SEGMENTATION: [4]})
    assert words.endswith("ATRX in rounds 1-3, 7; the tumour's outline in round 4.")
