"""Made-up patients: a genotype, a tumour that looks like it, and a follow-up that ends like it."""

from dataclasses import dataclass

import numpy as np

from fedglioma.case import UNKNOWN, Genotype, Outcome
from fedglioma.data.biology import BIOLOGY, PREVALENCE, Biology, Prevalence, Sign, Subtype

DAYS_PER_MONTH = 365.25 / 12
WEIBULL_SHAPE = 1.35
FOLLOW_UP_MONTHS = (12.0, 120.0)

# frontal, temporal, parietal to occipital, insular and deep; on the right side, mm from the middle
_LOBES_MM = ((30.0, 42.0, 18.0), (42.0, -2.0, -14.0), (32.0, -42.0, 22.0), (26.0, -4.0, 14.0))


@dataclass(frozen=True)
class Tumour:
    """What the lesion looks like; lengths in mm."""

    centre: tuple[float, float, float]
    radius_mm: float
    squash: tuple[float, float, float]
    roughness: float
    margin_mm: float
    oedema_mm: float
    ring_mm: float
    heterogeneity: float
    enhancing: bool
    necrotic: bool
    mismatch: bool
    calcified: bool


@dataclass(frozen=True)
class Patient:
    """One made-up person; ``genotype`` is the truth and ``reported`` what pathology wrote down."""

    seed: int
    subtype: Subtype
    grade: int
    genotype: Genotype
    reported: Genotype
    age: float
    sex: str
    tumour: Tumour
    outcome: Outcome


def sample_patient(
    rng: np.random.Generator,
    *,
    prevalence: Prevalence = PREVALENCE,
    overlap: float = 1.0,
    label_noise: float = 0.0,
    unknown_labels: float = 0.0,
    follow_up_months: tuple[float, float] = FOLLOW_UP_MONTHS,
) -> Patient:
    """Return a patient.

    Every call takes the same number of draws, so that one generator gives the same person, only more or
    less typical, at another overlap.

    Parameters
    ----------
    overlap
        1 shows signs as often as the literature has them, 0 shows every sign of the genotype and no other.
    label_noise
        Probability, per marker, that pathology reports the wrong status.
    unknown_labels
        Probability, per marker, that it was not measured.
    follow_up_months
        Bounds of the uniformly distributed time at which a living patient was last seen.
    """
    subtypes = tuple(Subtype)
    subtype = subtypes[rng.choice(len(subtypes), p=[prevalence[s] for s in subtypes])]
    biology = BIOLOGY[subtype]
    grade = int(rng.choice(list(biology.grades), p=list(biology.grades.values())))
    age = round(float(np.clip(rng.normal(*biology.age), 18, 88)), 1)
    atrx = _seen(rng, biology.atrx_lost, overlap)
    tumour = _sample_tumour(rng, biology, grade, atrx, overlap)
    genotype = Genotype(idh=biology.idh, atrx=int(atrx), codel_1p19q=biology.codel)
    return Patient(
        seed=int(rng.integers(2**31)),
        subtype=subtype,
        grade=grade,
        genotype=genotype,
        reported=_report(rng, genotype, label_noise, unknown_labels),
        age=age,
        sex="M" if rng.random() < 0.57 else "F",
        tumour=tumour,
        outcome=_sample_outcome(rng, subtype, grade, age, tumour, follow_up_months),
    )


def _seen(rng: np.random.Generator, sign: Sign, overlap: float) -> bool:
    return bool(rng.random() < sign.probability(overlap))


def _sample_tumour(
    rng: np.random.Generator, biology: Biology, grade: int, atrx: bool, overlap: float
) -> Tumour:
    mismatch = biology.mismatch if atrx else biology.mismatch_atrx_intact
    enhancing = _seen(rng, biology.enhancing[grade], overlap)
    necrotic = _seen(rng, biology.necrotic[grade], overlap)
    indistinct = _seen(rng, biology.indistinct, overlap)
    x, y, z = rng.uniform(0.8, 1.25, 3)
    return Tumour(
        centre=_sample_centre(rng, biology),
        radius_mm=float(np.clip(rng.normal(*biology.radius_mm), 9, 36)),
        squash=(float(x), float(y), float(z)),
        roughness=float(rng.uniform(0.08, 0.25)),
        margin_mm=float(rng.uniform(3.0, 6.0) if indistinct else rng.uniform(0.5, 1.2)),
        oedema_mm=float(np.clip(rng.normal(*biology.oedema_mm[grade]), 0, 28)),
        ring_mm=float(np.clip(rng.normal(5.5, 1.5), 2.5, 9)),
        heterogeneity=float(rng.uniform(*biology.heterogeneity)),
        enhancing=enhancing,
        necrotic=enhancing and necrotic,
        mismatch=_seen(rng, mismatch[grade], overlap),
        calcified=_seen(rng, biology.calcified, overlap),
    )


def _sample_centre(rng: np.random.Generator, biology: Biology) -> tuple[float, float, float]:
    lobe = np.array(_LOBES_MM[rng.choice(len(_LOBES_MM), p=biology.lobes)])
    side = rng.choice([-1.0, 1.0])
    centre = lobe * [side, 1, 1] + rng.normal(0, [6, 9, 7])
    # at least about 2 cm below the cortex, or half of the tumour would lie outside the head
    base = np.array([0.0, 0.0, -5.0])
    above = centre - base
    reach = float(np.linalg.norm(above / [67, 84, 62 if centre[2] > -5 else 42]))
    x, y, z = above * min(1.0, 0.66 / reach) + base
    return float(x), float(y), float(z)


def _sample_outcome(
    rng: np.random.Generator,
    subtype: Subtype,
    grade: int,
    age: float,
    tumour: Tumour,
    follow_up_months: tuple[float, float],
) -> Outcome:
    """Return a Weibull survival time around the median of subtype and grade, censored at the last visit.

    Beside the tumour it depends on three things that no image shows: resection, performance and MGMT.
    """
    biology = BIOLOGY[subtype]
    resected = float(rng.random() < 0.5)
    karnofsky = float(np.clip(rng.normal(82, 10) // 10 * 10, 40, 100))
    methylated = float(rng.random() < biology.mgmt_methylated)
    wildtype = subtype is Subtype.GLIOBLASTOMA
    log_hazard = (
        0.025 * (age - biology.age[0])
        + 0.015 * (tumour.radius_mm - 22)
        - 0.45 * (resected - 0.5)
        - 0.02 * (karnofsky - 80)
        - (0.5 if wildtype else 0.15) * (methylated - 0.5)
        + (0.2 * (tumour.necrotic - 0.8) if wildtype else 0.3 * (tumour.enhancing - 0.3))
    )
    halvings = rng.exponential() / np.log(2)
    scale = biology.median_survival_months[grade]
    died_at = scale * (halvings * np.exp(-log_hazard)) ** (1 / WEIBULL_SHAPE)
    last_visit = rng.uniform(*follow_up_months)
    days = max(1, round(min(died_at, last_visit) * DAYS_PER_MONTH))
    return Outcome(os_days=days, os_event=int(died_at <= last_visit))


def _report(
    rng: np.random.Generator, genotype: Genotype, label_noise: float, unknown_labels: float
) -> Genotype:
    idh, atrx, codel = (
        UNKNOWN if unmeasured < unknown_labels else label ^ int(wrong < label_noise)
        for label, (wrong, unmeasured) in zip(genotype.labels(), rng.random((3, 2)), strict=True)
    )
    return Genotype(idh=idh, atrx=atrx, codel_1p19q=codel)
