"""The scale of the last run that the site trained in, for its own quality report."""

import logging
from typing import Final

from pydantic import ValidationError

from fedglioma.config.site import SiteConfig
from fedglioma.newfile import replacing
from fedglioma.scale import Scale

logger = logging.getLogger(__name__)

SCALE_NAME: Final = "intensity-scale.json"
"""In the state folder."""


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
