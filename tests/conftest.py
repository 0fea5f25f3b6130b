"""What every test starts from, and which worker takes it."""

import signal

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

FEDERATION = "tests/federation"

# A shell that runs the tests in the background has them ignore SIGINT, and what they start would too:
# the tests that press Ctrl-C need the signal to arrive.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
