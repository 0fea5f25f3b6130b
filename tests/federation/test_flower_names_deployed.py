"""What server and node take from inside Flower. A new Flower that fails here needs a look at that file."""

import base64
import inspect
import json
import re
import time
from collections.abc import Callable
from dataclasses import fields

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common import constant
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE, TIMESTAMP_HEADER, ErrorCode
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
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


def takes(function: Callable[..., object], names: set[str]) -> bool:
    return names <= set(inspect.signature(function).parameters)


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
    for name in (
        "NODE_UNAVAILABLE",
        "REPLY_MESSAGE_UNAVAILABLE",
        "MESSAGE_UNAVAILABLE",
        "CLIENT_APP_CRASHED",
    ):
        assert hasattr(ErrorCode, name), f"ErrorCode.{name} is gone; see {LINKGRID}"
    InlineGrid(ClientApp(), [{}], {})
    message = Message(RecordDict(), dst_node_id=3, message_type="train", group_id="1")
    head = remove_content_from_message(message)
    assert not head.content, f"a message keeps its content; see {LINKGRID}"
    answer = make_message(metadata=head.metadata, error=Error(ErrorCode.NODE_UNAVAILABLE, "away"))
    assert answer.error.reason == "away", f"make_message changed; see {LINKGRID}"
    with no_object_id_recompute():
        assert message.object_id == message.object_id


def test_lane_calls_the_handlers_that_flowers_routes_call() -> None:
    for name in ("push_object", "pull_object"):
        assert takes(getattr(fleet_handlers, name), {"request", "state"}), f"{name} changed; see {LANE}"
    text = inspect.getsource(fleet_handlers.pull_object)
    same = "[Status.PENDING, Status.STARTING, Status.FINISHED]"
    assert "check_abort(" in text, f"another check stands before an object; see {LANE}"
    assert same in text, f"objects are handed out in other states of a run; see {LANE}"
    assert takes(authenticate_node, {"request"}), f"Flower's authentication is called otherwise; see {LANE}"
    names = {field.name for field in PullObjectResponse.DESCRIPTOR.fields}
    assert names == {"object_found", "object_available", "object_content"}, f"the answer changed; see {LANE}"
