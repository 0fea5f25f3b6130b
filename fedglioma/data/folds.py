"""Who trains, who selects the model, who is reported, in each fold of a study: by patient, never by case.

Three protocols: a division written in a file, k folds stratified by label, one fold per site left out.
Every draw is a hash of seed and patient, so that neither the order of a table nor the machine matters.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from pydantic import ConfigDict, Field, field_validator

from fedglioma.case import UNKNOWN, Frozen, Gene, Genotype
from fedglioma.data.manifest import patient_key
from fedglioma.data.split import Split
from fedglioma.errors import ConfigError
from fedglioma.words import one_line


class Division(Frozen):
    """One fold: the use of each patient. Two spellings that a cohort's table takes for one are one.

    Neither its text nor an error about it shows a patient.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    name: str = Field(min_length=1)
    split: dict[str, Split] = Field(min_length=1, repr=False)

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        return one_line(name)

    @field_validator("split")
    @classmethod
    def _once(cls, split: dict[str, Split]) -> dict[str, Split]:
        if len({patient_key(patient) for patient in split}) < len(split):
            raise ValueError("a patient is in it twice, under two spellings")
        return split

    @cached_property
    def _by_key(self) -> dict[str, Split]:
        return {patient_key(patient): part for patient, part in self.split.items()}

    @property
    def digest(self) -> str:
        """SHA-256 of the division in hexadecimal: equal wherever the same patients have the same use."""
        lines = sorted(f"{key}\t{part.value}\n" for key, part in self._by_key.items())
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()

    def names(self, patient: str) -> bool:
        """Return whether the patient is in this division."""
        return patient_key(patient) in self._by_key

    def of(self, patient: str) -> Split:
        """Return the use of one patient.

        Raises
        ------
        ConfigError
            The division does not name the patient; the message does not either.
        """
        part = self._by_key.get(patient_key(patient))
        if part is None:
            raise ConfigError(
                f"division {self.name}: a patient of the cohort is not in it: give every patient a split"
            )
        return part

    def patients(self, part: Split) -> tuple[str, ...]:
        """Return the patients of one use, sorted."""
        return tuple(sorted(patient for patient, use in self.split.items() if use is part))


def check_division(division: Division, patients: Iterable[str], *, partial: bool = False) -> tuple[str, ...]:
    """Return the cohort's patients whom the division does not name, sorted, once it is fit to be used.

    A division may name more patients than the cohort has; they are ignored.

    Parameters
    ----------
    partial : bool
        Whether patients without a split may be left out; else they are an error.

    Raises
    ------
    ConfigError
        A patient has no split, or of this cohort nobody trains or nobody is reported. It counts patients
        and names none.
    """
    cohort = sorted(set(patients))
    unnamed = tuple(patient for patient in cohort if not division.names(patient))
    if len(unnamed) == len(cohort):
        raise ConfigError(
            f"division {division.name}: it names none of the cohort's {len(cohort)} patients: check that "
            "its ids are the cohort's participant_id"
        )
    if unnamed and not partial:
        raise ConfigError(
            f"division {division.name}: {len(unnamed)} of the cohort's {len(cohort)} patients are not in "
            "it: give each a split, or leave them out of the cohort"
        )
    used = {division.of(patient) for patient in cohort if division.names(patient)}
    for part, does in ((Split.TRAIN, "trains"), (Split.REPORT, "is reported")):
        if part not in used:
            raise ConfigError(
                f"division {division.name}: nobody of this cohort {does}: give some patients the split "
                f"{part.value}"
            )
    return unnamed


def stratified_folds(
    patients: Mapping[str, str],
    k: int,
    *,
    seed: int,
    selection: float,
    sites: Mapping[str, str] | None = None,
) -> tuple[Division, ...]:
    """Return k divisions that report every patient exactly once, each fold with the cohort's mixture.

    Numbers of reported patients differ by at most 1 between folds, within each stratum and over all; with
    ``sites`` within each site's part of a stratum, and within a site, a stratum and over all as nearly as
    that allows. A site of two patients or more is never reported as a whole by one fold.

    Parameters
    ----------
    patients : mapping of patient to stratum
        A stratum is any text, as ``stratum_of`` gives it.
    k : int
        From 2 to the number of patients.
    selection : float
        Share of a fold's other patients who select the model instead of training, from each stratum in
        proportion; with a share above 0 at least one, and at least one trains.
    sites : mapping of patient to site, optional
        Whose patients are to be spread over the folds, too, because every site trains alone.

    Raises
    ------
    ConfigError
        ``k`` or ``selection`` is impossible, or two spellings of one patient are in the mapping.
    """
    _check_selection(selection)
    if not 2 <= k <= len(patients):
        raise ConfigError(f"folds: {k} of {len(patients)} patients: from 2 to the number of patients")
    salt = f"{seed}\nreport"
    if sites is None:
        # Dealt like cards, stratum after stratum, each beginning where the last one ended.
        dealt = {patient: place % k for place, patient in enumerate(_shuffled(patients, salt))}
        strata = dict(patients)
    else:
        dealt = _spread(patients, sites, k, salt)
        strata = {patient: f"{sites[patient]}\n{stratum}" for patient, stratum in patients.items()}
    return tuple(
        _division(
            f"fold-{fold + 1}",
            {patient: stratum for patient, stratum in strata.items() if dealt[patient] != fold},
            [patient for patient in patients if dealt[patient] == fold],
            seed=seed,
            selection=selection,
        )
        for fold in range(k)
    )


