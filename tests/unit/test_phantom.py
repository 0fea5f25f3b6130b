from dataclasses import replace

import numpy as np
import pytest

from fedglioma.data.anatomy import Label
from fedglioma.data.biology import Subtype
from fedglioma.data.fields import Grid, stream
from fedglioma.data.lesion import ENHANCING, NECROTIC_CORE, OEDEMA
from fedglioma.data.patients import sample_patient
from fedglioma.data.phantom import render_tissue

PATIENTS = [sample_patient(stream(3, number)) for number in range(40)]
GLIOBLASTOMA = next(p for p in PATIENTS if p.subtype is Subtype.GLIOBLASTOMA and p.tumour.necrotic)
ASTROCYTOMA = next(p for p in PATIENTS if p.tumour.mismatch)


def millilitres(grid, mask):
    return np.count_nonzero(mask) * np.prod(grid.spacing) / 1000


def rendered(patient, size=32, **settings):
    return render_tissue(patient, Grid.cube(size), **settings)


@pytest.mark.parametrize("patient", PATIENTS[:4])
def test_brain_and_tumour_have_the_same_volume_on_every_grid(patient):
    reference = rendered(patient, 80)
    brain = millilitres(reference.grid, reference.brain_voxels())
    tumour = millilitres(reference.grid, reference.mask_voxels())
    assert 1100 < brain < 1900
    for size in (32, 48, 64):
        tissue = rendered(patient, size)
        assert millilitres(tissue.grid, tissue.brain_voxels()) == pytest.approx(brain, rel=0.03)
        assert millilitres(tissue.grid, tissue.mask_voxels()) == pytest.approx(tumour, rel=0.05)


def test_same_patient_is_the_same_to_the_bit():
    one, other = rendered(GLIOBLASTOMA), rendered(GLIOBLASTOMA)
    for name in ("labels", "t1_ms", "t2_ms", "proton_density", "gadolinium", "mask"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


def test_another_seed_is_another_head():
    assert (rendered(replace(GLIOBLASTOMA, seed=1)).t1_ms.shape) == rendered(GLIOBLASTOMA).t1_ms.shape
    assert not np.array_equal(rendered(replace(GLIOBLASTOMA, seed=1)).labels, rendered(GLIOBLASTOMA).labels)


def test_tumour_lies_in_the_brain_where_the_patient_has_it():
    tissue = rendered(GLIOBLASTOMA)
    mask = tissue.mask_voxels()
    middle = [axis[where].mean() for axis, where in zip(tissue.voxel_axes(), np.nonzero(mask), strict=True)]
    assert np.linalg.norm(np.array(middle) - GLIOBLASTOMA.tumour.centre) < 15
    assert (tissue.mask[~tissue.brain] == 0).all()


def test_glioblastoma_has_a_ring_that_takes_up_contrast_around_necrosis():
    tissue = rendered(GLIOBLASTOMA, 64)
    assert set(np.unique(tissue.mask)) == {0, NECROTIC_CORE, OEDEMA, ENHANCING}
    assert tissue.gadolinium[tissue.mask == ENHANCING].mean() > 0.2
    assert (
        tissue.t2_ms[tissue.mask == NECROTIC_CORE].mean()
        > 1.5 * tissue.t2_ms[tissue.mask == ENHANCING].mean()
    )


def test_mismatch_has_a_watery_core_and_nothing_that_enhances():
    lesion = rendered(replace(ASTROCYTOMA, tumour=replace(ASTROCYTOMA.tumour, enhancing=False)), 64)
    assert ENHANCING not in lesion.mask
    assert lesion.t2_ms[lesion.mask == NECROTIC_CORE].mean() > 200


def test_healthy_tissue_has_its_relaxation_times():
    tissue = rendered(GLIOBLASTOMA, 64)
    white = (tissue.labels == Label.WHITE) & (tissue.mask == 0)
    assert np.median(tissue.t1_ms[white]) == pytest.approx(850, rel=0.1)
    assert np.median(tissue.t2_ms[white]) == pytest.approx(74, rel=0.1)


def test_skull_surrounds_the_brain_and_changes_nothing_inside():
    bare, head = rendered(GLIOBLASTOMA), rendered(GLIOBLASTOMA, skull=True)
    assert np.array_equal(bare.whole(bare.brain_voxels()), head.whole(head.brain_voxels()))
    assert np.array_equal(bare.whole(bare.mask_voxels()), head.whole(head.mask_voxels()))
    assert {Label.SCALP, Label.BONE, Label.MUSCLE} <= set(np.unique(head.labels))
    assert not {Label.SCALP, Label.BONE, Label.MUSCLE} & set(np.unique(bare.labels))


def test_coarse_voxel_is_the_mean_of_its_points():
    tissue = rendered(GLIOBLASTOMA)
    fine = tissue.t1_ms
    assert tissue.points == 2
    assert tissue.voxels(fine)[3, 4, 5] == pytest.approx(fine[6:8, 8:10, 10:12].mean(), rel=1e-6)


def test_tumour_outside_the_grid_leaves_a_healthy_brain():
    grid = Grid((8, 8, 8), (2.0, 2.0, 2.0), centre=(-40.0, -40.0, 20.0))
    away = replace(
        GLIOBLASTOMA, tumour=replace(GLIOBLASTOMA.tumour, centre=(45.0, 45.0, 10.0), radius_mm=9.0)
    )
    assert not render_tissue(away, grid).mask.any()


@pytest.mark.parametrize("size", [24, 32])
def test_field_of_view_leaves_a_margin_around_every_brain(size):
    for patient in PATIENTS[:20]:
        tissue = rendered(patient, size)
        brain = tissue.whole(tissue.brain_voxels())
        sides = np.concatenate([brain[0], brain[-1], brain[:, 0], brain[:, -1]])
        assert sides.mean() < 0.03  # what preparation takes for a stripped skull
