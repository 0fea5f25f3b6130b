import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from fedglioma.errors import ConfigError
from fedglioma.losses.genotype import LMF, LOCAL_WEIGHT_CAP, class_weights, focal, ldam, ldam_margins

counts_of_two = st.tuples(st.integers(1, 500), st.integers(1, 500))


@settings(deadline=None, max_examples=25)
@given(counts_of_two)
def test_class_weights_are_those_of_scikit_learn(counts: tuple[int, int]) -> None:
    labels = np.repeat([0, 1], counts)
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    assert class_weights(counts).tolist() == pytest.approx(expected.tolist())


@given(counts_of_two)
def test_margins_fall_with_the_fourth_root_and_the_rarest_gets_the_most(counts: tuple[int, int]) -> None:
    margins = ldam_margins(counts, 0.5)
    assert margins.max().item() == pytest.approx(0.5)
    assert (margins[0] / margins[1]).item() == pytest.approx((counts[1] / counts[0]) ** 0.25)


def test_counts_may_be_noisy_fractional_or_nothing() -> None:
    assert ldam_margins((152.7, -3.2)).tolist() == ldam_margins((152.7, 1)).tolist()
    assert class_weights((0, 0)).tolist() == [1, 1]


def test_local_weights_are_capped() -> None:
    assert class_weights((300, 0)).tolist() == pytest.approx([0.50167, 150.5], abs=1e-5)
    assert class_weights((300, 0), LOCAL_WEIGHT_CAP)[1] == 10


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 1), st.integers(0, 1), st.floats(0, 0.5), st.floats(0, 0.5))
def test_ldam_is_its_definition(p: float, label: int, first: float, second: float) -> None:
    u, margins, scale = (1 - p, p), (first, second), 30.0
    ahead = math.exp(scale * (u[label] - margins[label]))
    expected = -math.log(ahead / (ahead + math.exp(scale * u[1 - label])))
    loss = ldam(
        torch.tensor([u], dtype=torch.float64), torch.tensor([label]), torch.tensor(margins).double(), scale
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_is_its_definition(gamma: float) -> None:
    p = 1 / (1 + math.exp(-3))
    loss = focal(torch.tensor([[2.0, -1.0]], dtype=torch.float64), torch.tensor([0]), gamma)
    assert loss.item() == pytest.approx((1 - p) ** gamma * -math.log(p))


def test_focal_without_focus_is_cross_entropy() -> None:
    z, y = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 1, 0])
    torch.testing.assert_close(focal(z, y, 0.0), torch.nn.functional.cross_entropy(z, y, reduction="none"))


@pytest.mark.parametrize("ldam_input", ["prob", "double_softmax", "logit"])
def test_sure_and_right_has_a_finite_gradient(ldam_input: Any) -> None:
    z = torch.tensor([[60.0, -60.0], [-60.0, 60.0]], requires_grad=True)
    LMF((5, 5), ldam_input=ldam_input)(z, torch.tensor([0, 0])).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize(
    ("ldam_input", "ldam_on", "focal_on"),
    [("prob", "p", "z"), ("double_softmax", "p", "p"), ("logit", "z", "z")],
)
def test_lmf_is_the_weighted_sum_of_its_parts(ldam_input: Any, ldam_on: str, focal_on: str) -> None:
    z, y, counts = torch.randn(8, 2, dtype=torch.float64), torch.tensor([0, 1] * 4), (133, 33)
    seen = {"z": z, "p": z.softmax(1)}
    margins = ldam_margins(counts).float().double()
    expected = 1.5 * ldam(seen[ldam_on], y, margins) + 0.5 * focal(seen[focal_on], y)
    loss = LMF(counts, alpha=1.5, beta=0.5, ldam_input=ldam_input)(z, y)
    torch.testing.assert_close(loss, expected * class_weights(counts).float().double()[y])


def test_unknown_label_costs_nothing_and_keeps_the_graph() -> None:
    z = torch.randn(3, 2, requires_grad=True)
    loss = LMF((5, 5))(z, torch.tensor([-1, 1, -1]))
    loss.sum().backward()
    assert loss[0] == loss[2] == 0
    assert z.grad is not None
    assert not z.grad[[0, 2]].any()
    assert z.grad[1].any()


def test_margins_and_weights_stay_out_of_the_exchanged_state() -> None:
    assert not LMF((5, 5)).state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": (math.nan, 3)}, "counts"),
        ({"counts": (3,)}, "counts"),
        ({"counts": (3, 3), "ldam_input": "cosine"}, "choose prob, double_softmax or logit"),
        ({"counts": (3, 3), "gamma": 0.5}, "gamma"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LMF(**arguments)
