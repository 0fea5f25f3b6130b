"""The run of the process tests on the inline engine: the same sites and settings, one process, no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedglioma.config.server import load_server_config
from fedglioma.training.learner import layout_of, parameter_count
from fedglioma.weights import FlatArrays
from fedglioma.wire import TRAIN
from fedglioma_client.app import app as client_app
from fedglioma_client.site import SITE_CONFIG_KEY
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.federation import run_federation
from fedglioma_server.inline import InlineGrid
from fedglioma_server.read_evaluation import read_evaluation
from fedglioma_server.records import RunRecord, write_json
from fedglioma_server.runfolder import RunFolder, now
from tests.federation_fixture import assert_same_bits
from tests.federation_processes import ROUNDS, SITES, Federation, Ground


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run came to."""

    folder: RunFolder
    digests: dict[int, str | None]
    weights: FlatArrays


def final_weights(folder: RunFolder, number: int = ROUNDS) -> FlatArrays:
    """Return the weights in a run's checkpoint."""
    return Checkpoints(folder.checkpoints, layout_of(folder.read().settings)).load(number)


def assert_same_run(fed: Federation, expected: Reference) -> None:
    """A finished federation has the undisturbed run's weights after every round, bit for bit."""
    assert fed.run.read().status == "completed"
    assert fed.digests() == expected.digests
    assert_same_bits(final_weights(fed.run), expected.weights)


def run_reference(
    ground: Ground, folder: Path, sites: Sequence[str] = SITES, *, app: ClientApp = client_app
) -> Reference:
    """Run the settings of a federation's files through the inline engine."""
    files = Federation(ground, folder / "files")
    config = load_server_config(files.settings)
    cohort = read_evaluation(config.cohorts, config.run, config.cache)
    run = RunFolder(folder / "run")
    record = RunRecord(
        **{"run_id": "federation", "created": now(), "engine": "inline", "command": "tests"},
        **{"synthetic": True, "versions": {"fedglioma": "0"}, "settings": config.run, "cohorts": ["centre"]},
        **{"data_digest": "0" * 64, "parameters": parameter_count(config.run), "splits": {}},
        payload_bytes=layout_of(config.run).payload_bytes,
    )
    write_json(run.record_file, record)
    nodes: list[dict[str, str | int]] = [
        {SITE_CONFIG_KEY: str(files.kit(site) / f"{site}.yaml")} for site in sites
    ]
    coordinator = Coordinator(
        path=run.path,
        settings=config.run,
        selection=cohort.selection,
        report=cohort.report,
        threads=1,
        sites=len(sites),
    )
    run_federation(InlineGrid(app, nodes, {}), coordinator)
    digests = {line.round: line.weights_digest for line in run.rounds()}
    return Reference(run, digests, final_weights(run, config.run.rounds))


class Silent:
    """The installed app, in which one site fails from a round on."""

    def __init__(self, site: str, first: int) -> None:
        self.site = site
        self.first = first

    def __call__(self, message: Message, context: Context) -> Message:
        settings = str(context.node_config[SITE_CONFIG_KEY])
        if (
            message.metadata.message_type == TRAIN
            and settings.endswith(f"{self.site}.yaml")
            and int(message.metadata.group_id) >= self.first
        ):
            raise RuntimeError("silent")
        return client_app(message, context)


def run_without(ground: Ground, folder: Path, *, site: str, first: int) -> dict[int, str | None]:
    """Return the weights' digests after each round of a run in which a site answers until a round only."""
    return run_reference(ground, folder, app=cast("ClientApp", Silent(site, first))).digests
