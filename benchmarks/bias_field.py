"""How much of a known bias field is taken away in white matter, of real and of made-up heads.

    python benchmarks/bias_field.py [--data DIR] [--patients 15] [--synthetic] [--out docs/geometry.md]

A smooth field of at most +-20 % or +-40 % is laid over an image inside the brain's box, as ``prepare`` cuts
it, and the image is corrected. What is left of the field is the true field over the estimated one; its
coefficient of variation (CV) in white matter is compared with that of the true field. A real image has a
field of its own, which nobody knows: there, the estimate is taken relative to that of the image as it is,
so that only the known field counts. Beside it the image's own CV in white matter: without it, with the field
over it, and after; and which share of the variance that the field added is gone, where it added visibly.

``--data`` (default: $FEDGLIOMA_REAL_DATA) holds ``glioma/``; white matter is there the brightest of three
classes of T1, 1 voxel inside it and at least 10 mm from the tumour. ``--synthetic`` takes made-up heads, of
which white matter and the image without any field are known.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the name that its own manual uses
from page import fill, parser_of
from scipy import ndimage
from subjects import patients_of, phantoms, read_subject, tumour_of

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.bias import correct_bias
from fedglioma.data.brain import bounding_box
from fedglioma.data.fields import Axes, FloatArray
from fedglioma.data.scanner import shading, signal
from fedglioma.data.volume import Mask

AMPLITUDES = (0.2, 0.4)
GOAL = 0.7
MARGIN_MM = 4.0
FAR_MM = 10.0
SNR = 25.0
VISIBLE = 1.1


@dataclass(frozen=True)
class Head:
    """One patient in the brain's box: images, brain and white matter, each of shape (X, Y, Z)."""

    images: dict[Modality, FloatArray]
    brain: Mask
    white: Mask
    spacing_mm: float

    @property
    def axes(self) -> Axes:
        """Coordinates of the voxels about the middle, in mm."""
        x, y, z = (
            ((np.arange(n) - (n - 1) / 2) * self.spacing_mm).astype(np.float32) for n in self.brain.shape
        )
        return x, y, z


@dataclass(frozen=True)
class Found:
    """One image under one field: CVs in white matter of the field, of what is left of it, of the image."""

    field: float
    left: float
    clean: float
    shaded: float
    after: float
    cpu_s: float

    @property
    def reduction(self) -> float:
        """Which share of the field's CV is gone."""
        return 1 - self.left / self.field

    @property
    def excess_gone(self) -> float:
        """Which share of the variance that the field added to the image is gone; NaN where it was little."""
        if self.shaded < VISIBLE * self.clean:
            return float("nan")
        return 1 - (self.after**2 - self.clean**2) / (self.shaded**2 - self.clean**2)


def variation(values: npt.NDArray[np.floating]) -> float:
    """Return the coefficient of variation."""
    return float(values.std(dtype=np.float64) / values.mean(dtype=np.float64))


def measure(head: Head, modality: Modality, seed: int, *, known_clean: bool) -> dict[float, Found]:
    """Lay fields over an image, correct it each time and return the figures by the field's strength."""
    image, white = head.images[modality], head.white
    clean = image if known_clean else correct_bias(image, head.brain, head.spacing_mm)
    found = {}
    for amplitude in AMPLITUDES:
        # Of one seed for all the fields would be one draw several times over.
        rng = np.random.default_rng([seed, CHANNELS.index(modality)])
        field = shading(rng, head.axes, amplitude)
        started = time.process_time()
        corrected = correct_bias(image * field, head.brain, head.spacing_mm)
        spent = time.process_time() - started
        found[amplitude] = Found(
            field=variation(field[white]),
            left=variation(corrected[white] / clean[white]),
            clean=variation(clean[white]),
            shaded=variation((clean * field)[white]),
            after=variation(corrected[white]),
            cpu_s=spent,
        )
    return found


def real_heads(folder: Path, count: int) -> Iterator[Head]:
    """Yield real patients whose tumour somebody outlined."""
    for patient in patients_of(folder)[:count]:
        subject = read_subject(patient)
        t1 = subject.volumes[Modality.T1]
        spacing = t1.spacing[0]
        brain = np.logical_and.reduce(list(subject.brain.values()))
        box = tuple(slice(*limits) for limits in bounding_box(brain, MARGIN_MM, spacing))
        brain = brain[box]
        far = ndimage.distance_transform_edt(~tumour_of(patient)[box]) * spacing > FAR_MM
        plain = correct_bias(t1.array[box], brain, spacing)
        white = ndimage.binary_erosion(_brightest(plain, brain)) & far
        yield Head({m: volume.array[box] for m, volume in subject.volumes.items()}, brain, white, spacing)


