"""After the last round: release, one measurement on patients who chose nothing, survival, report."""

from fedglioma.errors import FedGliomaError
from fedglioma.metrics.tables import evaluate
from fedglioma.seeds import derive_seed
from fedglioma.training.learner import Learner
from fedglioma.weights import Layout, pack, unpack
from fedglioma_server.card import write_card
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.heldout import best_round, settle_norms
from fedglioma_server.outcome import write_outcome
from fedglioma_server.privacy import privacy_record
from fedglioma_server.readings import predictions_of
from fedglioma_server.records import RoundRecord, write_json
from fedglioma_server.release import write_model
from fedglioma_server.report import write_report
from fedglioma_server.runfolder import now
from fedglioma_server.spending import spent_of


def conclude(
    coordinator: Coordinator, checkpoints: Checkpoints, rounds: list[RoundRecord], learner: Learner
) -> None:
    """Release the selected round's model, measure it on the report split, write survival and report."""
    folder, settings = coordinator.folder, coordinator.settings
    chosen = best_round(rounds)
    if chosen is None:
        raise FedGliomaError(f"{folder.path}: no round was completed, there is no model to release")
    # The running mean is what was measured, where the run keeps one: of trained rounds.
    averaged = settings.ema > 0 and chosen.round > 0
    arrays = checkpoints.load_average(chosen.round) if averaged else checkpoints.load(chosen.round)
    record = folder.read()
    unpack(arrays, learner.model, learner.loss)
    settle_norms(learner, settings, coordinator.dataset(coordinator.selection), coordinator.device)
    whole = Layout.of(learner.model, learner.loss, whole=True)
    released = pack(learner.model, learner.loss, whole=True)
    write_model(folder.model, record, chosen, released, whole, spent_of(record, rounds))
    held_out = coordinator.on_scale((*coordinator.selection, *coordinator.report))
    splits = ["selection"] * len(coordinator.selection) + ["report"] * len(coordinator.report)
    predictions = predictions_of(learner, settings, held_out, splits, coordinator.device)
    folder.evaluation.mkdir(parents=True, exist_ok=True)
    predictions.write_csv(folder.evaluation / "predictions.csv")
    evaluation = evaluate(
        predictions,
        split="report",
        synthetic=record.synthetic,
        resamples=settings.bootstrap,
        seed=derive_seed(settings.seed, "bootstrap") % 2**32,
    )
    evaluation.write(folder.evaluation / "metrics.json")
    if coordinator.reported:
        write_outcome(folder.survival, held_out, predictions, synthetic=record.synthetic)
    privacy = privacy_record(record, rounds)
    write_json(folder.path / "privacy.json", privacy)
    write_card(folder.model, record, chosen, evaluation, privacy.statement, rounds[-1].round)
    folder.update(status="completed", finished=now())
    if coordinator.reported:
        write_report(folder.path)
