"""What the engines take from inside Flower. A new Flower that fails here needs a look at the engine named."""

import base64
import inspect
import json
import re
import time
import tomllib
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common import constant
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE, TIMESTAMP_HEADER, ErrorCode
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from flwr.simulation import run_simulation
from flwr.supercore import heartbeat
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore, ObjectEntry
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.main import create_app
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware, authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.nodestate import NodeStateFactory

from fedglioma.nodekey import public_bytes
from fedglioma_client.node import HEARTBEAT_S
from fedglioma_client.reach import AHEAD_S, BEHIND_S
from fedglioma_server.gate import CALLS, FLEET, signed_lately
from fedglioma_server.inline import InlineGrid
from fedglioma_server.link import _superlink_settings
from fedglioma_server.linkstate import SiteLinkState
from fedglioma_server.objects import IN_MEMORY_BYTES

ROOT = Path(__file__).resolve().parents[2]
INLINE = "server/fedglioma_server/inline.py"
RAY = "server/fedglioma_server/ray_engine.py"
WIRE = "fedglioma/wire.py"
STRATEGY = "server/fedglioma_server/strategy.py"
LINK = "server/fedglioma_server/link.py"
LINKSTATE = "server/fedglioma_server/linkstate.py"
LINKGRID = "server/fedglioma_server/linkgrid.py"
OBJECTS = "server/fedglioma_server/objects.py"
ASSEMBLE = "server/fedglioma_server/assemble.py"
GATE = "server/fedglioma_server/gate.py"
LANE = "server/fedglioma_server/lane.py"
NODE = "client/fedglioma_client/node.py"
WORKER = "client/fedglioma_client/worker.py"
REACH = "client/fedglioma_client/reach.py"
NODEKEY = "fedglioma/nodekey.py"
OPTIMIZERS = "server/fedglioma_server/server_optimizers.py"
WEIGHTS = "fedglioma/weights.py"


def takes(function: object, names: set[str]) -> bool:
    assert callable(function)
    return names <= set(inspect.signature(function).parameters)


def test_installed_flower_is_of_the_range_that_was_tried() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (asked,) = (d for d in tomllib.loads(text)["project"]["dependencies"] if d.startswith("flwr"))
    low, high = (tuple(map(int, part.split("."))) for part in re.findall(r"[\d.]+", asked))
    found = tuple(map(int, version("flwr").split(".")[:2]))
    assert low <= found < high, (
        f"Flower {version('flwr')} was not tried with this fedglioma; it wants {asked}"
    )
    assert high == (low[0], low[1] + 1), "only one minor version of Flower at a time was tried"


def test_a_run_can_be_made_without_flowers_link() -> None:
    run = Run.create_empty(run_id=77)
    assert run.run_id == 77, f"Run.create_empty changed; see {INLINE}"


def test_messages_know_the_task_that_was_named() -> None:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 5, 5, 5
    message = Message(RecordDict(), dst_node_id=3, message_type="train", group_id="1")
    assert message.metadata.run_id == 5, f"a message's run is no longer TaskIdentity's; see {INLINE}"
    assert message.metadata.src_node_id == 5, f"a message's sender is no longer TaskIdentity's; see {INLINE}"


def test_number_of_a_message_can_be_set_and_a_reply_names_it() -> None:
    InlineGrid(ClientApp(), [{}], {})
    message = Message(RecordDict(), dst_node_id=3, message_type="train", group_id="1")
    message.metadata.__dict__["_message_id"] = "abc"
    assert message.metadata.message_id == "abc", f"Metadata no longer keeps _message_id; see {INLINE}"
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == "abc", f"a reply no longer names its question; see {INLINE}"


def test_error_replies_are_made_as_flowers_runtime_makes_them() -> None:
    InlineGrid(ClientApp(), [{}], {})
    message = Message(RecordDict(), dst_node_id=3, message_type="train", group_id="1")
    reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ValueError"), reply_to=message)
    assert reply.has_error(), f"Error or ErrorCode changed; see {INLINE}"
    assert reply.error.reason == "ValueError"


def test_grid_asks_for_what_the_inline_grid_has() -> None:
    missing = Grid.__abstractmethods__ - set(dir(InlineGrid))
    assert not missing, f"Flower's Grid now has {missing}; see {INLINE}"
    assert NodeInfo(node_id=4).node_id == 4, f"NodeInfo changed; see {INLINE}"


