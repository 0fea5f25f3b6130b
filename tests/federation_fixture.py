"""A federation small enough for unit tests: prepared cases made in a temporary folder, no images read.

The genotype is written into the images as a bright block, so that a network can learn it.
"""

from pathlib import Path

import numpy as np

from fedglioma.case import CHANNELS, Case, Genotype, Outcome
from fedglioma.config.run import RunConfig
from fedglioma.config.site import SiteConfig
from fedglioma.data.cache import Cache, Record
from fedglioma.data.normalize import brain_percentiles
from fedglioma.data.plan import PLAN_KEY, SimulationPlan, SitePlan
from fedglioma.data.prepared import PreparedCase
from fedglioma.training.learner import layout_of, parameter_count
from fedglioma.weights import GROUPS
from fedglioma_client.app import app as client_app
from fedglioma_server.app import make_app
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.inline import run_inline
from fedglioma_server.records import RunRecord, write_json, write_text
from fedglioma_server.runfolder import RunFolder, now
from fedglioma_server.simulate import plan_file

EDGE = 16
TINY = RunConfig(
    width=1,
    crop=EDGE,
    spacing_mm=5.5,
    rounds=2,
    batch_size=2,
    lr=1e-3,
    bootstrap=100,
    payload="float32",  # what a test reads from a message is then the weights themselves
)
SITES = {"ningxia": 4, "zhengzhou": 3, "henan": 2}
MARK = "PATIENTMARK"
"""In every patient's id, so that a test can look for it in what leaves a site."""


def prepared_case(folder: Path, site: str, number: int, *, genotype: Genotype | None = None) -> PreparedCase:
    """Return a case whose array lies in ``folder``."""
    rng = np.random.default_rng([sum(map(ord, site)), number])
    labels = genotype or Genotype(idh=number % 2, atrx=-1 if number % 3 == 2 else number % 2, codel_1p19q=0)
    image = rng.normal(0, 1, (len(CHANNELS), EDGE, EDGE, EDGE)).astype(np.float16)
    if labels.idh == 1:
        image[:, 4:10, 4:10, 4:10] += np.float16(3)
    present = (True, True, True, number % 2 == 0)
    image[~np.array(present)] = 0
    name = f"{MARK}-{site}-{number}"
    case = Case(
        patient=name,
        site=site,
        volumes={
            m: folder / name / f"{m.value}.nii.gz"
            for m, there in zip(CHANNELS, present, strict=True)
            if there
        },
        genotype=labels,
        grade=2 + number % 3,
        age=41.0 + number,
        outcome=Outcome(os_days=100.0 * (number + 1), os_event=number % 2),
    )
    record = Record(
        present=present,
        spacing_mm=TINY.spacing_mm,
        affine=tuple(tuple(row) for row in np.eye(4).tolist()),
        box=((0, EDGE),) * 3,
        inputs={modality: f"{name}-{modality}" for modality in case.present},
        settings={},
        percentiles={
            modality: brain_percentiles(channel.astype(np.float32))
            for modality, channel in zip(CHANNELS, image, strict=True)
            if channel.any()
        },
        reference=case.present[0],
        movements={},
    )
    return Cache(folder).put(f"{site}-{number}", image, record).as_case(case)


def make_plan(
    folder: Path,
    settings: RunConfig = TINY,
    *,
    sites: dict[str, int] | None = None,
    limit: int = 1,
    held_out: int = 6,
) -> SimulationPlan:
    """Write a plan and its run record into ``folder/run`` and return the plan."""
    data = folder / "data"
    run = RunFolder(folder / "run")
    chosen = SITES if sites is None else sites
    plans = tuple(
        SitePlan(
            settings=SiteConfig(site=name, data=data, threads=1, small_cell_limit=limit),
            cases=tuple(prepared_case(data, name, number) for number in range(count)),
        )
        for name, count in chosen.items()
    )
    others = [prepared_case(data, "held", number) for number in range(held_out)]
    plan = SimulationPlan(
        run_folder=run.path,
        settings=settings,
        sites=plans,
        selection=tuple(others[: held_out // 2]),
        report=tuple(others[held_out // 2 :]),
        threads=1,
    )
    record = RunRecord(
        run_id="tiny",
        created=now(),
        engine="inline",
        command="tests",
        synthetic=True,
        versions={"fedglioma": "0"},
        settings=settings,
        cohorts=["tiny"],
        data_digest="0" * 64,
        parameters=parameter_count(settings),
        payload_bytes=layout_of(settings).payload_bytes,
        splits={},
    )
    if not run.exists():
        write_json(run.record_file, record)
    write_text(plan_file(run), plan.model_dump_json())
    return plan


class Meddler:
    """The client app with a hand on its replies."""

    def __init__(self, meddle):
        self.meddle = meddle

    def __call__(self, message, context):
        return self.meddle(message, client_app(message, context))


def run(plan, *, meddle=None, tap=None, finished=lambda _line: None):
    folder = RunFolder(plan.run_folder)
    run_inline(
        make_app(finished),
        client_app if meddle is None else Meddler(meddle),
        sites=len(plan.sites),
        run_config={PLAN_KEY: str(plan_file(folder))},
        tap=tap,
    )
    return folder


def final_weights(plan, number=None):
    checkpoints = Checkpoints(RunFolder(plan.run_folder).checkpoints, layout_of(plan.settings))
    return checkpoints.load(plan.settings.rounds if number is None else number)


def assert_same_bits(one, other):
    for group in GROUPS:
        assert one[group].tobytes() == other[group].tobytes(), group
