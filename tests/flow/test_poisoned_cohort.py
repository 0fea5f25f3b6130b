"""After preparing and training on a poisoned cohort, nothing that was planted in it is where it must not be.

Searched are every message in the bytes that travel, the log at DEBUG, what the commands print, the metrics,
the cache, the state folder with its audit log, and the server's run folder. The hospital's own four reports
may name its patients by their ids and its files by their names, and nothing that a header says.
"""

import base64
import hashlib
import io
import logging
import os
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

import pytest
from click.testing import Result
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory
from prometheus_client import generate_latest
from typer.testing import CliRunner

from fedglioma.audit import AuditLog
from fedglioma.bundle import build_bundle
from fedglioma.chain import AUDIT_FILE
from fedglioma.config.run import RunConfig
from fedglioma.console import prepare_environment
from fedglioma.wire import is_refusal
from fedglioma_client import cli
from fedglioma_client.app import app
from fedglioma_client.gauges import ClientGauges
from fedglioma_client.instruments import Instruments
from fedglioma_client.site import SITE_CONFIG_KEY, _real_site
from fedglioma_client.worker import Worker
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.federation import run_federation
from fedglioma_server.inline import InlineGrid
from tests.cli_fixture import call, plain_environment
from tests.federation_fixture import make_plan
from tests.poisoned_cohort import (
    AT_HOME,
    CELLS,
    HEADERS,
    IDS,
    NAMES,
    NOWHERE,
    files_below,
    found_in,
    write_north,
    write_ruin,
    write_south,
)

SETTINGS = RunConfig(
    **{"width": 1, "crop": 16, "spacing_mm": 8.0, "rounds": 1, "batch_size": 3, "bootstrap": 100}
)
SITES = {"north": write_north, "south": write_south, "ruin": write_ruin}
OWN_REPORTS = {"findings.csv", "prepare-report.json", "quality.html", "quality.json"}
"""What names patients, for the hospital's own eyes: nothing else is exempt from the search."""
PLANTED = (*NOWHERE, *AT_HOME)
RUN, NODE = 77, 5

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


@dataclass
class Traces:
    """Everything that a day in the life of the hospitals leaves."""

    root: Path
    commands: dict[tuple[str, str], Result] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    log: str = ""
    metrics: dict[str, bytes] = field(default_factory=dict)
    run_folder: Path = Path()


class _Done(Exception):
    """The worker has answered."""


def command(root: Path, site: str, name: str) -> Result:
    """Return how the hospital's command ended, everything told."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    words = ["--site", site, "--config-dir", str(root), name, "--spacing-mm", "8", "--log-level", "DEBUG"]
    with patch.dict(os.environ, plain_environment(), clear=True):
        prepare_environment()
        try:
            return CliRunner().invoke(cli.app, words)
        finally:
            logger.handlers, logger.level = handlers, level
            logging.getLogger("flwr").propagate = True


def federate(root: Path, traces: Traces) -> None:
    """Train a round on all hospitals, on the inline engine."""
    plan = make_plan(root / "server", SETTINGS, sites={}, held_out=2)
    nodes: list[dict[str, str | int]] = [{SITE_CONFIG_KEY: str(root / f"{site}.yaml")} for site in SITES]
    coordinator = Coordinator(
        path=plan.run_folder, settings=SETTINGS, selection=plan.selection, threads=1, sites=len(SITES)
    )
    run_federation(InlineGrid(app, nodes, {}, tap=traces.messages.append), coordinator)
    traces.run_folder = plan.run_folder


def as_node(root: Path, site: str, requests: list[Message]) -> tuple[list[Message], bytes]:
    """Answer requests as the hospital's own process does, with its audit log and its metrics."""
    gauges = ClientGauges(site)
    instruments = Instruments(gauges)
    record = AuditLog(root / "state" / site / AUDIT_FILE)
    factory = NodeStateFactory(ObjectStoreFactory())
    state, store = factory.state(), factory.objectstore_factory.store()
    state.set_node_id(NODE)
    bundle = build_bundle()
    state.store_fab(Fab(bundle.digest, bundle.content, {}))
    state.store_run(replace(Run.create_empty(run_id=RUN), fab_hash=bundle.digest))

    def journal(event: str, **facts: object) -> None:
        record.note(event, **facts)
        instruments.step(event, **facts)

    def phase(name: str) -> None:
        instruments.phase(name)
        if name == "wait":
            raise _Done

    node = {SITE_CONFIG_KEY: str(root / f"{site}.yaml")}
    worker = Worker(
        state=state, store=store, app=app, node_config=node, site=site, journal=journal, phase=phase
    )
    replies = []
    for request in requests:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN, 1, 1
        sent = request.metadata
        message = Message(
            request.content, dst_node_id=NODE, message_type=sent.message_type, group_id=sent.group_id
        )
        message.metadata.__dict__["_message_id"] = message.object_id
        store.preregister(RUN, get_object_tree(message))
        state.store_message(remove_content_from_message(message))
        for part, item in get_all_nested_objects(message).items():
            store.put(part, item.deflate())
        with pytest.raises(_Done):
            worker.serve()
        replies += state.get_messages_legacy(is_reply=True)
    instruments.heard()
    return replies, generate_latest(gauges.registry)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """Prepare, look, train, answer and look again at three hospitals."""
    root = tmp_path_factory.mktemp("poisoned")
    traces = Traces(root)
    for site, write in SITES.items():
        write(root / site)
        (root / f"{site}.yaml").write_text(
            f"site: {site}\ndata: {site}\nthreads: 1\nlayout: {'dicom' if site == 'north' else 'auto'}\n"
        )
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logger = logging.getLogger()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("fedglioma_server.federation.conclude", lambda *_args: None)
            _real_site.cache_clear()
            for site in SITES:
                traces.commands[site, "prepare"] = command(root, site, "prepare")
            logger.setLevel(logging.DEBUG)
            logger.addHandler(handler)
            federate(root, traces)
            requests = traces.messages[::2]  # every one is followed by its reply
            for number, site in enumerate(SITES, 1):
                asked = [message for message in requests if message.metadata.dst_node_id == number]
                replies, traces.metrics[site] = as_node(root, site, asked)
                traces.messages += replies
            for site in SITES:
                traces.commands[site, "check"] = command(root, site, "check")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        _real_site.cache_clear()
    traces.log = heard.getvalue()
    return traces


