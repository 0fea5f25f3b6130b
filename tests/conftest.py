"""What every test starts from, and which worker takes it."""

import random
import signal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

FEDERATION = "tests/federation"

# A law is tried on the same examples every time, and no clock judges it: whether the tests pass must not hang
# on luck or on what else the machine does. --hypothesis-profile=explore draws new examples.
settings.register_profile(
    "explore",
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("repeatable", settings.get_profile("explore"), derandomize=True)
settings.load_profile("repeatable")

# A shell that runs the tests in the background has them ignore SIGINT, and what they start would too:
# the tests that press Ctrl-C need the signal to arrive.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin every test with the same random numbers, whichever tests this worker has run before."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - whoever draws from the global generator
    torch.manual_seed(0)


class OneFederationAtATime(LoadFileScheduling):
    """Workers take one file after the other, and one of them, from the start, all federations of processes.

    Two federations at once would starve each other into their time limits. They take longest, so they come
    first, and what else there is fills the time in which they wait.
    """

    def _split_scope(self, nodeid: str) -> str:
        return FEDERATION if nodeid.startswith(f"{FEDERATION}/") else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneFederationAtATime:
    """Give the tests out, in the order of their folders."""
    config.option.loadscopereorder = False  # xdist would begin with the file of the most tests
    return OneFederationAtATime(config, log)
