"""Do intensities agree between hospitals? Raw, z-scored and on the federated scale, on synthetic patients.

    python benchmarks/intensity.py [--size 64] [--fit 6] [--unseen 4] [--epsilon 1 8] [--out PAGE]

Four hospitals, each with its scanner, protocol, gain, shading and noise. The scale is fitted on the sums of
some patients' landmarks and measured on others. For each modality and tissue, of healthy brain at least
10 mm away from the tumour: the largest deviation of a hospital's mean from the mean of all, in percent of
what the brain spans from its 1st to its 99th percentile; white and grey matter were not used to fit. IIV
(inter-site intensity variation) is the same relative to the mean itself, where that is not near the scale's
zero. With noise on the sums of every hospital: the same, the worst of all, and how far the scale moved.
SYNTHETIC DATA: the truth of tissue is known, and nothing here is a patient.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from page import fill
from scipy import ndimage

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.anatomy import Label
from fedglioma.data.harmonize import to_ras
from fedglioma.data.normalize import HALF_RANGE, MIDDLE, onto_scale
from fedglioma.data.phantom import render_tissue
from fedglioma.data.prepare import PrepareSettings, prepare_volumes
from fedglioma.data.scanner import acquire
from fedglioma.data.synthetic import Recipe
from fedglioma.data.synthetic_sites import make_sites, site_names
from fedglioma.data.volume import Volume
from fedglioma.landmarks import fit_with_noise, in_points, noise_of_means, noise_of_sums, noisy_sums
from fedglioma.scale import Inner, Landmarks, Scale, fit_scale, inner_landmarks, landmark_sums

HOSPITALS = 4
FAR_MM = 10.0
TISSUES = {
    "white matter": (Label.WHITE,),
    "grey matter": (Label.GREY,),
    "healthy brain": tuple(Label)[Label.CSF :],
}
METHODS = ("raw", "z-score", "federated")
WELL_ABOVE_ZERO = 25.0
NOISE_DRAWS = 5
PATIENTS = (10, 30, 95, 300)
USUAL_HOSPITAL = 90

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """One patient: values of each modality and tissue, and of the brain, by method; and the landmarks."""

    hospital: str
    values: Mapping[tuple[str, Modality, str], Values]
    percentiles: Mapping[Modality, Landmarks]

    def landmarks(self) -> dict[Modality, Inner]:
        """Return the inner landmarks of each modality."""
        return {modality: inner_landmarks(found) for modality, found in self.percentiles.items()}


def measure(recipe: Recipe, number: int) -> Measured:
    """Prepare a patient as a hospital does, and return values where the phantom knows the tissue."""
    site, patient = recipe.site_of(number), recipe.sample(number)
    tissue = render_tissue(patient, recipe.grid)
    affine = recipe.grid.affine()
    volumes = {
        modality: to_ras(
            Volume(
                acquire(tissue, modality, site.scanner, patient.seed, prepared=True).astype(np.float32),
                affine,
            )
        )
        for modality in CHANNELS
    }
    spacing = recipe.grid.spacing[0]
    image, record = prepare_volumes(
        volumes,
        {modality: f"{number}-{modality}" for modality in CHANNELS},
        PrepareSettings(spacing_mm=spacing),
    )
    tumour = ndimage.distance_transform_edt(tissue.mask_voxels() == 0) * spacing
    regions = {
        name: tissue.whole((tissue.voxels(np.isin(tissue.labels, labels)) > 0.99) & (tumour > FAR_MM))
        for name, labels in TISSUES.items()
    } | {"brain": tissue.whole(tissue.brain_voxels())}
    box = tuple(slice(*limits) for limits in record.box)
    values = {}
    for channel, modality in enumerate(CHANNELS):
        for name, region in regions.items():
            inside = to_ras(Volume(region.astype(np.float32), affine)).array[box] > 0
            values["raw", modality, name] = volumes[modality].array[box][inside]
            values["z-score", modality, name] = image[channel][inside].astype(np.float32)
    return Measured(site.name, values, record.percentiles)


def on_scale(measured: Measured, scale: Scale, modality: Modality, region: str) -> Values:
    """Return values on the scale of 0 to 100."""
    scaled = measured.values["z-score", modality, region]
    moved = onto_scale(scaled, measured.percentiles[modality], scale.landmarks[modality])
    return moved * HALF_RANGE + MIDDLE


@dataclass(frozen=True)
class Agreement:
    """How far hospitals' means lie from the mean of all, at most: of the brain's span, and of that mean."""

    of_span: float
    iiv: float | None


def agreement(values: Mapping[str, list[Values]], brain: list[Values], *, ratio: bool) -> Agreement:
    """Return the agreement between hospitals, given each patient's values in one tissue."""
    medians = {name: float(np.median([np.median(one) for one in each])) for name, each in values.items()}
    mean = float(np.mean(list(medians.values())))
    span = float(np.mean([np.subtract(*np.percentile(one, [99, 1])) for one in brain]))
    far = max(abs(value - mean) for value in medians.values())
    return Agreement(far / span, far / mean if ratio and mean > 0 else None)


