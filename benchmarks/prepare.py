"""What preparing a patient costs, and how fast prepared patients reach the network beside MONAI's loaders.

    python benchmarks/prepare.py [--data DIR] [--patients 2] [--samples 12] [--out docs/preparation.md]

Preparing: seconds, CPU seconds and peak memory of a process that prepares patients of four sequences one
after the other, from .nii.gz files to the cache. Made-up patients of 240 x 240 x 155 voxels of 1 mm, skull
stripped and on one grid; made-up whole heads that moved between the sequences; and from ``--data`` (default:
$FEDGLIOMA_REAL_DATA, left out where there is none) real patients of ``glioma/`` and ``native_grid/``.

Loading: random 128^3 crops of four sequences, one after the other in one process, per CPU second: ours out
of the cache; MONAI's ``PersistentDataset`` (its cache filled beforehand, with the joined image alone, crops
cut from what it keeps), also with MONAI's own cut to the brain; and ``LoadImaged`` on the .nii.gz files. All
give float32 arrays of shape (4, 128, 128, 128). The ways take turns, and the median counts.
"""

import argparse
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np
from motion import Scan, draw_movement, taken
from page import fill, parser_of
from subjects import Phantom, file_of, patients_of, phantoms

from fedglioma.case import CHANNELS, Case, Modality
from fedglioma.data.cache import Cache
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.prepare import PrepareSettings, prepare_cases
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.volume import Volume

CROP = 128
ROUNDS = 5
NAMES = [modality.value for modality in CHANNELS]


@dataclass(frozen=True)
class Cost:
    """What a patient costs, and the memory of the process before the first one and at its peak."""

    seconds: float
    cpu_s: float
    start_mb: float
    peak_mb: float


def write_patients(folder: Path, count: int, *, skull: bool) -> list[Case]:
    """Write made-up patients as a hospital has them, and return their cases."""
    folder.mkdir()
    cases = []
    for number, phantom in enumerate(phantoms(count, skull=skull)):
        volumes: dict[Modality, Path] = {}
        for modality, volume in sequences(phantom, number, skull=skull):
            volumes[modality] = folder / f"patient-{number}-{modality}.nii.gz"
            levels = np.rint(volume.array).astype(np.int16)
            nib.save(nib.Nifti1Image(levels, volume.affine), volumes[modality])
        cases.append(Case(patient=f"patient-{number}", site="made-up", volumes=volumes))
    return cases


def sequences(phantom: Phantom, number: int, *, skull: bool) -> Iterator[tuple[Modality, Volume]]:
    """Yield a made-up patient's scans; a whole head lies elsewhere in each."""
    subject = phantom.subject(skull=skull)
    rng = np.random.default_rng(number)
    for modality, volume in subject.volumes.items():
        scan = Scan(volume, subject.brain[modality])
        yield modality, taken(scan, draw_movement(rng, scan.centre), rng) if skull else volume


def real_patients(folder: Path, count: int) -> list[Case]:
    """Return the cases of real patients."""
    return [
        Case(patient=one.name, site="real", volumes={m: file_of(one, m) for m in CHANNELS})
        for one in patients_of(folder)[:count]
    ]


def prepare(cases: list[Case], cache: Path, answer: Path) -> None:
    """Prepare the cases one after the other and write what it cost; the whole life of a process."""
    before = resident_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    exclusions = prepare_cases(cases, PrepareSettings(), Cache(cache)).exclusions
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if exclusions:
        raise SystemExit(f"left out: {exclusions[0].code}")
    answer.write_text(json.dumps(asdict(Cost(wall / len(cases), cpu / len(cases), before, resident_mb()))))


def resident_mb() -> float:
    """Return the largest memory that this program ever had, in MB of 10^6 bytes."""
    # Not getrusage: what it says was inherited from the program that started this one.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit("the memory of a process cannot be read on this system")
    return int(found[1]) * 1024 / 1e6


def cost_of_preparing(cases: list[Case], cache: Path) -> Cost:
    """Return what preparing a case costs, measured in a process of its own that fills the cache."""
    answer = cache.with_suffix(".json")
    child = multiprocessing.get_context("spawn").Process(target=prepare, args=(cases, cache, answer))
    child.start()
    child.join()
    if child.exitcode != 0:
        raise SystemExit("preparing failed")
    return Cost(**json.loads(answer.read_text()))


def prepared_of(cases: list[Case], cache: Path) -> tuple[PreparedCase, ...]:
    """Return the prepared cases, which the cache has."""
    return prepare_cases(cases, PrepareSettings(), Cache(cache)).cases


