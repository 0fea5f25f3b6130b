"""SGPNet over hospitals of which one has no outlines and one no IDH status."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray

from fedglioma.config.run import RunConfig
from fedglioma.config.site import SiteConfig
from fedglioma.data.cohort import read_cohort
from fedglioma.data.folds import Division
from fedglioma.data.plan import SimulationPlan
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.split import Split
from fedglioma.metrics.tables import Evaluation
from fedglioma.training.learner import layout_of
from fedglioma.weights import FlatArrays, from_record
from fedglioma.wire import TRAIN, StatisticsReply, weights_of
from fedglioma_server import simulate
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.gather import Gathering, Hospital
from fedglioma_server.records import RoundRecord, read_json
from fedglioma_server.runfolder import RunFolder
from tests.cli_fixture import call
from tests.federation_fixture import run

NO_MASKS, NO_IDH, BOTH = "henan", "ningxia", "zhengzhou"
SITES = (NO_MASKS, NO_IDH, BOTH)
LIMITS = {NO_MASKS: 1, NO_IDH: 1, BOTH: 9}
SETTINGS = RunConfig.model_validate(
    {
        "model": "sgpnet",
        "width": 2,
        "crop": 32,
        "spacing_mm": 5.5,
        "rounds": 2,
        "lr": 0.01,
        "payload": "float32",
        "bootstrap": 100,
    }
)


class Run(NamedTuple):
    """A finished federation, and everything that travelled."""

    plan: SimulationPlan
    folder: RunFolder
    messages: list[Message]

    @property
    def rounds(self) -> list[RoundRecord]:
        return self.folder.rounds()

    def global_weights(self, number: int) -> FlatArrays:
        return Checkpoints(self.folder.checkpoints, layout_of(SETTINGS)).load(number)

    def trained(self, number: int) -> dict[str, FlatArrays]:
        """Return each site's weights as it sent them in a round."""
        found = {}
        for message in self.messages:
            if message.metadata.message_type == TRAIN and message.metadata.reply_to_message_id:
                body = json.loads(message.content["fedglioma"]["json"])
                if body["round"] == number:
                    found[body["site"]] = weights_of(message.content)
        return found

    def statistics(self) -> dict[str, StatisticsReply]:
        """Return what each site said of itself."""
        bodies = [json.loads(m.content["fedglioma"]["json"]) for m in self.messages if m.has_content()]
        told = [b for b in bodies if b.get("kind") == "statistics"]
        return {body["site"]: StatisticsReply.model_validate(body) for body in told}

    @property
    def cases(self) -> dict[str, tuple[PreparedCase, ...]]:
        return {site.settings.site: site.cases for site in self.plan.sites}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("sgpnet")
    words = ("--patients", "24", "--size", "16", "--by-site", "--sites", ",".join(SITES))
    assert call("synthesize", place / "data", *words).exit_code == 0
    for mask in (place / "data" / NO_MASKS).rglob("*_dseg.nii.gz"):
        mask.unlink()
    forget_idh(place / "data" / NO_IDH / "participants.tsv")
    hospitals = tuple(
        Hospital(
            SiteConfig(site=site, data=place / "data" / site, threads=1, small_cell_limit=LIMITS[site]),
            tuple(read_cohort(place / "data" / site).cases),
        )
        for site in SITES
    )
    simulation = simulate.Simulation(
        settings=SETTINGS,
        gathering=Gathering(hospitals, (), (), True, ("made up",)),
        folder=RunFolder(place / "run"),
        cache=place / "cache",
        threads=1,
        division=divided(hospitals),
    )
    plan = simulate.write_plan(simulation, simulate.prepare(simulation))
    messages: list[Message] = []
    folder = run(plan.model_copy(), tap=messages.append)
    return Run(plan, folder, messages)


def forget_idh(table: Path) -> None:
    """Make the IDH status of all patients of a cohort unknown."""
    with table.open(encoding="utf-8") as file:
        reader = csv.DictReader(file, delimiter="\t")
        rows = [row | {"idh": "n/a"} for row in reader]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def divided(hospitals: tuple[Hospital, ...]) -> Division:
    """Hold out one patient of each IDH status that a hospital knows, for either split."""
    split: dict[str, Split] = {}
    for hospital in hospitals:
        by_status: dict[int, list[str]] = {}
        for case in hospital.cases:
            by_status.setdefault(case.genotype.idh, []).append(case.patient)
        for patients in by_status.values():
            for place, patient in enumerate(patients):
                split[patient] = (Split.SELECTION, Split.REPORT)[place] if place < 2 else Split.TRAIN
    return Division(name="by hand", split=split)


def test_each_site_tells_what_it_has_and_hides_small_counts(finished: Run) -> None:
    told = finished.statistics()
    cases = {site: len(found) for site, found in finished.cases.items()}
    assert all(3 <= number < LIMITS[BOTH] for number in cases.values())
    assert told[NO_MASKS].masks == 0
    assert told[NO_IDH].masks == cases[NO_IDH]
    assert told[BOTH].masks is None
    assert told[NO_IDH].labels["idh"] == (0, 0, cases[NO_IDH])
    assert [finished.folder.read().sites[site].masks for site in SITES] == [0, cases[NO_IDH], None]


