"""The same patient in two hospitals: the tags that a site sends, and whom the answer means.

Tags go out only where the run asks for duplicates and the site has a linkage key; what comes back is turned
into names here, for the hospital's own eyes.
"""

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fedglioma.case import CHANNELS, Case, Frozen
from fedglioma.config.run import RunConfig
from fedglioma.config.site import SiteConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import FedGliomaError
from fedglioma.linkage import create_linkage_key, image_tag, padded, person_tag, read_linkage_key
from fedglioma.newfile import PRIVATE, replacing
from fedglioma.words import cell
from fedglioma_client.site import Site
from fedglioma_client.verdict import Verdict, doubtful, failed, fine, several

logger = logging.getLogger(__name__)

SHARED_NAME: Final = "shared-patients.csv"
NUMBER: Final = "linkage_id"
"""The column of participants.tsv, and what a patient matched by where it was that."""


class Match(Frozen):
    """A patient of this site who is at another one too, and what was the same."""

    patient: str
    matched: tuple[str, ...]


def tags_of(site: Site, settings: RunConfig, cases: int) -> tuple[str, ...]:
    """Return the site's tags for the statistics round; none unless run and site both want it.

    ``cases`` is the number of cases as it is published: the tags are filled up to what so many have.

    Raises
    ------
    ConfigError, IdentityError
        The linkage key cannot be read or is none.
    """
    key = _key(site.config, settings)
    if key is None:
        return ()
    tags = [tag for prepared in site.cases for tag in _tags(key, prepared)]
    return padded(key, site.config.site, tags, cases)


def name_shared(site: Site, settings: RunConfig, shared: Sequence[str]) -> tuple[Match, ...]:
    """Return whom the tags mean, and write them down in the site's state folder, for its owner alone.

    The list is written anew where it changed, and removed where nobody is shared any more. The log has
    their number.

    Raises
    ------
    ConfigError, IdentityError
        The linkage key cannot be read or is none.
    OSError
        The state folder cannot be written.
    """
    key = _key(site.config, settings)
    if key is None:
        return ()
    told, found = frozenset(shared), []
    for prepared in site.cases:
        same = {what for tag, what in _tags(key, prepared).items() if tag in told}
        if same:
            names = [NUMBER, *(modality.value for modality in CHANNELS)]
            found.append(Match(patient=prepared.case.patient, matched=tuple(n for n in names if n in same)))
    if _write(site.config.state / SHARED_NAME, found):
        logger.warning(
            "%s here and at another hospital of this run, at least by one image or number; %s in the state "
            "folder names them; nobody was left out",
            several(len(found), "patient") + (" is" if len(found) == 1 else " are"),
            SHARED_NAME,
        )
    return tuple(found)


def check_linkage(config: SiteConfig, cases: Sequence[Case]) -> list[Verdict]:
    """Return whether the linkage key can be used and whose numbers are known; nothing without a key."""
    if config.linkage_key is None:
        return []
    try:
        read_linkage_key(config.linkage_key)
    except FedGliomaError as error:
        remedy = "restore the key, or leave linkage_key out of the settings"
        return [failed("linkage", str(error), remedy, exit_code=error.exit_code)]
    known = sum(case.linkage_id is not None for case in cases)
    detail = f"the key can be read; {NUMBER} is known of {known} of {several(len(cases), 'patient')}"
    if cases and not known:
        remedy = f"fill {NUMBER} in participants.tsv if it may be used; else only equal images are found"
        return [doubtful("linkage", detail, remedy)]
    return [fine("linkage", detail)]


def make_linkage_key(path: Path) -> tuple[dict[str, Any], str]:
    """Make the key that hospitals share; return where it is, as data and as text.

    Raises
    ------
    ConfigError
        Something of that name is there, or the folder cannot be written.
    IdentityError
        The file system cannot keep a file private.
    """
    create_linkage_key(path)
    lines = (
        f"{path}: linkage key, made; only this user can read it",
        "next: hand it to the data managers of the other hospitals, on a medium that you take back",
        "next: each puts it where only the client's user can read it (mode 0600) and names it in linkage_key",
        "never: give it to the coordinating centre. With it, tags can be tried against every number there is",
    )
    return {"linkage_key": str(path)}, "\n".join(lines)


def _key(config: SiteConfig, settings: RunConfig) -> bytes | None:
    if not settings.find_duplicates or config.linkage_key is None:
        return None
    return read_linkage_key(config.linkage_key)


def _tags(key: bytes, prepared: PreparedCase) -> dict[str, str]:
    """Return a case's tags, and what each stands for."""
    tags = {image_tag(key, digest): modality.value for modality, digest in prepared.voxels.items()}
    number = person_tag(key, prepared.case.linkage_id or "")
    return tags | ({number: NUMBER} if number else {})


def _write(path: Path, found: Sequence[Match]) -> bool:
    """Write the list of patients, and return whether it says something new."""
    if not found:
        path.unlink(missing_ok=True)
        return False
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(Match.model_fields)
    writer.writerows([cell(match.patient), " ".join(match.matched)] for match in found)
    content = table.getvalue().encode("utf-8-sig")
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, mode=PRIVATE) as file:
        file.write(content)
    return True
