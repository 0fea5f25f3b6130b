from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.anatomy import Label
from fedglioma.data.fields import Grid, stream
from fedglioma.data.lesion import ENHANCING
from fedglioma.data.patients import sample_patient
from fedglioma.data.phantom import render_tissue
from fedglioma.data.scanner import acquire, shading, signal, slice_profile
from fedglioma.data.synthetic_sites import PRESETS

SCANNER = PRESETS["zhengzhou"].scanner
PATIENT = next(p for n in range(99) if (p := sample_patient(stream(3, n))).tumour.necrotic)


@pytest.fixture(scope="module")
def tissue():
    return render_tissue(PATIENT, Grid.cube(48))


def healthy(tissue, label):
    return (tissue.labels == label) & (tissue.mask == 0) & tissue.brain & (tissue.gadolinium == 0)


def medians(tissue, modality, scanner=SCANNER):
    echo = signal(tissue, modality, scanner)
    return {label: np.median(echo[healthy(tissue, label)]) for label in (Label.CSF, Label.GREY, Label.WHITE)}


@pytest.mark.parametrize("site", PRESETS)
def test_tissues_are_as_bright_as_radiologists_know_them(tissue, site):
    scanner = PRESETS[site].scanner
    t1 = medians(tissue, Modality.T1, scanner)
    t2 = medians(tissue, Modality.T2, scanner)
    flair = medians(tissue, Modality.FLAIR, scanner)
    assert t1[Label.WHITE] > t1[Label.GREY] > t1[Label.CSF]
    assert t2[Label.CSF] > t2[Label.GREY] > t2[Label.WHITE]
    assert flair[Label.CSF] < 0.5 * flair[Label.WHITE]


def test_spin_echo_follows_its_equation(tissue):
    sequence = SCANNER.sequences[Modality.T2]
    place = tuple(np.argwhere(healthy(tissue, Label.GREY))[0])
    expected = (
        tissue.proton_density[place]
        * (1 - np.exp(-sequence.repetition_ms / tissue.t1_ms[place]))
        * np.exp(-sequence.echo_ms / tissue.t2_ms[place])
    )
    assert signal(tissue, Modality.T2, SCANNER)[place] == pytest.approx(expected, rel=1e-5)


def test_contrast_agent_brightens_the_ring_in_t1ce_only(tissue):
    ring = tissue.mask == ENHANCING
    without = replace(tissue, gadolinium=np.zeros_like(tissue.gadolinium))
    for modality in CHANNELS:
        gain = (
            signal(tissue, modality, SCANNER)[ring].mean() / signal(without, modality, SCANNER)[ring].mean()
        )
        assert (gain > 1.5) if modality is Modality.T1CE else (gain == 1)


def test_prepared_scan_is_zero_outside_the_brain_and_nowhere_inside(tissue):
    scan = acquire(tissue, Modality.T1, SCANNER, 7, prepared=True)
    assert scan.dtype == np.int16
    assert scan.shape == tissue.grid.shape
    assert np.array_equal(scan > 0, tissue.whole(tissue.brain_voxels()))


def test_whole_head_has_noise_in_the_air(tissue):
    scan = acquire(tissue, Modality.T1, SCANNER, 7, prepared=False)
    air = scan[:3]
    assert 0 < air.mean() < 0.1 * scan[tissue.whole(tissue.brain_voxels())].mean()


def test_sites_differ_in_grey_levels(tissue):
    brain = tissue.whole(tissue.brain_voxels())
    levels = {
        name: acquire(tissue, Modality.T2, site.scanner, 7, prepared=True)[brain].mean()
        for name, site in PRESETS.items()
    }
    assert levels["ningxia"] > 2 * levels["zhengzhou"] > 4 * levels["henan"]


def test_scan_is_the_same_to_the_bit_for_the_same_seed_only(tissue):
    first, again, other = (acquire(tissue, Modality.T1, SCANNER, seed, prepared=True) for seed in (7, 7, 8))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_noise_is_what_the_signal_to_noise_ratio_says(tissue):
    quiet = replace(SCANNER, gain_cv=0.0, snr=1e6, gain=1000.0)
    noisy = replace(quiet, snr=20.0)
    brain = tissue.whole(tissue.brain_voxels())
    scans = [
        acquire(tissue, Modality.FLAIR, s, 7, prepared=True)[brain].astype(float) for s in (quiet, noisy)
    ]
    bright = scans[0] > 500  # where Rician noise is nearly Gaussian
    assert np.std((scans[1] - scans[0])[bright]) == pytest.approx(1000 / 20, rel=0.05)


def test_shading_stays_within_its_amplitude(tissue):
    field = shading(stream(1), tissue.voxel_axes(), 0.3)
    assert np.abs(np.log(field)).max() == pytest.approx(0.3, rel=1e-4)


def test_prepared_scan_keeps_little_of_the_shading(tissue):
    quiet = replace(SCANNER, gain_cv=0.0, snr=1e6, gain=1000.0, bias=0.4)
    brain = tissue.whole(tissue.brain_voxels())

    def left(prepared):
        scans = [
            acquire(tissue, Modality.T1, s, 7, prepared=prepared) for s in (quiet, replace(quiet, bias=0.0))
        ]
        shaded, flat = (scan[brain].astype(float) for scan in scans)
        return np.std(np.log(shaded / flat)[flat > 200])

    assert left(prepared=True) == pytest.approx(0.15 * left(prepared=False), rel=0.05)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.5, 8), st.floats(0.5, 8))
def test_slice_profile_sums_to_one_and_is_as_wide_as_the_slice(thickness, spacing):
    profile = slice_profile(thickness, spacing)
    assert profile.sum() == pytest.approx(1)
    assert np.array_equal(profile, profile[::-1])
    assert (profile > 0).all()
    assert len(profile) * spacing < thickness + 3 * spacing


@pytest.mark.parametrize(
    ("thickness", "spacing", "expected"), [(1, 5.5, [1]), (5, 1, [0.2] * 5), (2, 1, [0.25, 0.5, 0.25])]
)
def test_slice_profile_of_round_numbers(thickness, spacing, expected):
    assert slice_profile(thickness, spacing) == pytest.approx(expected)
