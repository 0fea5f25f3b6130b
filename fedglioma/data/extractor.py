"""A brain extractor of the hospital's own: any program that reads a head and writes the brain's mask.

The command is a template with ``{input}`` and ``{mask}``, for instance::

    mri_synthstrip -i {input} -m {mask}
    hd-bet -i {input} -o {folder}/brain.nii.gz -device cpu --disable_tta --save_bet_mask

Where a program chooses the mask's name itself (as HD-BET: ``brain_bet.nii.gz``) ``{folder}`` names a folder
to write into, and the one file there whose name has ``mask`` or ``bet`` in it is taken. It runs without a
shell, in a folder that is removed afterwards; the head that it reads carries no name and no date.
"""

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np

from fedglioma.data.volume import Mask, Volume, VolumeError, read_volume
from fedglioma.errors import ConfigError

AUTO: Final = "auto"
LONGEST_S: Final = 1800.0
_LAST_WORDS: Final = 200
_SAME_MM: Final = 1e-2


def check_command(template: str) -> None:
    """Raise ``ConfigError`` where a template is not one, or its program is not installed."""
    words = _words(template)
    if "{input}" not in template or not ("{mask}" in template or "{folder}" in template):
        raise ConfigError(
            f"brain_extractor: {template!r}: needs {{input}}, and {{mask}} or {{folder}}; "
            "as in 'mri_synthstrip -i {input} -m {mask}'"
        )
    if shutil.which(words[0]) is None:
        raise ConfigError(f"brain_extractor: {words[0]}: no such program; install it or name its whole path")


def extract_brain(template: str, head: Volume) -> Mask:
    """Return the brain that a program finds in a head, on the head's own voxels.

    Raises
    ------
    VolumeError
        ``extractor``: the program failed, took too long, or wrote no mask on the head's grid.
    """
    with tempfile.TemporaryDirectory(prefix="fedglioma-") as scratch:
        folder = Path(scratch)
        given, mask = folder / "head.nii.gz", folder / "out" / "mask.nii.gz"
        mask.parent.mkdir()
        nib.save(nib.Nifti1Image(head.array, head.affine), given)
        places = {"{input}": str(given), "{mask}": str(mask), "{folder}": str(mask.parent)}
        _run([_filled(word, places) for word in _words(template)], folder)
        return _mask_on(head, _written(mask))


def _words(template: str) -> list[str]:
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise ConfigError(f"brain_extractor: {template!r}: cannot be taken apart ({error})") from None
    if not words:
        raise ConfigError("brain_extractor: is empty; write auto, or a command")
    return words


def _filled(word: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        word = word.replace(name, place)
    return word


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - the hospital's own setting names the program
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LONGEST_S,
            check=False,
        )
    except OSError as error:
        raise VolumeError("extractor", f"the brain extractor cannot be started ({error.strerror})") from None
    except subprocess.TimeoutExpired:
        minutes = LONGEST_S / 60
        raise VolumeError(
            "extractor", f"the brain extractor took longer than {minutes:.0f} minutes"
        ) from None
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").replace(str(folder), "").split())[-_LAST_WORDS:]
        raise VolumeError("extractor", f"the brain extractor ended with {done.returncode}: {said}")


def _written(mask: Path) -> Path:
    if mask.exists():
        return mask
    found = [path for path in mask.parent.glob("*.nii*") if "mask" in path.name or "bet" in path.name]
    if len(found) != 1:
        raise VolumeError("extractor", f"the brain extractor wrote {len(found)} masks, one was expected")
    return found[0]


def _mask_on(head: Volume, path: Path) -> Mask:
    try:
        found = read_volume(path)
    except VolumeError as error:
        raise VolumeError("extractor", f"the brain extractor's mask: {error.reason}") from None
    if found.array.shape != head.array.shape or np.abs(found.affine - head.affine).max() > _SAME_MM:
        raise VolumeError("extractor", "the brain extractor's mask lies on another grid than its input")
    mask: Mask = found.array > 0
    return mask