def made_up_heads(count: int) -> Iterator[Head]:
    """Yield made-up brains without any field, with noise."""
    for phantom in phantoms(count, skull=False):
        tissue = phantom.tissue
        rng = np.random.default_rng(phantom.seed)
        brain, white = tissue.brain_voxels(), phantom.white()
        images = {}
        for modality in CHANNELS:
            echo = tissue.voxels(signal(tissue, modality, phantom.scanner))
            noise = float(np.median(echo[white])) / SNR
            images[modality] = np.abs(echo + rng.normal(0, noise, echo.shape).astype(np.float32)) * 1000
        yield Head(images, brain, white, tissue.grid.spacing[0])


def _brightest(image: FloatArray, brain: Mask) -> Mask:
    """Return the brightest of three classes inside the brain (Otsu)."""
    cuts = sitk.OtsuMultipleThresholdsImageFilter()
    cuts.SetNumberOfThresholds(2)
    cuts.Execute(sitk.GetImageFromArray(image[brain][np.newaxis]))
    bright: Mask = brain & (image > cuts.GetThresholds()[1])
    return bright


def _median(values: list[float]) -> float:
    """Return the median of the values that are numbers, NaN where none is."""
    numbers = [value for value in values if not np.isnan(value)]
    return median(numbers) if numbers else float("nan")


def table(found: dict[tuple[Modality, float], list[Found]]) -> str:
    """Return the figures as Markdown, a row per modality and strength of the field."""
    heads = (
        "sequence, field",
        "CV of the field",
        "CV of what is left",
        "gone: median",
        "gone: least",
        f"images with {GOAL:.0%} or more gone",
        "image's CV without it",
        "with the field",
        "after",
        "added variance gone",
        "CPU s",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (modality, amplitude), each in found.items():
        middle = {
            name: _median([getattr(one, name) for one in each])
            for name in ("field", "left", "reduction", "clean", "shaded", "after", "excess_gone", "cpu_s")
        }
        cells = (
            f"{modality}, +-{amplitude:.0%}",
            f"{middle['field']:.3f}",
            f"{middle['left']:.3f}",
            f"{middle['reduction']:.0%}",
            f"{min(one.reduction for one in each):.0%}",
            f"{sum(one.reduction >= GOAL for one in each)} of {len(each)}",
            *(f"{middle[name]:.3f}" for name in ("clean", "shaded", "after")),
            "-" if np.isnan(middle["excess_gone"]) else f"{middle['excess_gone']:.0%}",
            f"{middle['cpu_s']:.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the table where asked."""
    parser = parser_of(__doc__, page="docs/geometry.md")
    parser.add_argument("--patients", type=int, default=15)
    parser.add_argument("--synthetic", action="store_true", help="made-up heads instead of real cases")
    parser.add_argument("--each", action="store_true", help="print every image's figures")
    asked = parser.parse_args()
    if asked.data is None and not asked.synthetic:
        parser.error("give --data, set FEDGLIOMA_REAL_DATA, or use --synthetic")
    heads = (
        made_up_heads(asked.patients)
        if asked.synthetic
        else real_heads(asked.data / "glioma", asked.patients)
    )
    found: dict[tuple[Modality, float], list[Found]] = {
        (modality, amplitude): [] for modality in CHANNELS for amplitude in AMPLITUDES
    }
    count = 0
    for number, head in enumerate(heads):
        count += 1
        for modality in CHANNELS:
            for amplitude, one in measure(head, modality, number, known_clean=asked.synthetic).items():
                found[modality, amplitude].append(one)
                if asked.each:
                    print(number, modality, amplitude, f"{one.reduction:.2f}", one, flush=True)
    what = (
        f"SYNTHETIC DATA: {count} made-up brains"
        if asked.synthetic
        else f"{count} real cases, skull stripped"
    )
    text = f"{what}; medians.\n\n{table(found)}"
    if asked.out:
        which = "synthetic" if asked.synthetic else "real"
        fill(asked.out, f"table of benchmarks/bias_field.py, {which}", text)
    print(text)


if __name__ == "__main__":
    main()
