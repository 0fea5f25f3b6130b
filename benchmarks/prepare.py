"""What preparing a patient costs, and how fast prepared patients reach the network beside MONAI's loaders.

    python benchmarks/prepare.py [--patients 2] [--samples 24] [--out docs/preparation.md]

Made-up patients at 240 x 240 x 155 mm and 1 mm, four sequences as .nii.gz. Preparing: seconds, CPU seconds
and peak memory of a process that prepares them one after the other, from the files to the cache. Loading:
random 128^3 crops of four sequences, one after the other in one process, per CPU second: ours out of the
cache; MONAI's ``PersistentDataset`` (its cache filled beforehand, crops cut from what it keeps); and
``LoadImaged`` on the .nii.gz files. All three give float32 arrays of shape (4, 128, 128, 128).
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import Dataset, PersistentDataset
from monai.transforms import (
    Compose,
    ConcatItemsd,
    EnsureChannelFirstd,
    LoadImaged,
    RandSpatialCropd,
    SelectItemsd,
)
from page import fill

from fedglioma.case import CHANNELS, Case, Modality
from fedglioma.data.cache import Cache
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.phantom import render_tissue
from fedglioma.data.prepare import PrepareSettings, prepare_cases
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.scanner import acquire
from fedglioma.data.synthetic import FULL_SIZE, Recipe
from fedglioma.data.synthetic_sites import make_sites

CROP = 128
NAMES = [modality.value for modality in CHANNELS]


def write_patients(folder: Path, count: int, *, skull: bool) -> list[Case]:
    """Write made-up patients as a hospital has them, and return their cases."""
    recipe = Recipe(patients=count, sites=make_sites(["zhengzhou"]), size=FULL_SIZE, skull=skull)
    cases = []
    for number in range(count):
        tissue = render_tissue(recipe.sample(number), recipe.grid, skull=skull)
        volumes: dict[Modality, Path] = {}
        for modality in CHANNELS:
            scan = acquire(tissue, modality, recipe.sites[0].scanner, number, prepared=not skull)
            volumes[modality] = folder / f"patient-{number}-{modality}.nii.gz"
            nib.save(nib.Nifti1Image(scan, recipe.grid.affine()), volumes[modality])
        cases.append(Case(patient=f"patient-{number}", site="zhengzhou", volumes=volumes))
    return cases


def prepare(cases: list[Case], cache: Path, answer: Path) -> None:
    """Prepare the cases one after the other and write what it cost; the whole life of a process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    prepare_cases(cases, PrepareSettings(), Cache(cache))
    cost = {
        "seconds": (time.perf_counter() - wall) / len(cases),
        "cpu_s": (time.process_time() - cpu) / len(cases),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "start_mb": before / 1000,
    }
    answer.write_text(json.dumps(cost))


def cost_of_preparing(cases: list[Case], scratch: Path) -> tuple[dict[str, float], Path]:
    """Return what preparing a case costs, measured in a process of its own, and the filled cache."""
    cache, answer = (
        scratch / f"cache-{cases[0].patient}-{len(list(scratch.iterdir()))}",
        scratch / "cost.json",
    )
    child = multiprocessing.get_context("spawn").Process(target=prepare, args=(cases, cache, answer))
    child.start()
    child.join()
    if child.exitcode != 0:
        raise SystemExit("preparing failed")
    found: dict[str, float] = json.loads(answer.read_text())
    return found, cache


def prepared_of(cases: list[Case], cache: Path) -> tuple[PreparedCase, ...]:
    """Return the prepared cases, which the cache has."""
    return prepare_cases(cases, PrepareSettings(), Cache(cache)).cases


def samples_per_cpu_second(sample: Callable[[int], Any], count: int) -> float:
    """Return how many samples a CPU second gives; the first two are not counted."""
    for number in range(2):
        sample(number)
    started = time.process_time()
    for number in range(count):
        sample(number)
    return count / (time.process_time() - started)


def our_loader(cases: tuple[PreparedCase, ...]) -> Callable[[int], Any]:
    """Return our way to a random crop."""
    dataset = CaseDataset(cases, crop=CROP)
    return lambda number: dataset.training_sample(number % len(dataset), number)


def monai_loaders(cases: list[Case], scratch: Path) -> dict[str, Callable[[int], Any]]:
    """Return MONAI's two ways to the same crops."""
    items = [{m.value: str(path) for m, path in case.volumes.items()} for case in cases]
    steps = [
        LoadImaged(NAMES, image_only=True),
        EnsureChannelFirstd(NAMES),
        ConcatItemsd(NAMES, "image"),
        SelectItemsd("image"),
        RandSpatialCropd("image", [CROP] * 3, random_size=False),
    ]
    plain = Dataset(items, Compose(steps))
    kept = PersistentDataset(items, Compose(steps), cache_dir=scratch / "monai")
    for number in range(len(items)):
        kept[number]

    def numbers(data: Any) -> Callable[[int], Any]:
        def sample(number: int) -> Any:
            image = np.asarray(data[number % len(items)]["image"], dtype=np.float32)
            if image.shape != (4, CROP, CROP, CROP):
                raise SystemExit(f"a crop of shape {image.shape}")
            return image

        return sample

    return {"MONAI PersistentDataset": numbers(kept), "MONAI LoadImaged": numbers(plain)}


def report(asked: argparse.Namespace, scratch: Path) -> str:
    """Measure, and return the figures as Markdown."""
    lines = ["| preparing, per patient | seconds | CPU s | peak MB of the process |", "|---|---|---|---|"]
    loading: list[tuple[str, float]] = []
    for skull in (False, True):
        folder = scratch / ("heads" if skull else "brains")
        folder.mkdir()
        cases = write_patients(folder, asked.patients, skull=skull)
        cost, cache = cost_of_preparing(cases, scratch)
        what = "whole heads, brain cut out by shape" if skull else "skull-stripped"
        lines.append(f"| {what} | {cost['seconds']:.0f} | {cost['cpu_s']:.0f} | {cost['peak_mb']:.0f} |")
        if not skull:
            ways = {"ours": our_loader(prepared_of(cases, cache)), **monai_loaders(cases, scratch)}
            loading = [(name, samples_per_cpu_second(way, asked.samples)) for name, way in ways.items()]
    lines += [
        "",
        f"| {CROP}^3 crops of four sequences | samples per CPU second | ours over it |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {rate:.1f} | {loading[0][1] / rate:.1f} |" for name, rate in loading]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the table where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=2)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--out", type=Path, help="page whose table is replaced, docs/preparation.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        text = report(asked, Path(scratch))
    if asked.out:
        fill(asked.out, "table of benchmarks/prepare.py", text)
    print(text)


if __name__ == "__main__":
    main()
