"""A brain extractor of the hospital's own, stood in for by small programs."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fedglioma.data import extractor
from fedglioma.data.extractor import check_command, extract_brain
from fedglioma.data.volume import Volume, VolumeError
from fedglioma.errors import ConfigError

HEAD = Volume(
    np.random.default_rng(0).uniform(0, 9, (12, 10, 8)).astype(np.float32), np.diag([2.0, 3.0, 4.0, 1.0])
)
BRIGHT = """
import sys, nibabel, numpy
image = nibabel.load(sys.argv[1])
assert not bytes(image.header["descrip"]).strip(b"\\0"), "a header tells something"
mask = (image.get_fdata() > 5).astype("uint8")
nibabel.save(nibabel.Nifti1Image(mask, image.affine), sys.argv[2])
"""


def program(tmp_path: Path, text: str) -> str:
    """Return the command of a program of this text."""
    path = tmp_path / "a program.py"
    path.write_text(text)
    return f"{sys.executable} '{path}' {{input}} {{mask}}"


def test_mask_is_what_the_program_wrote(tmp_path: Path) -> None:
    np.testing.assert_array_equal(extract_brain(program(tmp_path, BRIGHT), HEAD), HEAD.array > 5)


def test_program_that_names_its_mask_itself_is_understood(tmp_path: Path) -> None:
    command = program(tmp_path, BRIGHT).replace("{mask}", "{folder}/brain_bet.nii.gz")
    np.testing.assert_array_equal(extract_brain(command, HEAD), HEAD.array > 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; sys.exit('no weights found')", "ended with 1: no weights found"),
        ("pass", "wrote 0 masks"),
        ("import sys; open(sys.argv[2], 'w').write('x')", "not a gzip stream"),
        (BRIGHT.replace("image.affine", "image.affine * 2"), "another grid"),
        (BRIGHT.replace("> 5", "> 50"), "every voxel is 0"),
    ],
)
def test_program_that_fails_is_a_reason(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(VolumeError, match=said) as caught:
        extract_brain(program(tmp_path, text), HEAD)
    assert caught.value.code == "extractor"
    assert str(tmp_path) not in caught.value.reason.replace(str(tmp_path / "a program.py"), "")


def test_program_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractor, "LONGEST_S", 0.5)
    with pytest.raises(VolumeError, match="took longer"):
        extract_brain(program(tmp_path, "import time; time.sleep(60)"), HEAD)


def test_scratch_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    extract_brain(program(tmp_path, BRIGHT), HEAD)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("mri_synthstrip -i head.nii.gz", "needs {input}"),
        ("no-such-program-here {input} {mask}", "no such program"),
        ("sh -c 'unfinished {input} {mask}", "cannot be taken apart"),
        ("  ", "is empty"),
    ],
)
def test_template_that_cannot_work_is_a_setting_to_mend(template: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_command(template)


def test_template_of_a_program_that_is_there_passes() -> None:
    check_command(f"{sys.executable} x.py {{input}} {{folder}}")
