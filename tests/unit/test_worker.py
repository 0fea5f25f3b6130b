"""What answers at a hospital: the installed app, this version's bundle, and nothing else."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory

from fedglioma import bundle
from fedglioma.audit import checked
from fedglioma.bundle import build_bundle
from fedglioma.case import GENES, Modality
from fedglioma.config.run import RunConfig
from fedglioma.scale import LandmarkSums
from fedglioma.wire import (
    FINISHED,
    STATISTICS,
    TRAIN,
    Noted,
    Refusal,
    RunFinished,
    StatisticsReply,
    StatisticsRequest,
    TrainRequest,
    body_of,
    is_refusal,
    reply_to,
    request_record,
)
from fedglioma_client.worker import Worker

RUN, NODE = 77, 5


class Done(Exception):
    """The worker has done what there was to do."""


def app_of(seen: list[tuple[Message, Context]] | None = None) -> ClientApp:
    """Return an app that notes what it is asked, in place of the installed one."""
    app = ClientApp()

    def noted(message: Message, context: Context) -> Message:
        if seen is not None:
            seen.append((message, context))
        return reply_to(message, Noted(site="henan"))

    app.train()(noted)
    app.query("statistics")(noted)
    app.query("finished")(noted)
    return app


@dataclass
class Scene:
    """A SuperNode's memory, and the worker beside it."""

    app: ClientApp
    journal: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        factory = NodeStateFactory(ObjectStoreFactory())
        self.state, self.store = factory.state(), factory.objectstore_factory.store()
        self.state.set_node_id(NODE)
        self.worker = Worker(
            state=self.state,
            store=self.store,
            app=self.app,
            node_config={"site-config": "henan.yaml"},
            site="henan",
            journal=lambda event, **facts: self.journal.append((event, facts)),
            phase=self._phase,
        )

    def _phase(self, name: str) -> None:
        self.phases.append(name)
        if name == "wait":
            raise Done

    def run(self, content: bytes | None = None, **changes: Any) -> None:
        """Let the SuperNode know of a run and its bundle."""
        content = build_bundle().content if content is None else content
        digest = hashlib.sha256(content).hexdigest()
        self.state.store_fab(Fab(digest, content, {}))
        self.state.store_run(replace(Run.create_empty(run_id=RUN), fab_hash=digest, **changes))

    def deliver(self, content: RecordDict, kind: str, *, whole: bool = True) -> Message:
        """Put a message where the SuperNode puts what it takes."""
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN, 1, 1
        message = Message(content, dst_node_id=NODE, message_type=kind, group_id="3")
        number = message.object_id
        message.metadata.__dict__["_message_id"] = number
        self.store.preregister(RUN, get_object_tree(message))
        self.state.store_message(remove_content_from_message(message))
        if whole:
            for part, item in get_all_nested_objects(message).items():
                self.store.put(part, item.deflate())
        return message

    def work(self) -> None:
        """Let the worker answer one message."""
        with pytest.raises(Done):
            self.worker.serve()

    def answer(self) -> Message:
        """Return the reply as the SuperNode would send it."""
        (head,) = self.state.get_messages_legacy(is_reply=True)
        number = head.metadata.message_id
        parts = [item.object_id for item in iterate_object_tree(self.store.get_object_tree(number))]
        found = inflate_object_from_contents(number, {part: self.store.get(part) or b"" for part in parts})
        assert isinstance(found, Message)
        return found


def statistics() -> RecordDict:
    return request_record(StatisticsRequest(run="r", settings=RunConfig()))


def refusal_of(scene: Scene) -> Refusal:
    content = scene.answer().content
    assert is_refusal(content)
    return body_of(content, Refusal)


