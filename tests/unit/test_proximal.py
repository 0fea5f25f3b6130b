import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedglioma.errors import ConfigError, ProtocolError
from fedglioma.losses.proximal import proximal_penalty


def test_penalty_is_half_mu_times_the_squared_distance() -> None:
    weights, origin = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])], [torch.zeros(2), torch.ones(1, 1)]
    assert proximal_penalty(weights, origin, 0.1).item() == pytest.approx(0.05 * (1 + 4 + 4))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=4), min_size=1, max_size=3), st.floats(0, 10))
def test_gradient_is_mu_times_the_distance(values: list[list[float]], mu: float) -> None:
    weights = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
    origin = [torch.randn(len(v), dtype=torch.float64, requires_grad=True) for v in values]
    proximal_penalty(weights, origin, mu).backward()
    for w, a in zip(weights, origin, strict=True):
        torch.testing.assert_close(w.grad, mu * (w - a).detach())
        assert a.grad is None


def test_nothing_to_pull_costs_nothing() -> None:
    assert proximal_penalty([], [], 1.0).item() == 0


@pytest.mark.parametrize("mu", [-0.1, float("nan")])
def test_negative_pull_is_refused(mu: float) -> None:
    with pytest.raises(ConfigError, match="mu"):
        proximal_penalty([torch.zeros(1)], [torch.zeros(1)], mu)


@pytest.mark.parametrize("origin", [[], [torch.zeros(1)], [torch.zeros(3), torch.zeros(3)]])
def test_weights_of_another_model_are_refused(origin: list[torch.Tensor]) -> None:
    with pytest.raises(ProtocolError, match="differ in shape or number"):
        proximal_penalty([torch.zeros(3)], origin, 1.0)