def sent(message: Message) -> bytes:
    """Return the bytes of a message as they travel, with all that stands around them."""
    parts = b"".join(item.deflate() for item in get_all_nested_objects(message).values())
    return parts + repr(message.metadata.__dict__).encode() + repr(message.content).encode()


def test_the_day_went_as_it_should(traces: Traces) -> None:
    """Otherwise there would be nothing to find anything in."""
    codes = {key: result.exit_code for key, result in traces.commands.items()}
    assert codes == {
        ("north", "prepare"): 0,
        ("south", "prepare"): 0,
        ("ruin", "prepare"): 4,
        ("north", "check"): 0,
        ("south", "check"): 0,
        ("ruin", "check"): 4,
    }
    asked = 3 + 2  # for statistics and to train; ruin does not get so far
    replies = traces.messages[1 : 2 * asked : 2]
    assert [is_refusal(reply.content) for reply in replies].count(True) == 1
    assert len(traces.messages) == 3 * asked
    for site in ("north", "south"):
        table = (traces.root / "cache" / site / "findings.csv").read_text()
        assert len(table.splitlines()) >= 3
        assert b"fedglioma_round" in traces.metrics[site]
        assert len((traces.root / "state" / site / AUDIT_FILE).read_text().splitlines()) == 4


def test_no_message_has_anything_that_was_planted(traces: Traces) -> None:
    for message in traces.messages:
        assert found_in(sent(message), PLANTED) == []
        assert str(traces.root).encode() not in sent(message)


def test_no_line_of_the_log_has_anything_that_was_planted(traces: Traces) -> None:
    assert "round not answered: " in traces.log
    assert found_in(traces.log.encode("utf-8", "surrogateescape"), PLANTED) == []


def test_stdout_names_nobody_and_stderr_only_for_the_one_at_the_terminal(traces: Traces) -> None:
    for (site, name), result in traces.commands.items():
        assert found_in(result.stdout.encode(), PLANTED) == [], (site, name)
        assert found_in(result.stderr.encode(), NOWHERE) == [], (site, name)
        if name == "prepare" and result.exit_code == 0:
            assert found_in(result.stderr.encode(), PLANTED) == []
        assert "Traceback" not in result.output


def test_metrics_name_nobody(traces: Traces) -> None:
    for exposed in traces.metrics.values():
        assert found_in(exposed, PLANTED) == []


def test_cache_state_and_the_servers_folder_name_nobody(traces: Traces) -> None:
    looked = 0
    for folder in (traces.root / "cache", traces.root / "state", traces.run_folder):
        for path, content in files_below(folder):
            looked += 1
            own = path.parent.parent == traces.root / "cache" and path.name in OWN_REPORTS
            words = NOWHERE if own else PLANTED
            assert found_in(content, words) == [], path
    assert looked > 20


def test_the_hospitals_own_reports_name_folders_and_files_for_their_owner_alone(traces: Traces) -> None:
    for site in SITES:
        reports = [p for p in (traces.root / "cache" / site).iterdir() if p.name in OWN_REPORTS]
        assert len(reports) == (4 if site != "ruin" else len(reports))
        for path in reports:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert found_in(path.read_bytes(), HEADERS) == []
    table = (traces.root / "cache" / "north" / "findings.csv").read_bytes()
    assert set(found_in(table, AT_HOME)) >= {NAMES[0], CELLS[0], IDS[1]}


def test_run_folder_of_a_simulation_names_nobody_outside_work(traces: Traces) -> None:
    root = traces.root
    result = call(
        "simulate", "--cohort", root / "north", "--out", root / "run", "--cache", root / "cache",
        "--sites", "2",
        *("--width", "1", "--crop", "16", "--spacing-mm", "8", "--rounds", "1", "--batch-size", "4"),
        *("--bootstrap", "100", "--workers", "1", "--threads", "1", "--log-level", "DEBUG"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert found_in(result.output.encode(), PLANTED) == []
    for path, content in files_below(root / "run"):
        if "work" not in path.relative_to(root / "run").parts:
            assert found_in(content, PLANTED) == [], path


@pytest.mark.parametrize("before", ["", "a", "ab", "abc", '{"x":"'])
def test_the_search_finds_every_form(before: str) -> None:
    word = "KÖNIGSMÖRDER"
    for text in (word, word.lower(), word.title()):
        for code in ("utf-8", "utf-16-le", "utf-16-be", "latin-1"):
            assert found_in((before + text).encode(code), [word]) == [word]
        for code in ("utf-8", "utf-16-le"):
            raw = (before + text + "!").encode(code)
            assert found_in(base64.b64encode(raw), [word]) == [word]
            assert found_in(base64.urlsafe_b64encode(raw), [word]) == [word]
        assert found_in(text.encode().hex().encode(), [word]) == [word]
        assert found_in(text.encode().hex().upper().encode(), [word]) == [word]
    assert found_in(b"k%C3%B6nigsm%C3%B6rder", [word]) == [word]
    assert found_in(hashlib.sha256(word.encode()).hexdigest().encode(), [word]) == [word]
    assert found_in(b"a king's murderer", [word]) == []