def test_message_is_answered_by_the_installed_app_and_the_steps_are_noted():
    seen: list[tuple[Message, Context]] = []
    scene = Scene(app_of(seen))
    scene.run()
    asked = scene.deliver(statistics(), STATISTICS)
    scene.work()
    reply = scene.answer()
    assert body_of(reply.content, Noted).site == "henan"
    assert reply.metadata.reply_to_message_id == asked.metadata.message_id
    assert (reply.metadata.src_node_id, reply.metadata.run_id) == (NODE, RUN)
    ((message, context),) = seen
    assert body_of(message.content, StatisticsRequest).settings == RunConfig()
    assert context.node_config == {"site-config": "henan.yaml"}
    assert context.run_config == {}
    assert [event for event, _ in scene.journal] == ["offered", "sent"]
    assert scene.journal[0][1]["digests"] == [asked.metadata.message_id]
    assert scene.phases == ["download", "train", "upload", "wait"]


def test_app_gets_a_context_of_its_own_for_every_message():
    seen: list[tuple[Message, Context]] = []
    scene = Scene(app_of(seen))
    scene.run()
    for _ in range(2):
        scene.deliver(statistics(), STATISTICS)
        scene.work()
        scene.answer()
        assert len(seen[-1][1].state) == 0
        assert seen[-1][1].node_config == {"site-config": "henan.yaml"}
        seen[-1][1].state["kept"] = ConfigRecord({"a": 1})
        seen[-1][1].node_config["more"] = "x"
    assert len(seen) == 2


def bundle_of(**files: str) -> bytes:
    """Return a bundle of settings as ours, and more files."""
    settings = bundle._SETTINGS.format(version="9.9.9", publisher=bundle.PUBLISHER)
    table = {"pyproject.toml": settings} | {
        name.replace("__", "/") + ".py": text for name, text in files.items()
    }
    return build_fab_from_files({name: text.encode() for name, text in table.items()})[0]


FOREIGN = {
    "empty": b"",
    "garbage": b"not an archive",
    "another version": bundle_of(),
    "code": bundle_of(fedglioma_client__app="raise SystemExit(99)"),
    "one byte more": build_bundle().content + b"\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_foreign_bundle_is_answered_with_a_refusal_of_5_and_never_unpacked(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    seen: list[tuple[Message, Context]] = []
    scene = Scene(app_of(seen))
    scene.run(content)
    scene.deliver(statistics(), STATISTICS)
    scene.work()
    refusal = refusal_of(scene)
    assert (refusal.site, refusal.error, refusal.exit_code) == ("henan", "PolicyError", 5)
    assert f"bundle {hashlib.sha256(content).hexdigest()[:12]} is not the one" in refusal.reason
    assert seen == []
    assert not list(tmp_path.iterdir())
    assert [event for event, _ in scene.journal] == ["offered", "refused", "sent"]
    assert scene.journal[1][1]["reason"] == refusal.reason


def test_run_that_nobody_knows_is_refused():
    seen: list[tuple[Message, Context]] = []
    scene = Scene(app_of(seen))
    scene.deliver(statistics(), STATISTICS)
    scene.work()
    assert refusal_of(scene).exit_code == 5
    assert seen == []


def test_run_that_overrides_settings_is_refused():
    seen: list[tuple[Message, Context]] = []
    scene = Scene(app_of(seen))
    scene.run(override_config={"rounds": 5})
    scene.deliver(statistics(), STATISTICS)
    scene.work()
    assert refusal_of(scene).reason == "the run overrides settings of its bundle: rounds"
    assert seen == []


@pytest.mark.parametrize("kind", ["query", "evaluate", "query.files", "train.other"])
def test_other_kinds_of_messages_are_answered_by_no_site(kind):
    seen: list[tuple[Message, Context]] = []
    scene = Scene(app_of(seen))
    scene.run()
    scene.deliver(statistics(), kind)
    scene.work()
    assert refusal_of(scene).reason == f"message of kind {kind!r}: answered by no site"
    assert seen == []


def test_defect_of_the_app_is_an_error_reply_without_its_words():
    app = ClientApp()

    @app.query("statistics")
    def statistics_of(message: Message, context: Context) -> Message:
        raise RuntimeError("no room for /data/patient-17.nii.gz")

    scene = Scene(app)
    scene.run()
    scene.deliver(statistics(), STATISTICS)
    scene.work()
    reply = scene.answer()
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "RuntimeError")


