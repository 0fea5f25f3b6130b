"""What happens between two rounds, once the round before is on record."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord

from fedglioma.config.run import RunConfig
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.heldout import HeldOut
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.runstatus import Stopped
from tests.round_fixture import LAYOUT, site, strategy_of


class Measured(HeldOut):
    """A held-out evaluation that measures nothing."""

    def _complete(self, number: int, record: ArrayRecord) -> None:
        return


def heldout(folder: Path, done: int = 0, **listeners: Any) -> HeldOut:
    settings = RunConfig(payload="float32", rounds=3)
    return Measured(
        folder=RunFolder(folder),
        checkpoints=Checkpoints(folder, LAYOUT),
        learner=None,
        dataset=None,
        batch_size=1,
        device=torch.device("cpu"),
        strategy=strategy_of(folder, [site("henan")], settings, done=done),
        rounds=[],
        finished=lambda _line: None,
        **listeners,
    )


@pytest.mark.parametrize(("done", "calls"), [(0, [1, 2]), (1, [1]), (2, [])])
def test_late_sites_are_asked_between_rounds_and_not_before_the_first_or_after_the_last(
    done, calls, tmp_path
):
    asked = []
    evaluate = heldout(tmp_path, done, between=lambda: asked.append(number))
    for number in range(4 - done):
        evaluate(number, ArrayRecord())
    assert asked == calls


def test_stop_ends_the_run_before_late_sites_are_asked(tmp_path):
    asked = []
    evaluate = heldout(tmp_path, stop_asked=lambda: True, between=lambda: asked.append(1))
    with pytest.raises(Stopped):
        evaluate(1, ArrayRecord())
    assert asked == []
