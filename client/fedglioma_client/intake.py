"""A hospital's settings, and its cohort read as they say, also when nothing of it can be used."""

import os.path
from dataclasses import dataclass
from pathlib import Path

from fedglioma.case import Finding
from fedglioma.config.site import SiteConfig, load_site_config
from fedglioma.data.cohort import Cohort, read_cohort
from fedglioma.data.dicom_layout import find_images
from fedglioma.data.manifest import TABLE_NAME, read_participants
from fedglioma.errors import DataError
from fedglioma.pseudonym import site_secret

SECRET_FILE = "site_secret"  # noqa: S105 - the name of a file


@dataclass(frozen=True)
class Unusable:
    """A cohort without a usable case; ``reason`` may name a patient.

    ``exclusions`` are those of the table alone: reading the images gave up without a list.
    """

    reason: str
    exclusions: tuple[Finding, ...]


def load_settings(path: Path) -> SiteConfig:
    """Return the settings with folders as a person would write them, no ``..`` and no link in them.

    Raises
    ------
    ConfigError
        As ``load_site_config``.
    """
    config = load_site_config(path)
    folders = {name: Path(os.path.realpath(getattr(config, name))) for name in ("data", "cache")}
    return config.model_copy(update=folders)


def secret_of(config: SiteConfig) -> bytes:
    """Return the site's secret, which the first call makes, in the folder ``state``."""
    config.lasting_state.mkdir(parents=True, exist_ok=True)
    return site_secret(config.lasting_state / SECRET_FILE)


def read_site_cohort(config: SiteConfig, secret: bytes) -> Cohort | Unusable:
    """Return the site's cohort, or why none of its patients can be used.

    Parameters
    ----------
    secret : bytes
        Under which the ids in DICOM headers are compared: the site's, or one that is forgotten.

    Raises
    ------
    DataError
        The folder, its layout or its table cannot be made out; the message names no patient.
    """
    layout = None if config.layout == "auto" else config.layout
    try:
        return read_cohort(config.data, layout=layout, secret=secret)
    except DataError as error:
        # Where the folder or the table is at fault, they say so again here, by themselves.
        find_images(config.data, layout, secret)
        table = read_participants(config.data / TABLE_NAME, site=config.site)
        return Unusable(str(error), table.exclusions)