def test_contexts_and_apps_can_be_called_by_hand() -> None:
    context = Context(run_id=1, node_id=2, node_config={"a": 1}, state=RecordDict(), run_config={"b": "c"})
    assert context.run_config == {"b": "c"}, f"Context changed; see {INLINE}"
    assert takes(ClientApp.__call__, {"message", "context"}), f"ClientApp is called otherwise; see {INLINE}"
    assert takes(ServerApp.__call__, {"grid", "context"}), f"ServerApp is called otherwise; see {INLINE}"
    assert takes(ClientApp.query, {"action"}), f"ClientApp.query names no action; see {WIRE}"


def test_simulation_takes_what_the_ray_engine_gives() -> None:
    wanted = {"server_app", "client_app", "num_supernodes", "backend_config"}
    assert takes(run_simulation, wanted), f"run_simulation changed; see {RAY}"


def test_server_optimizers_take_their_mean_from_the_class_behind_them() -> None:
    """Ours stands between Flower's optimizer and its FedAvg, and hands the mean over."""
    for optimizer in (_AvgM, _Adam, _Yogi):
        order = [kind.__name__ for kind in optimizer.__mro__]
        assert order.index("_MeanGiven") < order.index("FedAvg"), f"bases changed; see {OPTIMIZERS}"
        source = inspect.getsource(optimizer.__mro__[1].aggregate_train)
        assert "super().aggregate_train(" in source, f"{order[1]} averages by itself; see {OPTIMIZERS}"
    assert takes(FedAdam, {"eta", "beta_1", "beta_2", "tau"}), f"FedAdam's settings changed; see {OPTIMIZERS}"
    assert takes(FedAvgM, {"server_learning_rate", "server_momentum"}), f"FedAvgM's; see {OPTIMIZERS}"
    for name in ("m_t", "v_t", "current_arrays"):
        assert hasattr(FedAdam(), name), f"FedAdam no longer keeps {name}; see {OPTIMIZERS}"
    assert hasattr(FedAvgM(), "momentum_vector"), f"FedAvgM's momentum moved; see {OPTIMIZERS}"


def test_errors_of_absent_sites_have_the_codes_that_are_looked_for() -> None:
    assert ErrorCode.NODE_UNAVAILABLE != ErrorCode.REPLY_MESSAGE_UNAVAILABLE


def test_arrays_can_be_made_of_their_bytes() -> None:
    array = Array("float32", (3,), "numpy.ndarray", Array(np.ones(3, np.float32)).data)
    assert array.numpy().tolist() == [1, 1, 1], f"Array's fields changed; see {WEIGHTS}"


def test_strategy_has_the_seams_that_ours_fills() -> None:
    named = {"configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate", "summary"}
    assert Strategy.__abstractmethods__ <= named, f"Strategy has new abstract methods; see {STRATEGY}"
    wanted = {"grid", "initial_arrays", "num_rounds", "timeout", "evaluate_fn"}
    assert takes(Strategy.start, wanted), f"Strategy.start changed; see {STRATEGY}"


# --- the deployed server and the hospital's node


def test_nodes_loop_sleeps_by_calls_that_ours_can_shorten() -> None:
    text = inspect.getsource(start_client_internal)
    naps = re.findall(r"time\.sleep\(([^)]*)\)", text)
    assert naps == ["3", "0.5", "0.5"], f"the node's pauses are others now: {naps}; see {NODE}"
    assert start_client_internal.time is time or hasattr(start_client_internal.time, "sleep")
    others = set(re.findall(r"\btime\.(\w+)\(", text)) - {"sleep"}
    assert not others, f"the node's loop uses time.{others} too, which our stand-in lacks; see {NODE}"


def test_node_can_be_told_its_heartbeat() -> None:
    for module in (fleet_http_connection, heartbeat):
        assert hasattr(module, "HEARTBEAT_DEFAULT_INTERVAL"), f"{module.__name__} changed; see {NODE}"
        text = inspect.getsource(module)
        assert "HEARTBEAT_DEFAULT_INTERVAL" in text.split("import", 1)[1], f"it is not read there; see {NODE}"
    assert constant.HEARTBEAT_MIN_INTERVAL <= HEARTBEAT_S, f"Flower refuses such a heartbeat; see {NODE}"
    assert constant.HEARTBEAT_PATIENCE == 2, f"a site is away after another time; see {NODE} and docs"


