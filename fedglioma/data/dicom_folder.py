"""A patient's folder of DICOM: which series stands for which sequence, and whose images they are.

``choose_series`` needs headers only; the chosen files are converted when the case is prepared.
``compare_patients`` finds a study that lies in another patient's folder.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.cache import Remark
from fedglioma.data.dicom import WHOLE_HEAD, Limits, Series, find_series
from fedglioma.data.dicom_walk import place_of
from fedglioma.data.sequence import NO_MAP, SeriesMap
from fedglioma.pseudonym import patient_tag

_ROUNDED_MM: Final = 2


@dataclass(frozen=True)
class PatientSeries:
    """One patient's folder, judged by headers: candidates per sequence, the best first.

    ``tags`` are the keyed hashes of the PatientIDs that usable series carry; ``own`` is that of the
    folder's name. Both stay at the site.
    """

    folder: Path
    candidates: Mapping[Modality, tuple[Series, ...]]
    remarks: tuple[Remark, ...]
    tags: frozenset[str]
    own: str

    @property
    def chosen(self) -> dict[Modality, Series]:
        """The best series of each sequence, in channel order."""
        return {
            modality: self.candidates[modality][0] for modality in CHANNELS if modality in self.candidates
        }


def choose_series(
    folder: Path, secret: bytes, *, series_map: SeriesMap = NO_MAP, limits: Limits = WHOLE_HEAD
) -> PatientSeries:
    """Return which series of a patient's folder stands for which sequence, by headers alone.

    Of several the finest counts, then the one of most slices, then for T1ce the latest and for the others
    the first. Series that carry another patient's id than the folder's are left out; where it cannot be
    told which of two patients the folder belongs to, all are.

    Raises
    ------
    VolumeError
        ``unreadable``: the folder cannot be listed.
    """
    series, findings = find_series(folder, secret, series_map=series_map, limits=limits)
    remarks = list(findings)
    own = patient_tag(secret, folder.name)
    root = folder.resolve()
    sorted_in: dict[Modality, list[Series]] = defaultdict(list)
    tags = frozenset(one.patient for one in series if one.patient)
    for one in series:
        remark, modality = _placed(one, own, tags), one.choice.modality
        if remark is not None:
            remarks.append(_about(one, root, *remark))
        elif modality is not None:
            sorted_in[modality].append(one)
    candidates = {m: tuple(sorted(sorted_in[m], key=_rank)) for m in CHANNELS if m in sorted_in}
    for modality, ranked in candidates.items():
        best = place_of(ranked[0].files, root)
        for loser in ranked[1:]:
            reason = f"another series for {modality}; {best} is finer, longer or at the better time"
            remarks.append(Remark(code="not_chosen", message=f"{place_of(loser.files, root)}: {reason}"))
        if ranked[0].choice.confidence < 0.9:
            reasons = "; ".join(ranked[0].choice.reasons)
            doubt = f"{best}: taken for {modality}: {reasons}"
            remarks.append(Remark(code="sequence_doubt", message=doubt))
    return PatientSeries(folder, candidates, tuple(remarks), tags, own)


def compare_patients(patients: Iterable[PatientSeries]) -> Iterator[tuple[Path, Remark]]:
    """Yield, with the folder, each doubt about whose images lie where.

    ``other_patient``: the files carry the id that is another folder's name. ``same_patient``: two folders
    hold files of one id.
    """
    everyone = list(patients)
    names = {patient.own: patient.folder for patient in everyone if patient.own}
    holders: dict[str, list[Path]] = defaultdict(list)
    for patient in everyone:
        for tag in sorted(patient.tags):
            owner = names.get(tag)
            if owner is not None and owner != patient.folder:
                reason = f"holds images of the patient whose folder is {owner.name}; move or remove them"
                yield patient.folder, Remark(code="other_patient", message=reason)
            holders[tag].append(patient.folder)
    for tag, folders in holders.items():
        if tag in names:
            continue
        for folder in folders[1:]:
            reason = f"its images carry the same patient id as those in {folders[0].name}; keep one folder"
            yield folder, Remark(code="same_patient", message=reason)


def _placed(series: Series, own: str, tags: frozenset[str]) -> tuple[str, str] | None:
    """Return why a series is no candidate, or None."""
    if len(tags) > 1:
        if own not in tags:
            reason = f"the folder holds images of {len(tags)} patients and is named as none; sort them out"
            return "mixed_patients", reason
        if series.patient != own:
            return "other_patient", "carries another patient's id than the folder's name; sort it out"
    if not series.choice.usable:
        return series.choice.code, "; ".join(series.choice.reasons)
    return None


def _rank(series: Series) -> tuple[float, int, int]:
    coarsest = round(max(series.header.spacing_mm or (0.0,)), _ROUNDED_MM)
    late_first = series.choice.modality is Modality.T1CE
    return coarsest, -(series.header.slices or 0), -series.order if late_first else series.order


def _about(series: Series, root: Path, code: str, reason: str) -> Remark:
    return Remark(code=code, message=f"{place_of(series.files, root)}: {reason}")
