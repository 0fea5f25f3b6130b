from collections import Counter

import pytest

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.synthetic_sites import PRESETS, make_site, make_sites, site_names
from fedglioma.errors import ConfigError

FLAIR, T1CE, T1, T2 = CHANNELS


def pattern_shares(site, count=4000):
    drawn = Counter(site.draw_present(seed) for seed in range(count))
    return {pattern: drawn[pattern] / count for pattern in drawn}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ningxia", {(FLAIR, T1, T2): 0.50, (FLAIR, T1CE, T2): 0.35, CHANNELS: 0.15}),
        ("zhengzhou", {CHANNELS: 1.0}),
        ("henan", {CHANNELS: 0.7, (FLAIR, T1CE, T2): 0.3}),
    ],
)
def test_sequences_are_missing_as_often_as_stated(name, expected):
    assert pattern_shares(PRESETS[name]) == pytest.approx(expected, abs=0.03)


def test_presets_are_the_hospitals_of_the_demo_federation():
    assert {name: PRESETS[name].scanner.field_t for name in PRESETS} == {
        "ningxia": 1.5,
        "zhengzhou": 3.0,
        "henan": 3.0,
    }


@pytest.mark.parametrize("index", range(3, 30))
def test_further_sites_are_complete_hospitals_that_follow_from_their_number(index):
    site = make_site(f"hospital{index}", index)
    assert site == make_site(f"hospital{index}", index)
    assert sum(site.prevalence.values()) == pytest.approx(1)
    assert sum(share for _, share in site.patterns) == pytest.approx(1)
    assert all(Modality.FLAIR in present for present, _ in site.patterns)
    assert set(site.scanner.sequences) == set(CHANNELS)


def test_further_sites_differ():
    assert len({make_site("other", index).scanner.gain for index in range(3, 13)}) == 10


def test_site_names_begin_with_the_presets():
    assert site_names(2) == ("ningxia", "zhengzhou")
    assert site_names(5) == ("ningxia", "zhengzhou", "henan", "hospital4", "hospital5")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "none named"),
        (["ningxia", "ningxia"], "ningxia named more than once"),
        (["../up"], "names a folder"),
        ([""], "names a folder"),
    ],
)
def test_names_that_cannot_be_sites_are_refused(names, words):
    with pytest.raises(ConfigError, match=words):
        make_sites(names)
