"""How often a sign goes with a genotype: the tables from which patients are made up.

From the literature: ring enhancement and necrosis in glioblastoma; the T2-FLAIR mismatch of IDH-mutant
astrocytoma (sensitivity about 0.4, hardly ever seen otherwise); the indistinct margin (0.92, Johnson et al.
2017), calcification and frontal seat of oligodendroglioma; ATRX loss in 0.86 of IDH-mutant astrocytomas
(TCGA). Median survival is chosen so that lower-grade astrocytoma lives about 6.3 and oligodendroglioma
about 8.0 years, as in TCGA-LGG, and glioblastoma 15 months.
"""

from dataclasses import dataclass
from enum import StrEnum


class Subtype(StrEnum):
    """Adult-type diffuse glioma of the WHO classification of 2021."""

    GLIOBLASTOMA = "glioblastoma"
    ASTROCYTOMA = "astrocytoma"
    OLIGODENDROGLIOMA = "oligodendroglioma"


Prevalence = dict[Subtype, float]
PREVALENCE: Prevalence = {
    Subtype.GLIOBLASTOMA: 0.55,
    Subtype.ASTROCYTOMA: 0.27,
    Subtype.OLIGODENDROGLIOMA: 0.18,
}


@dataclass(frozen=True)
class Sign:
    """How often a sign is seen: as the literature has it, and in a caricature that always tells."""

    literature: float
    caricature: bool

    def probability(self, overlap: float) -> float:
        """Return the probability between the caricature (overlap 0) and the literature (1)."""
        return overlap * self.literature + (1 - overlap) * float(self.caricature)


NEVER = Sign(0.0, caricature=False)


@dataclass(frozen=True)
class Biology:
    """What patients of one subtype have in common; pairs of numbers are a mean and a standard deviation."""

    idh: int
    codel: int
    grades: dict[int, float]
    age: tuple[float, float]
    radius_mm: tuple[float, float]
    oedema_mm: dict[int, tuple[float, float]]
    heterogeneity: tuple[float, float]
    lobes: tuple[float, float, float, float]
    atrx_lost: Sign
    enhancing: dict[int, Sign]
    necrotic: dict[int, Sign]
    mismatch: dict[int, Sign]
    mismatch_atrx_intact: dict[int, Sign]
    calcified: Sign
    indistinct: Sign
    median_survival_months: dict[int, float]
    mgmt_methylated: float


_RING = Sign(0.85, caricature=True)
_RARE_MISMATCH = dict.fromkeys((2, 3, 4), Sign(0.01, caricature=False))
_ASTRO_MISMATCH = {
    2: Sign(0.47, caricature=True),
    3: Sign(0.47, caricature=True),
    4: Sign(0.08, caricature=True),
}

BIOLOGY: dict[Subtype, Biology] = {
    Subtype.GLIOBLASTOMA: Biology(
        idh=0,
        codel=0,
        grades={2: 0.03, 3: 0.09, 4: 0.88},
        age=(60, 11),
        radius_mm=(21, 5),
        oedema_mm={2: (7, 4), 3: (7, 4), 4: (15, 6)},
        heterogeneity=(0.4, 0.9),
        lobes=(0.30, 0.34, 0.26, 0.10),
        atrx_lost=Sign(0.05, caricature=False),
        enhancing={2: Sign(0.35, True), 3: Sign(0.35, True), 4: Sign(0.92, True)},
        necrotic={2: _RING, 3: _RING, 4: _RING},
        mismatch=_RARE_MISMATCH,
        mismatch_atrx_intact=_RARE_MISMATCH,
        calcified=Sign(0.04, caricature=False),
        indistinct=Sign(0.45, caricature=False),
        median_survival_months={2: 20, 3: 20, 4: 15},
        mgmt_methylated=0.42,
    ),
    Subtype.ASTROCYTOMA: Biology(
        idh=1,
        codel=0,
        grades={2: 0.45, 3: 0.37, 4: 0.18},
        age=(39, 10),
        radius_mm=(24, 6),
        oedema_mm={2: (4, 3), 3: (4, 3), 4: (10, 3)},
        heterogeneity=(0.15, 0.8),
        lobes=(0.52, 0.26, 0.12, 0.10),
        atrx_lost=Sign(0.86, caricature=True),
        enhancing={2: Sign(0.10, False), 3: Sign(0.35, False), 4: Sign(0.85, False)},
        necrotic={2: NEVER, 3: NEVER, 4: Sign(0.7, caricature=False)},
        mismatch=_ASTRO_MISMATCH,
        mismatch_atrx_intact={**_ASTRO_MISMATCH, 2: Sign(0.25, True), 3: Sign(0.25, True)},
        calcified=Sign(0.05, caricature=False),
        indistinct=Sign(0.45, caricature=False),
        median_survival_months={2: 100, 3: 66, 4: 31},
        mgmt_methylated=0.85,
    ),
    Subtype.OLIGODENDROGLIOMA: Biology(
        idh=1,
        codel=1,
        grades={2: 0.6, 3: 0.4},
        age=(44, 11),
        radius_mm=(23, 6),
        oedema_mm={2: (4, 3), 3: (4, 3)},
        heterogeneity=(0.3, 1.0),
        lobes=(0.65, 0.18, 0.12, 0.05),
        atrx_lost=Sign(0.02, caricature=False),
        enhancing={2: Sign(0.35, False), 3: Sign(0.35, False)},
        necrotic={2: NEVER, 3: NEVER},
        mismatch=_RARE_MISMATCH,
        mismatch_atrx_intact=_RARE_MISMATCH,
        calcified=Sign(0.55, caricature=True),
        indistinct=Sign(0.92, caricature=True),
        median_survival_months={2: 130, 3: 84},
        mgmt_methylated=0.85,
    ),
}
