"""Sites and replies of one round, small enough to count by hand, without any training."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.clientapp import ClientApp

from fedglioma.case import GENES
from fedglioma.config.run import RunConfig
from fedglioma.payload import update
from fedglioma.weights import GROUPS, FlatArrays, Layout, digest_of, to_record
from fedglioma.wire import StatisticsReply, TrainReply, TrainRequest, body_of, reply_to, weights_of
from fedglioma_server.inline import InlineGrid
from fedglioma_server.strategy import RoundStrategy
from fedglioma_server.updates import Spool

LAYOUT = Layout(
    (
        ("model.stem.weight", (40, 60)),
        ("model.heads.idh.weight", (4,)),
        ("model.heads.atrx.weight", (1, 2)),
        ("model.heads.codel_1p19q.weight", (3,)),
        ("model.stem.bias", ()),
        ("loss.weights.idh.log_variance", (1,)),
    )
)


def numbers(seed: int, scale: float = 1.0) -> FlatArrays:
    """Return weights drawn from a seed."""
    rng = np.random.default_rng(seed)
    return {group: (scale * rng.normal(size=size)).astype(np.float32) for group, size in LAYOUT.sizes.items()}


def moved(start: Mapping[str, np.ndarray], seed: int, scale: float = 0.01) -> FlatArrays:
    """Return weights a step away from others."""
    return {group: start[group] + step for group, step in numbers(seed, scale).items()}


def weights(trunk: float = 1.0, **genes: float) -> dict[str, float]:
    """Return a site's weights per group; a gene's is the trunk's unless it is named."""
    return {group: genes.get(group, trunk) for group in GROUPS}


def site(name: str, by_group: dict[str, float] | None = None) -> StatisticsReply:
    """Return what a site says of itself."""
    return StatisticsReply(
        site=name,
        version="0",
        layout=LAYOUT.digest,
        cases=5,
        labels=dict.fromkeys(GENES, (1, 1, 0)),
        modalities={},
        weights=by_group or weights(),
        small_cell_limit=1,
    )


def strategy_of(
    folder: Path, sites: Iterable[StatisticsReply], settings: RunConfig | None = None, **options: object
) -> RoundStrategy:
    """Return a strategy over sites whose nodes count from 1, outside any engine."""
    InlineGrid(ClientApp(), [{}], {})  # names the task that messages need
    return RoundStrategy(
        settings or RunConfig(payload="float32"),
        dict(enumerate(sites, start=1)),
        dict.fromkeys(GENES, (1.0, 1.0)),
        LAYOUT,
        spool=options.pop("spool", None) or Spool(folder / "work" / "updates"),
        run="test",
        **options,
    )


def asked(strategy: RoundStrategy, sent: FlatArrays, number: int = 1) -> list[Message]:
    """Return the messages of a round."""
    grid = InlineGrid(ClientApp(), [{}], {})
    return list(strategy.configure_train(number, to_record(sent), ConfigRecord(), grid))


def answer(
    strategy: RoundStrategy,
    message: Message,
    local: FlatArrays,
    *,
    record: ArrayRecord | None = None,
    **changed: object,
) -> Message:
    """Return a site's reply: its update, and a report that is right but for what is changed."""
    request = body_of(message.content, TrainRequest)
    payload = request.settings.payload
    packed = update(payload, local, weights_of(message.content))
    table = {
        "site": strategy.nodes[message.metadata.dst_node_id].site,
        "round": request.round,
        "layout": request.layout,
        "payload": payload,
        "digest": digest_of(packed),
        "weights": {},
        "steps": 1,
        "loss": None,
        "loss_by_task": dict.fromkeys(GENES),
        "seconds": {},
    }
    reply = reply_to(message, TrainReply.model_validate(table | changed), packed)
    if record is not None:
        reply.content["weights"] = record
    return reply
