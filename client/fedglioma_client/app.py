"""ClientApp: unpack, call, pack. What goes wrong at a site becomes a refusal that names no data."""

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedglioma.errors import (
    BudgetExhausted,
    Diverged,
    FedGliomaError,
    NoUsableCase,
    PolicyError,
    ProtocolError,
    ScaleError,
)
from fedglioma.weights import Packed
from fedglioma.wire import (
    Body,
    Noted,
    Refusal,
    RunFinished,
    SecureRequest,
    StatisticsRequest,
    TrainRequest,
    body_of,
    reply_to,
    weights_of,
)
from fedglioma_client.masking import exchange, forget_sums
from fedglioma_client.round import expected_weights, statistics_round, train_round
from fedglioma_client.site import agree, resolve_config, resolve_site, site_of

logger = logging.getLogger(__name__)

app = ClientApp()

BUDGET = "the site's privacy budget does not allow this; its ledger has the figures"
"""What it spent in other runs is nobody else's business."""

Answer = tuple[Body, Packed | None]


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Answer the statistics round."""

    def answer() -> Answer:
        request = body_of(message.content, StatisticsRequest)
        agree(resolve_config(context), request.settings)
        return statistics_round(request, resolve_site(context, request.settings)), None

    return _answered(message, context, answer)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a training round."""

    def answer() -> Answer:
        request = body_of(message.content, TrainRequest)
        agree(resolve_config(context), request.settings)
        weights = weights_of(message.content, expected_weights(request.settings))
        return train_round(request, weights, resolve_site(context, request.settings))

    return _answered(message, context, answer)


@app.query("secure")
def secure(message: Message, context: Context) -> Message:
    """Answer one of the short exchanges around a masked sum."""

    def answer() -> Answer:
        request = body_of(message.content, SecureRequest)
        config = resolve_config(context)
        agree(config, request.settings)
        return exchange(request, config), None

    return _answered(message, context, answer)


@app.query("finished")
def finished(message: Message, context: Context) -> Message:
    """Note that a run has ended."""

    def answer() -> Answer:
        told = body_of(message.content, RunFinished)
        logger.info("run %s: %s", told.run, told.status)
        forget_sums(resolve_config(context))
        return Noted(site=site_of(context)), None

    return _answered(message, context, answer)


def _answered(message: Message, context: Context, answer: Callable[[], Answer]) -> Message:
    try:
        body, arrays = answer()
    except FedGliomaError as error:
        # Logs name nobody; the list of prepare does.
        words = f"{error.counts}; see the list of prepare" if isinstance(error, NoUsableCase) else error
        logger.warning("round not answered: %s", words)
        return reply_to(message, _refusal(context, error))
    except Exception as error:  # a defect at one site must not end the others' run; it is logged here in full
        logger.exception("round not answered")
        return reply_to(message, _refusal(context, error))
    return reply_to(message, body, arrays)


def _refusal(context: Context, error: Exception) -> Refusal:
    """Return a no without a path or patient in it; errors about terms, messages, scale and network speak."""
    speaks = isinstance(error, PolicyError | ProtocolError | ScaleError | Diverged)
    code = error.exit_code if isinstance(error, FedGliomaError) else 1
    if isinstance(error, BudgetExhausted):
        speaks, error = True, BudgetExhausted(BUDGET)
    return Refusal(
        site=site_of(context),
        error=type(error).__name__,
        exit_code=code,
        reason=str(error) if speaks else "the reason is in the site's own log",
    )