def test_message_is_answered_only_once_all_of_it_is_here(monkeypatch):
    scene = Scene(app_of())
    scene.run()
    message = scene.deliver(statistics(), STATISTICS, whole=False)
    naps: list[float] = []

    def arrive(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            for part, item in get_all_nested_objects(message).items():
                scene.store.put(part, item.deflate())

    monkeypatch.setattr("fedglioma_client.worker.time.sleep", arrive)
    scene.work()
    assert len(naps) == 3
    assert body_of(scene.answer().content, Noted)


def test_message_that_the_node_gave_up_is_not_answered(monkeypatch):
    scene = Scene(app_of())
    scene.run()
    message = scene.deliver(statistics(), STATISTICS, whole=False)
    monkeypatch.setattr(
        "fedglioma_client.worker.time.sleep", lambda _s: scene.store.delete(message.metadata.message_id)
    )
    scene.work()
    assert scene.state.get_messages_legacy(is_reply=True) == []
    assert scene.journal == []


def test_nothing_of_a_message_stays_in_the_store():
    scene = Scene(app_of())
    scene.run()
    asked = scene.deliver(statistics(), STATISTICS)
    scene.work()
    assert asked.metadata.message_id not in scene.store
    assert scene.worker.last_reply in scene.store


def test_end_of_the_run_is_noticed():
    scene = Scene(app_of())
    scene.run()
    scene.deliver(statistics(), STATISTICS)
    scene.work()
    assert not scene.worker.finished.is_set()
    scene.deliver(request_record(RunFinished(run="seven", status="completed")), FINISHED)
    scene.work()
    assert scene.worker.finished.is_set()


def test_goodbye_of_a_run_that_is_refused_is_no_end_of_the_run():
    scene = Scene(app_of())
    scene.run(FOREIGN["another version"])
    scene.deliver(request_record(RunFinished(run="seven", status="completed")), FINISHED)
    scene.work()
    assert refusal_of(scene).exit_code == 5
    assert not scene.worker.finished.is_set()


def test_goodbye_at_which_the_app_fails_is_no_end_of_the_run():
    app = ClientApp()

    @app.query("finished")
    def finished(message: Message, context: Context) -> Message:
        raise RuntimeError

    scene = Scene(app)
    scene.run()
    scene.deliver(request_record(RunFinished(run="seven", status="completed")), FINISHED)
    scene.work()
    assert scene.answer().has_error()
    assert not scene.worker.finished.is_set()


def test_head_of_the_servers_audit_log_is_noted_with_a_round():
    scene = Scene(app_of())
    scene.run()
    request = TrainRequest(
        run="seven",
        round=3,
        settings=RunConfig(),
        proximal_mu=0.0,
        class_counts=dict.fromkeys(GENES, (1.0, 1.0)),
        layout="0" * 64,
        audit_head="a" * 64,
    )
    scene.deliver(request_record(request), TRAIN)
    scene.work()
    assert "a" * 64 in scene.journal[0][1].values()


@pytest.mark.parametrize("epsilon", [None, 2.0])
def test_what_an_answer_spends_is_noted_with_its_digest(epsilon):
    told = StatisticsReply(
        site="henan",
        version="0",
        layout="",
        cases=10,
        labels=dict.fromkeys(GENES, (5, 5, 0)),
        modalities={},
        weights={},
        small_cell_limit=5,
        landmarks={Modality.T1: LandmarkSums(cases=10, sums=(500.0, 700.0, 900.0))},
        landmark_epsilon=epsilon,
    )
    app = ClientApp()
    app.query("statistics")(lambda message, context: reply_to(message, told))
    scene = Scene(app)
    scene.run()
    scene.deliver(statistics(), STATISTICS)
    scene.work()
    sent = next(facts for event, facts in scene.journal if event == "sent")
    if epsilon is None:
        assert "landmark_epsilon" not in sent
        return
    assert (sent["landmark_epsilon"], sent["landmark_delta"]) == (2.0, 1e-5)
    assert len(sent["landmarks"]) == 64
    assert checked(sent) == sent