def samples_per_cpu_second(ways: dict[str, Callable[[int], Any]], count: int) -> dict[str, float]:
    """Return how many samples a CPU second gives, by way; what the first two cost is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for sample in ways.values():
        sample(0)
        sample(1)
    for _ in range(ROUNDS):
        for name, sample in ways.items():
            started = time.process_time()
            for number in range(count):
                sample(number)
            rates[name].append(count / (time.process_time() - started))
    return {name: median(each) for name, each in rates.items()}


def our_loader(cases: tuple[PreparedCase, ...]) -> Callable[[int], Any]:
    """Return our way to a random crop."""
    dataset = CaseDataset(cases, crop=CROP)
    return lambda number: dataset.training_sample(number % len(dataset), number)


def monai_loaders(cases: list[Case], scratch: Path) -> dict[str, Callable[[int], Any]]:
    """Return MONAI's ways to the same crops."""
    # Here, because the process that prepares imports this file, and its memory is measured.
    from monai.data import Dataset, PersistentDataset
    from monai.transforms import (
        Compose,
        ConcatItemsd,
        CropForegroundd,
        EnsureChannelFirstd,
        Lambdad,
        LoadImaged,
        RandSpatialCropd,
        SelectItemsd,
        SpatialPadd,
    )

    items = [{m.value: str(path) for m, path in case.volumes.items()} for case in cases]
    read = [
        LoadImaged(NAMES, image_only=True),
        EnsureChannelFirstd(NAMES),
        ConcatItemsd(NAMES, "image"),
        SelectItemsd("image"),
    ]
    crop = RandSpatialCropd("image", [CROP] * 3, random_size=False)
    brain = CropForegroundd("image", "image", margin=4, allow_smaller=True)
    # What was cut out is a view, and a view is kept with all that it was cut from.
    alone = Lambdad("image", lambda image: image.clone())
    fit = SpatialPadd("image", [CROP] * 3)
    plain = Dataset(items, Compose([*read, crop]))
    kept = PersistentDataset(items, Compose([*read, crop]), cache_dir=scratch / "monai")
    cut = PersistentDataset(
        items, Compose([*read, brain, alone, fit, crop]), cache_dir=scratch / "monai-brain"
    )
    for number in range(len(items)):
        kept[number], cut[number]

    def numbers(data: Any) -> Callable[[int], Any]:
        def sample(number: int) -> Any:
            image = np.asarray(data[number % len(items)]["image"], dtype=np.float32)
            if image.shape != (4, CROP, CROP, CROP):
                raise SystemExit(f"a crop of shape {image.shape}")
            return image

        return sample

    return {
        "MONAI LoadImaged": numbers(plain),
        "MONAI PersistentDataset": numbers(kept),
        "MONAI PersistentDataset, cut to the brain": numbers(cut),
    }


def patients(asked: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, list[Case]]]:
    """Yield what is prepared, and its cases; the first is what the loaders read, too."""
    count = asked.patients
    yield "made-up, stripped, on one grid", write_patients(scratch / "brains", count, skull=False)
    yield (
        "made-up, whole heads, each sequence elsewhere: registered, brain cut out by shape",
        write_patients(scratch / "heads", count, skull=True),
    )
    if asked.data is not None:
        yield "real, stripped, on one grid of 1 mm", real_patients(asked.data / "glioma", count)
        yield (
            "real, stripped, on the scanners' voxels: registered",
            real_patients(asked.data / "native_grid", count),
        )


def report(asked: argparse.Namespace, scratch: Path) -> str:
    """Measure, and return the figures as Markdown."""
    lines = [
        "| preparing, per patient | seconds | CPU s | peak MB of the process | before the first patient |",
        "|---|---|---|---|---|",
    ]
    rates: dict[str, float] = {}
    for number, (what, cases) in enumerate(patients(asked, scratch)):
        cache = scratch / f"cache-{number}"
        cost = cost_of_preparing(cases, cache)
        lines.append(
            f"| {what} | {cost.seconds:.0f} | {cost.cpu_s:.0f} | {cost.peak_mb:.0f} | {cost.start_mb:.0f} |"
        )
        if not rates:
            ways = {"ours": our_loader(prepared_of(cases, cache)), **monai_loaders(cases, scratch)}
            rates = samples_per_cpu_second(ways, asked.samples)
    lines += [
        "",
        f"| {CROP}^3 crops of four sequences | samples per CPU second | ours over it |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {rate:.1f} | {rates['ours'] / rate:.1f} |" for name, rate in rates.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the table where asked."""
    parser = parser_of(__doc__, page="docs/preparation.md")
    parser.add_argument("--patients", type=int, default=2, help="of each kind")
    parser.add_argument("--samples", type=int, default=12, help=f"of each way, {ROUNDS} times over")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        text = report(asked, Path(scratch))
    if asked.out:
        fill(asked.out, "table of benchmarks/prepare.py", text)
    print(text)


if __name__ == "__main__":
    main()
