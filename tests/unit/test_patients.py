from collections import Counter

import numpy as np
import pytest
from lifelines import KaplanMeierFitter

from fedglioma.case import GENES, UNKNOWN
from fedglioma.data.biology import PREVALENCE, Subtype
from fedglioma.data.fields import stream
from fedglioma.data.patients import DAYS_PER_MONTH, sample_patient


def draw(count, **settings):
    return [sample_patient(stream(1, number), **settings) for number in range(count)]


@pytest.fixture(scope="module")
def many():
    return draw(3000, follow_up_months=(12, 160))


def median_months(patients):
    curve = KaplanMeierFitter().fit(
        [p.outcome.os_days / DAYS_PER_MONTH for p in patients], [p.outcome.os_event for p in patients]
    )
    return curve.median_survival_time_


def share(sign, patients):
    return np.mean([getattr(p.tumour, sign) for p in patients])


def of(patients, subtype, *grades):
    return [p for p in patients if p.subtype is subtype and (not grades or p.grade in grades)]


def test_median_survival_is_that_of_the_literature(many):
    astrocytoma = median_months(of(many, Subtype.ASTROCYTOMA, 2, 3))
    oligodendroglioma = median_months(of(many, Subtype.OLIGODENDROGLIOMA))
    assert median_months(of(many, Subtype.GLIOBLASTOMA)) == pytest.approx(15, abs=1.5)
    assert astrocytoma == pytest.approx(6.3 * 12, rel=0.15)  # TCGA-LGG, IDH-mutant, 1p/19q intact
    assert oligodendroglioma == pytest.approx(8.0 * 12, rel=0.15)  # TCGA-LGG, codeleted
    assert oligodendroglioma > astrocytoma


def test_some_patients_die_and_some_are_censored(many):
    assert 0.5 < np.mean([p.outcome.os_event for p in many]) < 0.9


def test_subtypes_are_as_prevalent_as_asked(many):
    counts = Counter(p.subtype for p in many)
    assert {s: counts[s] / len(many) for s in Subtype} == pytest.approx(PREVALENCE, abs=0.03)


def test_genotype_defines_the_subtype(many):
    labels = {s: {(p.genotype.idh, p.genotype.codel_1p19q) for p in of(many, s)} for s in Subtype}
    assert labels == {
        Subtype.GLIOBLASTOMA: {(0, 0)},
        Subtype.ASTROCYTOMA: {(1, 0)},
        Subtype.OLIGODENDROGLIOMA: {(1, 1)},
    }


def test_signs_are_as_frequent_as_in_the_literature(many):
    glioblastoma = of(many, Subtype.GLIOBLASTOMA, 4)
    astrocytoma = of(many, Subtype.ASTROCYTOMA, 2, 3)
    oligodendroglioma = of(many, Subtype.OLIGODENDROGLIOMA)
    assert share("enhancing", glioblastoma) == pytest.approx(0.92, abs=0.03)
    assert share("mismatch", astrocytoma) == pytest.approx(0.44, abs=0.06)
    assert share("mismatch", glioblastoma + oligodendroglioma) < 0.03
    assert share("calcified", oligodendroglioma) == pytest.approx(0.55, abs=0.06)
    assert np.mean([p.tumour.margin_mm > 2 for p in oligodendroglioma]) == pytest.approx(0.92, abs=0.04)
    atrx = np.mean([p.genotype.atrx for p in of(many, Subtype.ASTROCYTOMA)])
    assert atrx == pytest.approx(0.86, abs=0.04)


def test_caricature_shows_every_sign_of_the_genotype_and_no_other():
    for patient in draw(200, overlap=0.0):
        tumour = patient.tumour
        glioblastoma = patient.subtype is Subtype.GLIOBLASTOMA
        assert (tumour.enhancing, tumour.necrotic) == (glioblastoma, glioblastoma)
        assert tumour.calcified == (patient.subtype is Subtype.OLIGODENDROGLIOMA)
        assert patient.genotype.atrx == (patient.subtype is Subtype.ASTROCYTOMA)


def test_overlap_changes_the_signs_and_nobody_else():
    for clear, blurred in zip(draw(50, overlap=0.0), draw(50, overlap=1.0), strict=True):
        for field in ("seed", "subtype", "grade", "age", "sex"):
            assert getattr(clear, field) == getattr(blurred, field)
        assert clear.tumour.centre == blurred.tumour.centre
        assert clear.tumour.radius_mm == blurred.tumour.radius_mm


def test_label_noise_flips_the_report_and_never_the_truth():
    clean, noisy = draw(2000), draw(2000, label_noise=0.1)
    assert [p.genotype for p in noisy] == [p.genotype for p in clean]
    wrong = [p.genotype.label(g) != p.reported.label(g) for p in noisy for g in GENES]
    assert np.mean(wrong) == pytest.approx(0.1, abs=0.015)
    assert all(p.genotype == p.reported for p in clean)


def test_unknown_labels_are_missing_as_often_as_asked():
    unknown = [p.reported.label(g) == UNKNOWN for p in draw(2000, unknown_labels=0.3) for g in GENES]
    assert np.mean(unknown) == pytest.approx(0.3, abs=0.02)


def test_same_generator_gives_the_same_patient():
    assert sample_patient(stream(4)) == sample_patient(stream(4))
