"""``report.html`` of one patient: self-contained, no script, nothing fetched, every value escaped."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedglioma.case import CHANNELS, Modality
from fedglioma.page import rendered
from fedglioma_client.predict_pictures import inline
from fedglioma_client.predict_result import SYNTHETIC, MarkerPrediction, Prediction
from fedglioma_client.quality_page import TITLES
from fedglioma_client.remedies import needs_a_look

NETWORKS: Final = {"mdpnet": "MDPNet", "sgpnet": "SGPNet"}
MOST_READ: Final = 0.995
"""From this share of the brain on it counts as seen whole."""


@dataclass(frozen=True)
class Bar:
    """A marker as the page draws it: the probability in percent, as text and as length."""

    marker: MarkerPrediction
    percent: str
    length: str


@dataclass(frozen=True)
class Panel:
    """A sequence as the page shows it; no picture where it is missing."""

    title: str
    image: str | None
    note: str


def percent(probability: float) -> str:
    """Return a probability in words of a page: never 0 or 100 %, which no network can know."""
    if probability < 0.01:
        return "under 1 %"
    if probability > 0.99:
        return "over 99 %"
    return f"{100 * probability:.0f} %"


def render(prediction: Prediction, pictures: Mapping[Modality, bytes]) -> str:
    """Return the page of a prediction with a picture of each sequence."""
    tumour = prediction.tumour
    return rendered(
        "fedglioma_client",
        "prediction.html.j2",
        result=prediction,
        network=NETWORKS.get(prediction.model.network, prediction.model.network),
        bars=[
            Bar(marker, percent(marker.probability), f"{100 * marker.probability:.1f}%")
            for marker in prediction.markers.values()
        ],
        panels=[
            Panel(
                TITLES[modality],
                inline(pictures[modality]) if modality in pictures else None,
                "reference" if tumour and tumour.modality is modality else "",
            )
            for modality in CHANNELS
        ],
        titles=TITLES,
        whole=prediction.brain_read >= MOST_READ,
        looks=needs_a_look(prediction.warnings),
        made_up=SYNTHETIC,
    )
