"""Our side without training: the real server over real weights, and sites that answer with them plus one.

    python benchmarks/adding.py FOLDER --sites 2 --width 11 --rounds 4

runs it with the inline engine and writes the rounds' stamps into FOLDER. Messages, checks of the replies,
spool, aggregation, checkpoints and records are those of every run; only the training is replaced. Nothing is
held out, and the release at the end is left out. All numbers of the last checkpoint are checked.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

from fedglioma.console import prepare_environment

prepare_environment()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from flwr.app import Context  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402

from fedglioma.case import GENES, Modality  # noqa: E402
from fedglioma.config.run import RunConfig  # noqa: E402
from fedglioma.config.site import SiteConfig  # noqa: E402
from fedglioma.data.plan import PLAN_KEY, SimulationPlan, SitePlan  # noqa: E402
from fedglioma.payload import update  # noqa: E402
from fedglioma.training.learner import initial_learner, layout_of, parameter_count  # noqa: E402
from fedglioma.weights import GROUPS, FlatArrays, Packed, digest_of, pack  # noqa: E402
from fedglioma.wire import StatisticsReply, StatisticsRequest, TrainReply, TrainRequest  # noqa: E402
from fedglioma_client import app as client  # noqa: E402
from fedglioma_client.site import Site, resolve_config  # noqa: E402
from fedglioma_server import federation  # noqa: E402
from fedglioma_server.app import make_app  # noqa: E402
from fedglioma_server.checkpoint import Checkpoints  # noqa: E402
from fedglioma_server.inline import run_inline  # noqa: E402
from fedglioma_server.records import RoundRecord, RunRecord, write_json, write_text  # noqa: E402
from fedglioma_server.runfolder import RunFolder, now  # noqa: E402
from fedglioma_server.simulate import plan_file  # noqa: E402

STAMPS = "stamps.json"
CROP = 16
COUNTS = (4, 4, 0)
"""Cases that a site claims: without, with, and of unknown marker."""


def terms(width: int, rounds: int) -> RunConfig:
    """Return the settings of a run; the network's width decides the payload."""
    return RunConfig(width=width, crop=CROP, rounds=rounds, selection=0, report=0, payload="float32")


def add_instead_of_training() -> ClientApp:
    """Return the hospitals' app with its patients replaced by none, and its training by a plus one."""
    for name, stand_in in {
        "resolve_site": without_patients,
        "statistics_round": introduce,
        "train_round": add_one,
    }.items():
        setattr(client, name, stand_in)
    return client.app


def without_patients(context: Context, _settings: RunConfig) -> Site:
    """Return the site that a node stands for, without reading its data."""
    return Site(resolve_config(context), ())


def introduce(request: StatisticsRequest, site: Site) -> StatisticsReply:
    """Return what a site says of itself in the statistics round."""
    return StatisticsReply(
        site=site.config.site,
        version=version("fedglioma"),
        layout=layout_of(request.settings).digest,
        cases=sum(COUNTS),
        labels=dict.fromkeys(GENES, COUNTS),
        modalities={modality.value: sum(COUNTS) for modality in Modality},
        weights=dict.fromkeys(GROUPS, float(sum(COUNTS))),
        small_cell_limit=1,
    )


def add_one(request: TrainRequest, weights: FlatArrays, site: Site) -> tuple[TrainReply, Packed]:
    """Return what a site answers in a training round: the received weights plus one."""
    arrays = {group: array + np.float32(1) for group, array in weights.items()}
    packed = update(request.settings.payload, arrays, weights)
    reply = TrainReply(
        site=site.config.site,
        round=request.round,
        layout=request.layout,
        payload=request.settings.payload,
        digest=digest_of(packed),
        weights=dict.fromkeys(GROUPS, float(sum(COUNTS))),
        steps=1,
        loss=None,
        loss_by_task=dict.fromkeys(GENES),
        seconds={},
    )
    return reply, packed


def write_plan(folder: Path, settings: RunConfig, sites: int) -> SimulationPlan:
    """Write the plan and the record of a run without patients, and return the plan."""
    run = RunFolder(folder / "run")
    plan = SimulationPlan(
        run_folder=run.path,
        settings=settings,
        sites=tuple(
            SitePlan(settings=SiteConfig(site=f"site-{number}", data=folder), cases=())
            for number in range(1, sites + 1)
        ),
        selection=(),
        report=(),
        threads=torch.get_num_threads(),
    )
    record = RunRecord(
        run_id="benchmark",
        created=now(),
        engine="inline",
        command="benchmarks/adding.py",
        synthetic=True,
        versions={"fedglioma": version("fedglioma")},
        settings=settings,
        cohorts=[],
        data_digest="0" * 64,
        parameters=parameter_count(settings),
        payload_bytes=layout_of(settings).payload_bytes,
        splits={},
    )
    write_json(run.record_file, record)
    write_text(plan_file(run), plan.model_dump_json())
    return plan


def require_sums(folder: RunFolder, settings: RunConfig) -> None:
    """Raise unless the last checkpoint is the initial network plus one per round, to float32's rounding."""
    learner = initial_learner(settings, folder.read().class_counts)
    first = pack(learner.model, learner.loss)
    last = Checkpoints(folder.checkpoints, layout_of(settings)).load(settings.rounds)
    for group in GROUPS:
        if not np.allclose(last[group] - first[group], settings.rounds, rtol=0, atol=1e-4):
            raise RuntimeError(f"{group}: the weights are not the initial ones plus one per round")


def main() -> None:
    """Run the inline federation and write its stamps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    asked = parser.parse_args()
    settings = terms(asked.width, asked.rounds)
    plan = write_plan(asked.folder, settings, asked.sites)
    folder = RunFolder(plan.run_folder)
    stamps: list[float] = []

    def finished(_line: RoundRecord) -> None:
        stamps.append(time.time())

    federation.conclude = lambda *_args: None
    run_inline(
        make_app(finished),
        add_instead_of_training(),
        sites=asked.sites,
        run_config={PLAN_KEY: str(plan_file(folder))},
    )
    require_sums(folder, settings)
    (asked.folder / STAMPS).write_text(json.dumps(stamps), encoding="utf-8")


if __name__ == "__main__":
    main()
