import numpy as np
import pytest
import torch
from flwr.app import Array
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.case import GENES
from fedglioma.config.run import RunConfig
from fedglioma.errors import ProtocolError
from fedglioma.training.learner import EQUAL_COUNTS, build_learner, layout_of
from fedglioma.weights import (
    GROUPS,
    TRUNK,
    Layout,
    from_record,
    group_of,
    pack,
    shared_state,
    to_record,
    unpack,
)

TINY = RunConfig(width=1, crop=16)


def test_each_gene_owns_its_head_and_its_uncertainty_weight():
    learner = build_learner(TINY, EQUAL_COUNTS)
    names = Layout.of(learner.model, learner.loss).shapes
    for gene in GENES:
        own = [name for name, _ in names if group_of(name) == gene.value]
        assert f"loss.weights.{gene.value}.log_variance" in own
        assert all(
            name.startswith((f"model.heads.{gene.value}.", f"loss.weights.{gene.value}.")) for name in own
        )
        assert sum("heads" in name for name in own) == 6


def test_every_parameter_travels_exactly_once():
    learner = build_learner(TINY, EQUAL_COUNTS)
    expected = sum(p.numel() for p in [*learner.model.parameters(), *learner.loss.parameters()])
    assert sum(Layout.of(learner.model, learner.loss).sizes.values()) == expected


def test_weights_survive_packing_the_wire_and_unpacking():
    torch.manual_seed(0)
    one, other = build_learner(TINY, EQUAL_COUNTS), build_learner(TINY, EQUAL_COUNTS)
    unpack(from_record(to_record(pack(one.model, one.loss))), other.model, other.loss)
    for (name, a), b in zip(
        shared_state(one.model, one.loss).items(), shared_state(other.model, other.loss).values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_packed_weights_do_not_follow_the_model():
    learner = build_learner(TINY, EQUAL_COUNTS)
    arrays = pack(learner.model, learner.loss)
    before = arrays[TRUNK].copy()
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(1)
    assert np.array_equal(arrays[TRUNK], before)


def test_running_statistics_travel_with_the_trunk_and_counters_do_not():
    layout = layout_of(RunConfig(preset="reference", width=1, crop=16))
    names = [name for name, _ in layout.shapes]
    assert any(name.endswith("running_mean") for name in names)
    assert not any(name.endswith("num_batches_tracked") for name in names)
    assert all(group_of(name) == TRUNK for name in names if "running_" in name)


def test_margins_and_class_weights_do_not_travel():
    names = [name for name, _ in layout_of(TINY).shapes if name.startswith("loss.")]
    assert names == [f"loss.weights.{gene.value}.log_variance" for gene in GENES]


def test_fixed_weighting_sends_no_loss_weights():
    names = [name for name, _ in layout_of(RunConfig(width=1, crop=16, weighting="fixed")).shapes]
    assert not any(name.startswith("loss.") for name in names)


def test_layout_digest_differs_between_widths_grids_and_presets():
    digests = {
        layout_of(settings).digest
        for settings in (
            TINY,
            RunConfig(width=2, crop=16),
            RunConfig(width=1, crop=32),
            RunConfig(width=1, crop=16, preset="reference"),
        )
    }
    assert len(digests) == 4


def test_layout_on_the_meta_device_equals_the_real_one():
    learner = build_learner(TINY, EQUAL_COUNTS)
    assert layout_of(TINY) == Layout.of(learner.model, learner.loss)


@given(group=st.sampled_from(GROUPS), change=st.sampled_from(["missing", "long", "float64", "two axes"]))
@settings(max_examples=20, deadline=None)
def test_arrays_of_another_network_are_refused(group, change):
    layout = layout_of(TINY)
    arrays = {name: np.zeros(size, np.float32) for name, size in layout.sizes.items()}
    if change == "missing":
        del arrays[group]
    elif change == "long":
        arrays[group] = np.zeros(len(arrays[group]) + 1, np.float32)
    elif change == "float64":
        arrays[group] = arrays[group].astype(np.float64)
    else:
        arrays[group] = arrays[group][None]
    with pytest.raises(ProtocolError, match=group):
        layout.named(arrays)


@pytest.mark.parametrize(
    "header", [b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',", b"\x93NUMPY" + b"\xff" * 64, b""]
)
def test_hostile_array_is_refused_as_undecodable(header):
    record = to_record({name: np.zeros(3, np.float32) for name in GROUPS})
    record["idh"] = Array("float32", (3,), "numpy.ndarray", header)
    with pytest.raises(ProtocolError, match="group idh cannot be decoded"):
        from_record(record)
