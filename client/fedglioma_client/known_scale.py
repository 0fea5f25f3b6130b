"""The scales that a site was given: of the last run for its quality report, and one of each run, not two."""

import hashlib
import logging
from typing import Final

from pydantic import ValidationError

from fedglioma.config.site import SiteConfig
from fedglioma.errors import ProtocolError
from fedglioma.newfile import replacing
from fedglioma.scale import Scale

logger = logging.getLogger(__name__)

SCALE_NAME: Final = "intensity-scale.json"
"""In the state folder."""
RUN_SCALES: Final = "run-scales"
"""There too: of each run, under its name's digest, the id of its scale."""


def last_scale(config: SiteConfig) -> Scale | None:
    """Return the scale of the last run that the site trained in, or None."""
    try:
        return Scale.model_validate_json((config.state / SCALE_NAME).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        logger.warning("%s in the state folder is damaged; the next run writes it again", SCALE_NAME)
        return None


def remember_scale(config: SiteConfig, scale: Scale) -> None:
    """Keep a run's scale, where it is another than the last; raises ``OSError`` where that cannot be.

    A site without a state folder is a simulated one, and keeps none.
    """
    if not config.state.is_dir():
        return
    before = last_scale(config)
    if before is None or before.id != scale.id:
        with replacing(config.state / SCALE_NAME) as file:
            file.write(scale.model_dump_json(indent=1).encode() + b"\n")


def require_one_scale(config: SiteConfig, run: str, scale: Scale) -> None:
    """Refuse another scale than the run's first, which is kept.

    A coordinator that tried scale after scale could find the site's landmarks by which of them it refuses.

    Raises
    ------
    ProtocolError
        The run had another scale before.
    OSError
        The scale cannot be kept.
    """
    # A client's state is there, as its audit log is. A made-up hospital of a simulation may have none.
    if not config.state.is_dir():
        return
    # The run's name is the coordinator's word, so that it names no file as it stands.
    path = config.state / RUN_SCALES / hashlib.sha256(run.encode()).hexdigest()[:32]
    try:
        first = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        first = scale.id
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as file:
            file.write(f"{first}\n".encode())
    if first != scale.id:
        raise ProtocolError(
            "intensities: this run had another intensity scale before, and has one; begin another run"
        )
