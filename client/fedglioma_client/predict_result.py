"""What a model says of one patient, as ``prediction.json`` holds it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final, Literal

from pydantic import Field

from fedglioma.case import CHANNELS, CLASS_TITLES, GENE_TITLES, GENES, UNKNOWN, Case, Frozen, Gene, Modality
from fedglioma.metrics.predictions import THRESHOLD
from fedglioma.metrics.who import WHO_TITLES, WhoClass, who_class
from fedglioma_client.predict_model import ModelIdentity, Predictor, Reading
from fedglioma_client.remedies import Listed

STATEMENT: Final = "Research use only. Not a medical device. Not for diagnosis or treatment of any patient."
SYNTHETIC: Final = (
    "The model was trained on made-up patients: what it says of a real one has no meaning whatever."
)
CONTRADICTION: Final = (
    "This combination of markers does not occur in the WHO classification of 2021, so at least one of the "
    "predictions is wrong. Each marker was predicted by itself; nothing was corrected."
)
MARKERS_ONLY: Final = (
    "What the predicted markers alone allow. Histology, grade and further markers are not looked at, so it "
    "is no diagnosis."
)

LARGEST_SHARE: Final = 0.4
"""Of the brain's volume: an outline above it is no tumour's."""


class MarkerPrediction(Frozen):
    """One marker: ``probability`` is the network's, uncalibrated, of ``changed``; ``call`` 1 from 0.5 on."""

    title: str
    changed: str
    probability: float = Field(ge=0, le=1)
    call: Literal[0, 1]
    word: str


class WhoPrediction(Frozen):
    """The WHO CNS5 class that the predicted markers imply; unasked markers count as unknown."""

    code: WhoClass
    title: str
    contradiction: bool
    note: str


class ExpertComparison(Frozen):
    """The expert's mask of the cohort on the same grid: its volume, and the overlap with the prediction.

    ``dice`` is None where both are empty.
    """

    volume_ml: float
    dice: float | None


class TumourPrediction(Frozen):
    """The outlined tumour on the patient's own grid: that of ``modality`` as the hospital gave it.

    ``axes`` is ``stored`` where voxels stand in the order of the hospital's NIfTI file, ``ras`` where the
    images are DICOM, which has no such order. ``affine`` maps the voxel index to RAS mm.
    """

    file: str
    modality: Modality
    axes: Literal["stored", "ras"]
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    volume_ml: float
    expert: ExpertComparison | None = None


class Question(Frozen):
    """What was asked of which images: the same question has the same answer.

    ``images`` is a digest of the images, the expert's mask and every setting of their preparation.
    """

    model: str
    reading: Reading
    images: str
    fedglioma: str


class Prediction(Frozen):
    """The result of one patient; stays in the hospital.

    ``markers`` has the markers that the network is asked, ``who`` is None where it is asked none, ``tumour``
    where it outlines none. ``brain_read`` is the share of the brain that the network saw.
    """

    schema_version: Literal[1] = 1
    format: Literal["fedglioma-prediction"] = "fedglioma-prediction"
    statement: str = STATEMENT
    synthetic_model: bool
    synthetic_patient: bool
    created: datetime
    fedglioma: str
    patient: str
    site: str
    present: tuple[Modality, ...]
    missing: tuple[Modality, ...]
    markers: dict[Gene, MarkerPrediction]
    who: WhoPrediction | None
    tumour: TumourPrediction | None
    brain_ml: float | None
    brain_read: float
    model: ModelIdentity
    question: Question
    device: str
    doubts: tuple[str, ...] = ()
    warnings: tuple[Listed, ...] = ()


def describe(
    case: Case,
    predictor: Predictor,
    question: Question,
    probabilities: Mapping[Gene, float],
    *,
    tumour: TumourPrediction | None,
    brain_ml: float | None,
    brain_read: float,
    warnings: tuple[Listed, ...],
    synthetic: bool,
) -> Prediction:
    """Return a patient's result; ``probabilities`` are those of the markers that the network is asked."""
    markers = {gene: marker(gene, probabilities[gene]) for gene in GENES if gene in probabilities}
    return Prediction(
        synthetic_model=predictor.identity.synthetic,
        synthetic_patient=synthetic,
        created=datetime.now(UTC),
        fedglioma=version("fedglioma"),
        patient=case.patient,
        site=case.site,
        present=case.present,
        missing=tuple(m for m in CHANNELS if m not in case.present),
        markers=markers,
        who=who_of(markers),
        tumour=tumour,
        brain_ml=brain_ml,
        brain_read=brain_read,
        model=predictor.identity,
        question=question,
        device=str(predictor.device),
        doubts=(*predictor.doubts, *_doubts_of_size(tumour, brain_ml)),
        warnings=warnings,
    )


def _doubts_of_size(tumour: TumourPrediction | None, brain_ml: float | None) -> tuple[str, ...]:
    """Return what is wrong with an outline that no tumour can have."""
    if tumour is None or not brain_ml or tumour.volume_ml <= LARGEST_SHARE * brain_ml:
        return ()
    share = tumour.volume_ml / brain_ml
    return (
        f"the outline has {tumour.volume_ml:.0f} mL, {share:.0%} of the brain: no tumour is that large, do "
        "not believe it",
    )


def marker(gene: Gene, probability: float) -> MarkerPrediction:
    """Return a marker's prediction with its words."""
    call: Literal[0, 1] = 1 if probability >= THRESHOLD else 0
    words = CLASS_TITLES[gene]
    return MarkerPrediction(
        title=GENE_TITLES[gene], changed=words[1], probability=probability, call=call, word=words[call]
    )


def who_of(markers: Mapping[Gene, MarkerPrediction]) -> WhoPrediction | None:
    """Return the class that predicted markers imply, contradictions said and not repaired."""
    if not markers:
        return None
    idh, atrx, codel = (markers[gene].call if gene in markers else UNKNOWN for gene in GENES)
    code = who_class(idh, atrx, codel)
    contradiction = code is WhoClass.CONTRADICTORY
    return WhoPrediction(
        code=code,
        title=WHO_TITLES[code],
        contradiction=contradiction,
        note=CONTRADICTION if contradiction else MARKERS_ONLY,
    )