def leave_one_site_out(
    patients: Mapping[str, tuple[str, str]], *, seed: int, selection: float
) -> tuple[Division, ...]:
    """Return one division per site, named by it, that reports this site's patients and no others.

    Parameters
    ----------
    patients : mapping of patient to (site, stratum)
    selection : float
        As in ``stratified_folds``; it is taken from every remaining site in proportion.

    Raises
    ------
    ConfigError
        There are fewer than two sites, ``selection`` is impossible, or two spellings of one patient are
        in the mapping.
    """
    _check_selection(selection)
    sites = sorted({site for site, _ in patients.values()})
    if len(sites) < 2:
        raise ConfigError(
            f"leave one site out: {len(sites)} site{'s' * (len(sites) != 1)}: it takes at least two"
        )
    return tuple(
        _division(
            left_out,
            {p: f"{site}\n{stratum}" for p, (site, stratum) in patients.items() if site != left_out},
            [p for p, (site, _) in patients.items() if site == left_out],
            seed=seed,
            selection=selection,
        )
        for left_out in sites
    )


def stratum_of(
    genotype: Genotype, genes: Sequence[Gene] = (Gene.IDH,), *, has_mask: bool | None = None
) -> str:
    """Return the stratum of a patient, as in ``idh=1`` or ``idh=unknown mask=0``.

    ``has_mask`` says whether the patient's tumour is outlined; without it that plays no part.
    """
    labels = {gene.value: genotype.label(gene) for gene in genes}
    words = [f"{name}={'unknown' if label == UNKNOWN else label}" for name, label in labels.items()]
    return " ".join(words if has_mask is None else [*words, f"mask={int(has_mask)}"])


def _spread(patients: Mapping[str, str], sites: Mapping[str, str], k: int, salt: str) -> dict[str, int]:
    """Return each patient's fold: one after another into the fold that has fewest alike (minimisation).

    References
    ----------
    Taves (1974), Clinical Pharmacology and Therapeutics 15(5), 443-453.
    """
    taken: Counter[tuple[int, str, str]] = Counter()
    dealt: dict[str, int] = {}
    for patient in _shuffled({p: f"{sites[p]}\n{stratum}" for p, stratum in patients.items()}, salt):
        site, stratum = sites[patient], patients[patient]
        alike = ((site, stratum), (site, ""), ("", stratum), ("", ""))
        draws = [_draw(f"{salt}\n{fold}\n{patient_key(patient)}") for fold in range(k)]
        _, fold = min(((*(taken[fold, *group] for group in alike), draws[fold]), fold) for fold in range(k))
        dealt[patient] = fold
        taken.update((fold, *group) for group in alike)
    return dealt


def _division(
    name: str, others: Mapping[str, str], reported: Iterable[str], *, seed: int, selection: float
) -> Division:
    """Return a division: ``reported`` are reported, of ``others`` a stratified share selects."""
    order = _shuffled(others, f"{seed}\nselection\n{name}")
    wanted = min(max(round(selection * len(order)), 1), len(order) - 1) if selection > 0 else 0
    # Evenly spaced along the sorted strata (systematic sampling): each stratum gives its share rounded up
    # or down. The random start gives a stratum of one patient no certainty of losing it to selection.
    start = _draw(f"{seed}\nstart\n{name}") % len(order)
    split = dict.fromkeys(reported, Split.REPORT)
    for place, patient in enumerate(order):
        chosen = ((place + 1) * wanted + start) // len(order) > (place * wanted + start) // len(order)
        split[patient] = Split.SELECTION if chosen else Split.TRAIN
    return Division(name=name, split=split)


def _shuffled(strata: Mapping[str, str], salt: str) -> list[str]:
    """Return the patients stratum by stratum, within each in the order of a hash."""
    keys = {patient: patient_key(patient) for patient in strata}
    if len(set(keys.values())) < len(keys):
        raise ConfigError("folds: a patient is in the cohort twice, under two spellings: keep one")
    return sorted(strata, key=lambda patient: (strata[patient], _draw(f"{salt}\n{keys[patient]}")))


def _draw(text: str) -> int:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def _check_selection(selection: float) -> None:
    if not 0 <= selection < 1:
        raise ConfigError(f"folds: selection {selection}: a share from 0 to below 1")
