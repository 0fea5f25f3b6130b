"""Joining the federation: the node is started, watched and started again, and everything is said in words.

This process is light and stays; the node that it starts is Flower's connection and the training, and may
end for many reasons: the server was restarted, the network was cut, memory ran out, a driver failed.
"""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedglioma.config.site import SiteConfig
from fedglioma.errors import ConfigError, FedGliomaError, IdentityError, PolicyError
from fedglioma_client.ends import BROKEN, FAILED, FINISHED
from fedglioma_client.reach import RETRIED, Door, Knock, knock

logger = logging.getLogger(__name__)

SHORTEST_S = 1.0
LONGEST_S = 60.0
STABLE_S = 60.0
"""A node that lived this long was well; its end starts the back-off anew."""
LOOK_S = 15.0
POLL_S = 0.2
_STOP_S = 15.0


@dataclass
class Backoff:
    """Waits that double from a second to a minute, each with up to a fifth of chance."""

    next_s: float = SHORTEST_S

    def draw(self) -> float:
        """Return the seconds to wait now; hospitals that lost one server do not return in step."""
        wait = self.next_s * random.uniform(0.8, 1.2)  # noqa: S311 (no secret)
        self.next_s = min(2 * self.next_s, LONGEST_S)
        return wait

    def reset(self) -> None:
        """Begin with the shortest wait again."""
        self.next_s = SHORTEST_S


def join(
    config: SiteConfig,
    settings: Path,
    *,
    once: bool,
    log_level: str = "INFO",
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Take part until told to stop; with ``once`` until the run has finished.

    Raises
    ------
    IdentityError
        The server is not the consortium's, or does not know this site's key any more.
    PolicyError
        The server runs another version than this site installed.
    FedGliomaError
        The site's audit log is broken.
    """
    backoff, said = Backoff(), ""
    while True:
        found = knock(config)
        require_welcome(found)
        if found.door is not Door.OPEN:
            said = _say(found, said, backoff.next_s)
            wait(backoff.draw())
            continue
        said = ""
        logger.info("%s; waiting for work in run %s", found.detail, found.told.get("run", "?"))
        began = time.monotonic()
        code = _watch(config, settings, once=once, log_level=log_level)
        if code == FINISHED and once:
            logger.info("the run has finished; nothing more is asked of this site")
            return
        _require_hope(code)
        if time.monotonic() - began > STABLE_S:
            backoff.reset()
        pause = backoff.draw()
        logger.warning("the connection ended (%s); joining again in %.0f s", _how(code), pause)
        wait(pause)


def require_welcome(found: Knock) -> None:
    """Raise for what another try cannot mend."""
    if found.door is Door.OPEN or found.door in RETRIED:
        return
    told = f"{found.detail}; {found.remedy}"
    raise PolicyError(told) if found.door is Door.VERSION else IdentityError(told)


def _require_hope(code: int) -> None:
    """Raise where a node ended for a reason of this site's own that starting again cannot mend."""
    for kind in (ConfigError, IdentityError):
        if code == kind.exit_code:
            raise kind("the node cannot start; the reason stands above")
    if code == BROKEN:
        raise FedGliomaError(
            "the audit log is broken, and nothing goes on without it; the reason stands above"
        )


def _say(found: Knock, said: str, wait_s: float) -> str:
    if found.detail != said:
        logger.warning("%s; trying again, next in %.0f s (%s)", found.detail, wait_s, found.remedy)
    return found.detail


def _watch(config: SiteConfig, settings: Path, *, once: bool, log_level: str) -> int:
    """Run a node to its end, and return how it ended; the node goes when this process is told to."""
    command = [sys.executable, "-m", "fedglioma_client.node", str(settings.resolve())]
    command += ["--parent", str(os.getpid()), "--log-level", log_level, *(["--once"] if once else [])]
    # A session of its own: Ctrl-C reaches this process alone, which then ends the node in order.
    node = subprocess.Popen(command, start_new_session=True)  # noqa: S603 (our own module)
    try:
        looked, away = time.monotonic(), False
        while (code := node.poll()) is None:
            time.sleep(POLL_S)
            if time.monotonic() - looked >= LOOK_S:
                looked, away = time.monotonic(), _look(config, away)
        return code
    finally:
        _end(node)


def _look(config: SiteConfig, away: bool) -> bool:
    """Return whether the server is away, and say when it goes and comes back; the node waits in silence."""
    found = knock(config)
    if found.door in RETRIED and not away:
        logger.warning("%s; waiting for it (%s)", found.detail, found.remedy)
    if found.door is Door.OPEN and away:
        logger.info("%s again", found.detail)
    require_welcome(found)
    return found.door is not Door.OPEN


def _end(node: subprocess.Popen[bytes]) -> None:
    if node.poll() is not None:
        return
    node.terminate()
    try:
        node.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()


def _how(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", out of memory?" if name == "SIGKILL" else "")
    if code in (0, FAILED):
        return "the server or the network closed it"
    if code == FedGliomaError.exit_code:
        return "this site cannot go on; the reason stands above"
    return f"exit code {code}; the reason stands above"