def test_node_starts_with_what_ours_gives_it() -> None:
    wanted = {
        *("state_factory", "server_address", "node_config", "root_certificates", "insecure"),
        *("authentication_keys", "isolation", "runtime_dependency_install"),
    }
    assert takes(start_client_internal.start_client_internal, wanted), (
        f"the node starts otherwise; see {NODE}"
    )
    text = inspect.getsource(start_client_internal.start_client_internal)
    assert "health_server_address is not None" in text, f"the node may listen on a port; see {NODE}"
    assert "if isolation == ISOLATION_MODE_SUBPROCESS" in text, f"the node may start a process; see {NODE}"


def test_nodes_memory_has_what_the_worker_uses() -> None:
    state = NodeStateFactory(ObjectStoreFactory()).state()
    for name in (
        *("get_messages_legacy", "get_run", "get_fab", "get_node_id", "store_message", "get_tasks"),
        *("finish_task", "record_message_processing_start", "record_message_processing_end"),
    ):
        assert callable(getattr(state, name, None)), f"NodeState.{name} is gone; see {WORKER}"
    for name in ("get_object_tree", "get", "put", "delete", "preregister", "__contains__"):
        assert callable(getattr(InMemoryObjectStore(), name)), f"ObjectStore.{name} is gone; see {WORKER}"
    assert {field.name for field in fields(Run)} >= {"fab_hash", "override_config"}, (
        f"Run changed; see {WORKER}"
    )


def test_link_state_has_the_tables_that_ours_reads() -> None:
    state = InMemoryLinkState(NoOpFederationManager(), InMemoryObjectStore())
    tables = {
        *("nodes", "node_public_key_to_node_id", "owner_to_node_ids", "run_ids", "message_ins_store"),
        *("message_res_store", "message_ins_id_to_message_res_id", "lock", "object_store"),
    }
    missing = tables - set(vars(state)) - {"object_store"}
    assert not missing, f"InMemoryLinkState no longer has {missing}; see {LINKSTATE}"
    assert state.object_store is not None
    for name in (
        *("create_node", "delete_node", "activate_node", "get_node_info", "get_node_id_by_public_key"),
        *("create_run", "claim_task", "activate_task", "acknowledge_task_heartbeat", "_get_run"),
        *("acknowledge_node_heartbeat", "get_message_ins", "store_message_ins", "delete_messages"),
        *("store_message_and_object_tree", "start_session", "preregister_object_tree", "store_object"),
        *("get_run_status", "cleanup_run", "_on_push_session_expired", "get_run_info", "store_fab"),
    ):
        assert callable(getattr(state, name, None)), f"InMemoryLinkState.{name} is gone; see {LINKSTATE}"
    for name in ("store_message_and_object_tree", "get_message_ins", "_on_push_session_expired"):
        ours, flowers = getattr(SiteLinkState, name), getattr(InMemoryLinkState, name)
        same = list(inspect.signature(ours).parameters) == list(inspect.signature(flowers).parameters)
        assert same, f"InMemoryLinkState.{name} takes other arguments; see {LINKSTATE}"


def test_object_store_has_the_tables_that_the_spool_reads() -> None:
    store = InMemoryObjectStore()
    assert {"store", "lock_store"} <= set(vars(store)), f"InMemoryObjectStore changed; see {OBJECTS}"
    known = {field.name for field in fields(ObjectEntry)}
    assert {"content", "is_available"} <= known, f"an entry has {known}; see {OBJECTS}"
    assert HEAD_BODY_DIVIDER == b"\x00", f"heads end otherwise; see {OBJECTS}"


def test_superlink_is_made_of_what_ours_gives_it() -> None:
    settings = _superlink_settings()
    named = {field.name for field in fields(SuperLinkLifespanConfig)}
    given = set(vars(settings))
    assert given == named, f"SuperLinkLifespanConfig has other fields: {given ^ named}; see {LINK}"
    assert takes(create_app, {"config", "lifespan"}) or len(inspect.signature(create_app).parameters) == 2, (
        f"create_app takes {inspect.signature(create_app)}; see {LINK}"
    )
    state = create_app(settings, SuperLinkLifespan).state
    for name in ("linkstate_factory", "enable_supernode_auth"):
        assert hasattr(state, name), f"the SuperLink's app keeps no {name}; see {LINK}"
    assert state.enable_supernode_auth is True, f"nodes would come in without a key; see {LINK}"
    factory = state.linkstate_factory
    assert {"state_instance", "federation_manager"} <= set(dir(factory)), f"the factory changed; see {LINK}"
    assert hasattr(factory.objectstore_factory, "store_instance"), f"the factory changed; see {LINK}"


