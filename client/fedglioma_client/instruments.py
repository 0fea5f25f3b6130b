"""What the node's process shows of itself: phases of a round, bytes, and when the server last answered."""

import threading
import time

from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedglioma_client.gauges import ClientGauges, Phase

SILENCE_S = 25.0
"""The server counts a silent site as away after 20 seconds; so does the site the server."""
_LOOK_S = 1.0


class Instruments:
    """Turns what the worker does into figures.

    Parameters
    ----------
    gauges : ClientGauges
        What Prometheus reads.
    """

    def __init__(self, gauges: ClientGauges) -> None:
        self._gauges = gauges
        self._phase: Phase = "wait"
        self._since = time.monotonic()
        self._heard = 0.0
        threading.Thread(target=self._look, name="instruments", daemon=True).start()

    def phase(self, name: Phase) -> None:
        """Note that the worker goes on to another phase."""
        now = time.monotonic()
        self._gauges.phase_finished(self._phase, now - self._since)
        self._phase, self._since = name, now

    def step(self, event: str, **facts: object) -> None:
        """Note a step that the audit log hears of too."""
        size, number = facts.get("bytes"), facts.get("round")
        if event == "offered":
            if isinstance(number, str) and number.isdecimal():
                self._gauges.round_started(int(number))
            if isinstance(size, int):
                self._gauges.received(size)
        elif event == "sent" and isinstance(size, int):
            self._gauges.sent(size)

    def heard(self) -> None:
        """Note that the server answered."""
        self._heard = time.monotonic()
        self._gauges.contact(time.time())

    def _look(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            if time.monotonic() - self._heard > SILENCE_S:
                self._gauges.connected(False)

    def listen(self) -> None:
        """Hear of every answer of the server that this process's SuperNode gets."""
        instruments = self

        class Listening(FleetHttpClient):
            """Flower's client, which also says when it was answered."""

            def PullMessages(self, request: PullMessagesRequest) -> PullMessagesResponse:  # noqa: N802
                """Pull messages for a SuperNode."""
                answer = super().PullMessages(request)
                instruments.heard()
                return answer

            def SendNodeHeartbeat(  # noqa: N802
                self, request: SendNodeHeartbeatRequest
            ) -> SendNodeHeartbeatResponse:
                """Send a SuperNode heartbeat."""
                answer = super().SendNodeHeartbeat(request)
                instruments.heard()
                return answer

        fleet_http_connection.FleetHttpClient = Listening  # type: ignore[attr-defined]
