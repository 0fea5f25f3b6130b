"""What the engines take from inside Flower. A new Flower that fails here needs a look at the engine named."""

import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import numpy as np
from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvgM, Strategy
from flwr.simulation import run_simulation
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedglioma_server.inline import InlineGrid
from fedglioma_server.server_optimizers import _Adam, _AvgM, _Yogi

ROOT = Path(__file__).resolve().parents[2]
INLINE = "server/fedglioma_server/inline.py"
RAY = "server/fedglioma_server/ray_engine.py"
WIRE = "fedglioma/wire.py"
STRATEGY = "server/fedglioma_server/strategy.py"
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