def compare(
    unseen: list[Measured], scale: Scale, methods: Sequence[str] = METHODS
) -> dict[tuple[str, Modality, str], Agreement]:
    """Return the agreement by method, modality and tissue."""
    found = {}
    for method in methods:
        for modality in CHANNELS:
            for tissue in TISSUES:
                by_hospital: dict[str, list[Values]] = defaultdict(list)
                brain = []
                for one in unseen:
                    if method == "federated":
                        by_hospital[one.hospital].append(on_scale(one, scale, modality, tissue))
                        brain.append(on_scale(one, scale, modality, "brain"))
                    else:
                        by_hospital[one.hospital].append(one.values[method, modality, tissue])
                        brain.append(one.values[method, modality, "brain"])
                middle = np.mean([np.median(one) for each in by_hospital.values() for one in each])
                ratio = method == "raw" or (method == "federated" and middle > WELL_ABOVE_ZERO)
                found[method, modality, tissue] = agreement(by_hospital, brain, ratio=ratio)
    return found


def cohort(asked: argparse.Namespace) -> tuple[list[Measured], list[Measured]]:
    """Return the patients that the scale is fitted on, and the others."""
    recipe = Recipe(
        patients=HOSPITALS * (asked.fit + asked.unseen),
        sites=make_sites(site_names(HOSPITALS)),
        size=asked.size,
        seed=asked.seed,
    )
    measured = [measure(recipe, number) for number in range(recipe.patients)]
    return measured[: HOSPITALS * asked.fit], measured[HOSPITALS * asked.fit :]


def scale_of(fitted: list[Measured]) -> Scale:
    """Return the scale from each hospital's sums."""
    sums = [
        landmark_sums([one.landmarks() for one in fitted if one.hospital == name])
        for name in sorted({one.hospital for one in fitted})
    ]
    return fit_scale(sums)


def table(found: Mapping[tuple[str, Modality, str], Agreement]) -> str:
    """Return the agreements as Markdown."""
    lines = ["| modality, tissue | " + " | ".join(METHODS) + " | IIV raw | IIV federated |", "|---" * 6 + "|"]
    for modality in CHANNELS:
        for tissue in TISSUES:
            cells = [f"{found[method, modality, tissue].of_span:.1%}" for method in METHODS]
            ratios = [found[method, modality, tissue].iiv for method in ("raw", "federated")]
            cells += ["-" if ratio is None else f"{ratio:.1%}" for ratio in ratios]
            lines.append(f"| {modality}, {tissue} | " + " | ".join(cells) + " |")
    worst = [max(found[method, m, t].of_span for m in CHANNELS for t in TISSUES) for method in METHODS]
    lines.append("| **worst** | " + " | ".join(f"**{value:.1%}**" for value in worst) + " | | |")
    return "\n".join(lines)