def test_blocks_are_weighted_by_the_cases_that_can_teach_them(finished: Run) -> None:
    cases = {site: len(found) for site, found in finished.cases.items()}
    for line in finished.rounds[1:]:
        assert {name: site.status for name, site in line.sites.items()} == dict.fromkeys(SITES, "ok")
        weights = {site: line.sites[site].weights for site in SITES}
        assert {site: weights[site]["segmentation"] for site in SITES} == {
            NO_MASKS: 0.0,
            NO_IDH: cases[NO_IDH],
            BOTH: LIMITS[BOTH] / 2,
        }
        assert {site: weights[site]["idh"] for site in SITES} == {
            NO_MASKS: cases[NO_MASKS],
            NO_IDH: 0.0,
            BOTH: LIMITS[BOTH],  # two hidden cells, half the limit each
        }
        assert {site: weights[site]["trunk"] for site in SITES} == {**cases, BOTH: LIMITS[BOTH]}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("group", "sites"),
    [("segmentation", (NO_IDH, BOTH)), ("idh", (NO_MASKS, BOTH)), ("trunk", SITES)],
)
def test_site_that_cannot_teach_a_block_does_not_move_it(
    finished: Run, number: int, group: str, sites: tuple[str, ...]
) -> None:
    sent = from_sent(finished, number)
    trained = finished.trained(number)
    assert set(trained) == set(SITES)
    for site in SITES:
        moved = trained[site][group].tobytes() != sent[group].tobytes()
        assert moved == (site in sites), site
    weights = [finished.rounds[number].sites[site].weights[group] for site in sites]
    mean = np.average([trained[site][group].astype(np.float64) for site in sites], axis=0, weights=weights)
    found = finished.global_weights(number) if number == 2 else from_sent(finished, 2)
    np.testing.assert_allclose(found[group], mean, rtol=1e-6, atol=1e-7)


def from_sent(finished: Run, number: int) -> FlatArrays:
    """Return the global weights as the sites were sent them in a round."""
    for message in finished.messages:
        asks = message.metadata.message_type == TRAIN and not message.metadata.reply_to_message_id
        if asks and json.loads(message.content["fedglioma"]["json"])["round"] == number:
            return weights_of(message.content)
    raise AssertionError(number)


def test_held_out_patients_have_a_loss_after_every_round_and_no_figure_of_few(finished: Run) -> None:
    """Of the five who choose fewer are known, and fewer are outlined."""
    assert [line.round for line in finished.rounds] == [0, 1, 2]
    for line in finished.rounds:
        held = line.heldout
        assert set(held.loss_by_task) == {"idh", "segmentation"}
        assert held.cases == 5
        assert set(held.loss_by_task.values()) == {None}
        assert held.loss is not None
        assert held.dice is None
        assert held.auc == {"idh": None}
    assert finished.rounds[2].heldout.loss != finished.rounds[0].heldout.loss


def test_losses_of_too_few_cases_stay_at_their_site(finished: Run) -> None:
    for line in finished.rounds[1:]:
        assert line.sites[BOTH].loss is None
        assert line.sites[BOTH].loss_by_task == {}
        told = line.sites[NO_MASKS].loss_by_task  # its limit is 1
        assert told["segmentation"] is None  # type: ignore[index]
        assert told["idh"] is not None  # type: ignore[index]


def test_evaluation_and_report_tell_of_the_outline(finished: Run) -> None:
    evaluation = read_json(finished.folder.evaluation / "metrics.json", Evaluation)
    assert evaluation.segmentation is not None
    outlined = sum(case.mask is not None for case in finished.plan.report)
    found = evaluation.segmentation
    assert 0 < found.n - found.no_dice == outlined < len(finished.plan.report)
    assert set(evaluation.overall) == {"idh"}
    html = finished.folder.report.read_text(encoding="utf-8")
    for words in (
        "Outline of the tumour",
        "Median Dice",
        "SGPNet, a network that reads IDH status and outlines",
    ):
        assert words in html, words
    assert "reads IDH, ATRX" not in html


def test_no_message_holds_a_voxel_of_an_outline(finished: Run) -> None:
    sizes = layout_of(SETTINGS).sizes
    sought = [piece for case in every_case(finished.plan) for piece in pieces_of(case)]
    assert len(sought) > 100
    for message in finished.messages:
        assert set(message.content) <= {"fedglioma", "weights"}
        for record in message.content.values():
            if isinstance(record, ArrayRecord):
                assert {group: array.size for group, array in from_record(record).items()} == sizes
        content = b"".join(parts_of(message))
        assert not any(piece in content for piece in sought)


def every_case(plan: SimulationPlan) -> Iterator[PreparedCase]:
    yield from (case for site in plan.sites for case in site.cases)
    yield from (*plan.selection, *plan.report)


def pieces_of(case: PreparedCase) -> Iterator[bytes]:
    """Yield the middle of an outline as it could be written: one number a voxel, or one bit."""
    if case.mask is None:
        return
    whole: NDArray[Any] = np.load(case.mask)
    plane = whole[int(np.argmax((whole > 0).sum(axis=(1, 2))))]
    for values in (plane, plane > 0):
        for dtype in (np.uint8, np.int16, np.float16, np.float32):
            yield values.astype(dtype).tobytes()
    yield np.packbits(plane > 0).tobytes()


def parts_of(message: Message) -> Iterator[bytes]:
    for record in message.content.values():
        if isinstance(record, ArrayRecord):
            yield from (array.data for array in record.values())
        else:
            yield json.dumps(dict(record), default=str).encode()
