"""Made-up hospitals: which scanner, which sequences are missing, which tumours they see.

Three are modelled on the sites of the published federations and carry their names; as many more as are
asked for follow from their number. A case's missing sequences are drawn without looking at its genotype.
"""

import re
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.biology import PREVALENCE, Prevalence, Subtype
from fedglioma.data.fields import stream
from fedglioma.data.scanner import Scanner, Sequence
from fedglioma.errors import ConfigError

Pattern = tuple[tuple[Modality, ...], float]

_FLAIR, _T1CE, _T1, _T2 = CHANNELS
COMPLETE: Pattern = (CHANNELS, 1.0)
_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class SyntheticSite:
    """A hospital: scanner, probability of each set of sequences, and how often it sees each subtype."""

    name: str
    scanner: Scanner
    patterns: tuple[Pattern, ...]
    prevalence: Prevalence

    def draw_present(self, seed: int) -> tuple[Modality, ...]:
        """Return the modalities that a patient of this site has, in channel order."""
        rng = stream(seed, "present")
        return self.patterns[rng.choice(len(self.patterns), p=[p for _, p in self.patterns])][0]


def _prevalence(glioblastoma: float, astrocytoma: float, oligodendroglioma: float) -> Prevalence:
    return dict(zip(Subtype, (glioblastoma, astrocytoma, oligodendroglioma), strict=True))


_NINGXIA = SyntheticSite(
    "ningxia",
    Scanner(
        "simulated 1.5 T, spin echo, 5 mm slices",
        field_t=1.5,
        sequences={
            _FLAIR: Sequence(8000, 120, 2200),
            _T1CE: Sequence(600, 12),
            _T1: Sequence(550, 12),
            _T2: Sequence(4200, 92),
        },
        slice_mm=dict.fromkeys(CHANNELS, 5.0),
        gain=1100,
        offset=30,
        gamma=0.88,
        bias=0.30,
        snr=22,
    ),
    patterns=(((_FLAIR, _T1, _T2), 0.50), ((_FLAIR, _T1CE, _T2), 0.35), (CHANNELS, 0.15)),
    prevalence=_prevalence(0.45, 0.33, 0.22),
)
_ZHENGZHOU = SyntheticSite(
    "zhengzhou",
    Scanner(
        "simulated 3 T, MPRAGE, 1 mm",
        field_t=3.0,
        sequences={
            _FLAIR: Sequence(9000, 110, 2500),
            _T1CE: Sequence(1900, 2.5, 900),
            _T1: Sequence(1900, 2.5, 900),
            _T2: Sequence(5000, 100),
        },
        slice_mm=dict.fromkeys(CHANNELS, 1.0),
        gain=420,
        offset=0,
        gamma=1.0,
        bias=0.18,
        snr=45,
    ),
    patterns=(COMPLETE,),
    prevalence=PREVALENCE,
)
_HENAN = SyntheticSite(
    "henan",
    Scanner(
        "simulated 3 T, MPRAGE and 3 mm slices",
        field_t=3.0,
        sequences={
            _FLAIR: Sequence(9000, 90, 2450),
            _T1CE: Sequence(650, 10),
            _T1: Sequence(2300, 3, 1100),
            _T2: Sequence(6000, 85),
        },
        slice_mm={_FLAIR: 3.0, _T1CE: 3.0, _T1: 1.0, _T2: 3.0},
        gain=80,
        offset=4,
        gamma=1.12,
        bias=0.25,
        snr=32,
    ),
    patterns=((CHANNELS, 0.7), ((_FLAIR, _T1CE, _T2), 0.3)),
    prevalence=_prevalence(0.65, 0.22, 0.13),
)

PRESETS: dict[str, SyntheticSite] = {site.name: site for site in (_NINGXIA, _ZHENGZHOU, _HENAN)}


def site_names(count: int) -> tuple[str, ...]:
    """Return names of ``count`` hospitals: the three presets, then ``hospital4`` and so on."""
    further = (f"hospital{number}" for number in range(len(PRESETS) + 1, count + 1))
    return (*PRESETS, *further)[:count]


def make_site(name: str, index: int) -> SyntheticSite:
    """Return the preset of that name, or else a made-up hospital that follows from ``index`` alone."""
    if not _SITE_NAME.fullmatch(name):
        raise ConfigError(
            f"site {name!r}: a name has letters, digits, - and _ only, because it names a folder"
        )
    if name in PRESETS:
        return PRESETS[name]
    rng = stream(index, "site")
    field_t = float(rng.choice([1.5, 3.0]))
    thickness = float(rng.choice([1.0, 3.0, 5.0]))
    weights = np.array(list(PREVALENCE.values())) * rng.uniform(0.6, 1.4, len(PREVALENCE))
    glioblastoma, astrocytoma, oligodendroglioma = (float(w) for w in weights / weights.sum())
    return SyntheticSite(
        name,
        _further_scanner(rng, field_t, thickness),
        patterns=_further_patterns(rng),
        prevalence=_prevalence(glioblastoma, astrocytoma, oligodendroglioma),
    )


def make_sites(names: Many[str]) -> tuple[SyntheticSite, ...]:
    """Return the sites of these names.

    Raises
    ------
    ConfigError
        No name, a name twice, or a name that cannot name a folder.
    """
    if not names:
        raise ConfigError("sites: none named; name at least one, for instance ningxia")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ConfigError(f"sites: {', '.join(twice)} named more than once; give every site its own name")
    return tuple(make_site(name, index) for index, name in enumerate(names))


def _further_scanner(rng: np.random.Generator, field_t: float, thickness_mm: float) -> Scanner:
    def t1() -> Sequence:
        if thickness_mm > 1:
            return Sequence(rng.uniform(500, 700), rng.uniform(8, 14))
        return Sequence(rng.uniform(1800, 2400), rng.uniform(2, 4), rng.uniform(850, 1100))

    inversion = rng.uniform(2150, 2250) if field_t < 2 else rng.uniform(2400, 2550)
    return Scanner(
        f"simulated {field_t:g} T, {thickness_mm:g} mm",
        field_t=field_t,
        sequences={
            _FLAIR: Sequence(rng.uniform(8000, 10000), rng.uniform(90, 125), inversion),
            _T1CE: t1(),
            _T1: t1(),
            _T2: Sequence(rng.uniform(4000, 6500), rng.uniform(82, 105)),
        },
        slice_mm=dict.fromkeys(CHANNELS, thickness_mm),
        gain=float(np.exp(rng.uniform(np.log(80), np.log(1200)))),
        offset=rng.uniform(0, 30),
        gamma=rng.uniform(0.88, 1.12),
        bias=rng.uniform(0.15, 0.30),
        snr=rng.uniform(22, 45),
    )


def _further_patterns(rng: np.random.Generator) -> tuple[Pattern, ...]:
    """Return complete examinations mixed with ones that lack a single sequence, FLAIR never."""
    lacking = rng.choice([_T1CE.value, _T1.value, _T2.value])
    share = float(rng.choice([0.0, 0.25, 0.5]))
    if not share:
        return (COMPLETE,)
    return ((CHANNELS, 1 - share), (tuple(m for m in CHANNELS if m.value != lacking), share))
