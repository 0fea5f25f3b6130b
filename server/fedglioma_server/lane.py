"""The lane for large objects: two of Flower's calls, answered without its nine layers of middleware.

Weights travel as objects of a few megabytes, and nearly all of the server's work was the way of these
two calls through Flower's layers, each of which hands the body on through a queue and keeps it in
reference cycles until Python collects garbage. Here the same authentication and the same checks run
once per call, on a thread, and an object on its way out is not copied.
"""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI, HTTPException
from flwr.common.constant import Status
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest
from flwr.server.superlink.utils import check_abort
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from google.protobuf.message import DecodeError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from fedglioma.machine import usable_cores
from fedglioma_server.linkstate import SiteLinkState

PUSH = "/v1/fleet/push-object"
PULL = "/v1/fleet/pull-object"
PATHS = frozenset({PUSH, PULL})

_JSON = "application/json"
_NO_LONGER = [Status.PENDING, Status.STARTING, Status.FINISHED]
"""States of a run in which its objects are not handed out."""
_CONTENT_TAG = bytes([PullObjectResponse.OBJECT_CONTENT_FIELD_NUMBER << 3 | 2])

Answer = tuple[int, str, list[bytes]]
"""Status, media type, and the parts of the body."""


class Lane:
    """Answers the two calls.

    Parameters
    ----------
    app : FastAPI
        Flower's application, whose state its authentication looks at.
    state : SiteLinkState
        The SuperLink's state.
    """

    paths = PATHS

    def __init__(self, app: FastAPI, state: SiteLinkState) -> None:
        self._app = app
        self._state = state
        self._few = asyncio.Semaphore(usable_cores())

    async def answer(self, path: str, headers: list[tuple[bytes, bytes]], body: bytearray) -> Answer:
        """Return the answer to a call; who calls is checked as Flower checks it.

        As many at once as there are cores: nothing here waits for a site, and each holds its object thrice.
        """
        async with self._few:
            return await run_in_threadpool(self._answer, path, headers, body)

    def _answer(self, path: str, headers: list[tuple[bytes, bytes]], body: bytearray) -> Answer:
        request: PushObjectRequest | PullObjectRequest
        request = PushObjectRequest() if path == PUSH else PullObjectRequest()
        try:
            request.ParseFromString(memoryview(body))
            self._authenticate(headers, request)
            if isinstance(request, PushObjectRequest):
                stored = fleet_handlers.push_object(request=request, state=self._state)
                return 200, PROTOBUF_MEDIA_TYPE, [stored.SerializeToString()]
            return 200, PROTOBUF_MEDIA_TYPE, self._pull(request)
        except DecodeError:
            return 400, _JSON, [b"{}"]
        except HTTPException as error:
            return error.status_code, _JSON, [b"{}"]
        except FlowerError as error:
            told = API_ERROR_MAP[error.code]
            return told.http_status_code, _JSON, [json.dumps(error.to_json(told.public_message)).encode()]

    def _authenticate(self, headers: list[tuple[bytes, bytes]], request: Any) -> None:
        call: Any = SimpleNamespace(
            headers=Headers(raw=headers), state=SimpleNamespace(protobuf_request=request), app=self._app
        )
        authenticate_node(call)

    def _pull(self, request: PullObjectRequest) -> list[bytes]:
        """Return what Flower's handler would, which copies the content into a message and that into bytes."""
        ended = check_abort(request.run_id, _NO_LONGER, self._state)
        if ended:
            raise FlowerError(
                ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED,
                f"run {request.run_id}, object {request.object_id}: {ended}",
                public_details=f"Object_id: {request.object_id}",
            )
        content = self._state.get_object(request.run_id, request.object_id)
        head = PullObjectResponse(object_found=content is not None, object_available=bool(content))
        if not content:
            return [head.SerializeToString()]
        self._state.store_traffic(request.run_id, bytes_sent=len(content), bytes_recv=0)
        return [head.SerializeToString() + _CONTENT_TAG + _varint(len(content)), content]


def _varint(number: int) -> bytes:
    """Return a length as protobuf writes it."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