def test_fleet_serves_the_calls_that_the_gate_lets_through_and_asks_for_a_signature() -> None:
    app = create_app(_superlink_settings(), SuperLinkLifespan)
    posts = {path for path in app.openapi()["paths"] if path.startswith(FLEET)}
    assert posts >= CALLS, f"Flower no longer serves {CALLS - posts}; see {GATE}"
    shut = {f"{FLEET}register-node", f"{FLEET}unregister-node"}
    assert posts == CALLS | shut, (
        f"Flower serves {posts - CALLS - shut} too: let it through or not; see {GATE}"
    )
    middlewares = {item.cls for item in app.user_middleware}
    assert NodeAuthMiddleware in middlewares, f"Flower no longer checks signatures by itself; see {GATE}"


def test_node_signs_what_gate_and_knock_expect() -> None:
    private = ec.generate_private_key(ec.SECP384R1())
    request = httpx.Request("POST", "https://server/v1/fleet/pull-messages")
    context = ProtobufRequestContext(rpc_method="x", message=PullMessagesRequest(), request=request)
    NodeAuthHttpInterceptor(private, private.public_key()).intercept(
        context, lambda _context: httpx.Response(200)
    )
    headers = {name.lower(): value for name, value in request.headers.raw}
    assert signed_lately(headers), f"Flower's node signs otherwise; see {GATE}"
    key = base64.b64decode(request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER])
    assert key == public_bytes(private), f"Flower names a key otherwise; see {NODEKEY}"
    assert TIMESTAMP_HEADER in request.headers, f"Flower's header has another name; see {REACH}"


def test_clocks_may_differ_by_what_the_knock_says() -> None:
    assert constant.SYSTEM_TIME_TOLERANCE == AHEAD_S, f"see AHEAD_S in {REACH}"
    assert constant.TIMESTAMP_TOLERANCE + constant.SYSTEM_TIME_TOLERANCE >= BEHIND_S, (
        f"see BEHIND_S in {REACH}"
    )


def test_messages_are_made_of_the_objects_that_the_server_assembles() -> None:
    for name in (
        "Message",
        "RecordDict",
        "ArrayRecord",
        "ConfigRecord",
        "MetricRecord",
        "Array",
        "ArrayChunk",
    ):
        assert name in inflatable_class_registry, f"Flower has no {name} any more; see {ASSEMBLE}"
    InlineGrid(ClientApp(), [{}], {})
    array = Array(np.zeros(3, np.float32))
    told = json.loads(get_object_body(array.deflate(), Array))
    assert set(told) == {"dtype", "shape", "stype", "arraychunk_ids"}, (
        f"arrays are told otherwise; see {ASSEMBLE}"
    )
    kind, children, _ = get_object_head_values_from_object_content(array.deflate())
    assert (kind, len(children)) == ("Array", 1), f"heads are written otherwise; see {ASSEMBLE}"
    record = json.loads(get_object_body(ArrayRecord({"a": array}).deflate(), ArrayRecord))
    assert record == {"a": array.object_id}, f"records of arrays are told otherwise; see {ASSEMBLE}"
    assert FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE > IN_MEMORY_BYTES, f"chunks would stay in memory; see {OBJECTS}"


def test_messages_can_be_answered_with_errors_of_ours() -> None:
    assert {
        "NODE_UNAVAILABLE",
        "REPLY_MESSAGE_UNAVAILABLE",
        "MESSAGE_UNAVAILABLE",
        "CLIENT_APP_CRASHED",
    } <= set(vars(ErrorCode)), f"ErrorCode changed; see {LINKGRID}"
    InlineGrid(ClientApp(), [{}], {})
    message = Message(RecordDict(), dst_node_id=3, message_type="train", group_id="1")
    head = remove_content_from_message(message)
    assert not head.has_content(), f"a message keeps its content; see {LINKGRID}"
    answer = make_message(metadata=head.metadata, error=Error(ErrorCode.NODE_UNAVAILABLE, "away"))
    assert answer.error.reason == "away", f"make_message changed; see {LINKGRID}"
    with no_object_id_recompute():
        assert message.object_id == message.object_id


def test_lane_calls_the_handlers_that_flowers_routes_call() -> None:
    for name in ("push_object", "pull_object"):
        assert takes(getattr(fleet_handlers, name), {"request", "state"}), f"{name} changed; see {LANE}"
    assert takes(authenticate_node, {"request"}), f"Flower's authentication is called otherwise; see {LANE}"
    names = {field.name for field in PullObjectResponse.DESCRIPTOR.fields}
    assert names == {"object_found", "object_available", "object_content"}, f"the answer changed; see {LANE}"