def noise_alone(epsilons: list[float]) -> str:
    """Return the noise on a hospital's mean landmarks in points, by epsilon and patients, as Markdown."""
    lines = ["| epsilon | " + " | ".join(f"{n} patients" for n in PATIENTS) + " |", "|---" * 5 + "|"]
    for epsilon in epsilons:
        sigma = noise_of_sums(epsilon, len(CHANNELS))
        cells = ["/".join(f"{x:.1f}" for x in in_points(Modality.T1, sigma / n)) for n in PATIENTS]
        lines.append(f"| {epsilon:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_noise(fitted: list[Measured], unseen: list[Measured], epsilons: list[float], copies: int) -> str:
    """Return how far noise moves the scale and what is left of the agreement, as Markdown.

    Each hospital's patients for the fit stand ``copies`` times over: as many patients as hospitals have, in
    the time that a few take.
    """
    hospitals = [
        [one.landmarks() for one in fitted if one.hospital == name] * copies
        for name in sorted({one.hospital for one in fitted})
    ]
    exact = fit_scale([landmark_sums(cases) for cases in hospitals])
    lines = ["| epsilon | scale moved by, in points | worst agreement |", "|---" * 3 + "|"]
    for epsilon in [None, *epsilons]:
        moved, worst = [], []
        for draw in range(NOISE_DRAWS if epsilon else 1):
            told = [
                noisy_sums(cases, 5, epsilon, bytes([draw, place]) * 16) if epsilon else landmark_sums(cases)
                for place, cases in enumerate(hospitals)
            ]
            scale = fit_with_noise(told, [noise_of_means(sums, epsilon) for sums in told])
            pairs = zip(scale.landmarks.values(), exact.landmarks.values(), strict=True)
            moved.append(max(float(np.abs(np.subtract(*pair)).max()) for pair in pairs))
            found = compare(unseen, scale, methods=("federated",))
            worst.append(max(each.of_span for each in found.values()))
        name = f"{epsilon:g}" if epsilon else "no noise"
        lines.append(f"| {name} | {max(moved):.1f} | {max(worst):.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the table where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64, help="edge of the volumes in voxels, of 176 mm")
    parser.add_argument("--fit", type=int, default=6, help="patients a hospital that the scale is fitted on")
    parser.add_argument("--unseen", type=int, default=4, help="other patients a hospital, that are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--epsilon", type=float, nargs="*", default=[0.5, 1.0, 2.0, 8.0], help="noise to look at too"
    )
    parser.add_argument("--out", type=Path, help="page whose table is replaced, docs/intensity.md")
    asked = parser.parse_args()
    started = time.perf_counter()
    fitted, unseen = cohort(asked)
    text = (
        f"SYNTHETIC DATA. {HOSPITALS} hospitals, {asked.size}^3 voxels; scale of {asked.fit} patients a "
        f"hospital, measured on {asked.unseen} others.\n\n{table(compare(unseen, scale_of(fitted)))}"
    )
    copies = -(-USUAL_HOSPITAL // asked.fit)
    noise = (
        f"Standard deviation of the noise on a hospital's mean landmarks (30th/50th/70th percentile of T1), "
        f"in points of 100:\n\n{noise_alone(asked.epsilon)}\n\n"
        f"SYNTHETIC DATA. The hospitals of the table above with noise at each; the patients of the fit stand "
        f"{copies} times over, {copies * asked.fit} a hospital; the worst of {NOISE_DRAWS} draws:\n\n"
        f"{with_noise(fitted, unseen, asked.epsilon, copies)}"
    )
    if asked.out:
        fill(asked.out, "table of benchmarks/intensity.py", text)
        fill(asked.out, "noise of benchmarks/intensity.py", noise)
    print(text, noise, sep="\n\n")
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
