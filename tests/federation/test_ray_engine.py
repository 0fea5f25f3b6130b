"""Flower's own simulation against the inline engine: the same two apps, the same weights."""

import os

import pytest

from fedglioma.data.plan import PLAN_VARIABLE
from fedglioma.errors import ConfigError, QuorumError
from fedglioma.training.learner import layout_of
from fedglioma.weights import GROUPS
from fedglioma_client.app import app as client_app
from fedglioma_server.app import make_app
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.inline import run_inline
from fedglioma_server.ray_engine import run_ray
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.simulate import plan_file
from tests.federation_fixture import TINY, make_plan

pytestmark = [pytest.mark.flower, pytest.mark.slow]


def weights_after(plan):
    return Checkpoints(RunFolder(plan.run_folder).checkpoints, layout_of(plan.settings)).load(
        plan.settings.rounds
    )


def by_ray(plan):
    run_ray(
        lambda _line: None,
        client_app,
        sites=len(plan.sites),
        plan=plan_file(RunFolder(plan.run_folder)),
        threads=1,
        gpu=False,
    )


def by_inline(plan):
    path = str(plan_file(RunFolder(plan.run_folder)))
    run_inline(make_app(), client_app, sites=len(plan.sites), run_config={"simulation": path})


@pytest.mark.filterwarnings("ignore")
def test_ray_and_inline_give_the_same_bits(tmp_path):
    pytest.importorskip("ray", reason="the ray extra is not installed")
    inline, ray = make_plan(tmp_path / "inline"), make_plan(tmp_path / "ray")
    by_inline(inline)
    by_ray(ray)
    one, other = weights_after(inline), weights_after(ray)
    for group in GROUPS:
        assert one[group].tobytes() == other[group].tobytes(), group
    assert RunFolder(ray.run_folder).read().status == "completed"
    assert PLAN_VARIABLE not in os.environ


@pytest.mark.filterwarnings("ignore")
def test_failure_under_ray_is_told_as_what_it_is(tmp_path):
    pytest.importorskip("ray", reason="the ray extra is not installed")
    plan = make_plan(tmp_path, TINY.model_copy(update={"quorum": 4}))
    with pytest.raises(QuorumError, match="3 of 3 sites joined, 4 are needed"):
        by_ray(plan)


def test_without_ray_the_engine_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr("fedglioma_server.ray_engine.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'fedglioma\[ray\]'"):
        by_ray(make_plan(tmp_path))
