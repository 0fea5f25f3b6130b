"""Numbers of the genotype loss, computed by hand from the definitions and BraTS2020's training counts."""

import pytest
import torch

from fedglioma.losses.genotype import LMF, class_weights, focal, ldam_margins

IDH, ATRX, CODEL = (109, 57), (133, 33), (153, 13)
LOGITS = ((2, -1), (-1, 2), (0, 0), (4, -4), (-4, 4))


@pytest.mark.parametrize(
    ("counts", "margins"), [(IDH, (0.4252, 0.5)), (ATRX, (0.3529, 0.5)), (CODEL, (0.2699, 0.5))]
)
def test_margins(counts: tuple[int, int], margins: tuple[float, float]) -> None:
    assert ldam_margins(counts).tolist() == pytest.approx(margins, abs=5e-5)


@pytest.mark.parametrize(
    ("counts", "weights"), [(IDH, (0.7615, 1.4561)), (ATRX, (0.6241, 2.5152)), (CODEL, (0.5425, 6.3846))]
)
def test_class_weights(counts: tuple[int, int], weights: tuple[float, float]) -> None:
    assert class_weights(counts).tolist() == pytest.approx(weights, abs=5e-5)


@pytest.mark.parametrize(
    ("label", "expected"),
    [(0, (0.0001, 40.5073, 10.7599, 0.0, 48.5615)), (1, (44.9207, 0.0001, 15.1733, 52.9749, 0.0))],
)
def test_unweighted_lmf(label: int, expected: tuple[float, ...]) -> None:
    loss = LMF(ATRX)(torch.tensor(LOGITS, dtype=torch.float64), torch.full((5,), label))
    loss = loss / class_weights(ATRX)[label]
    assert loss.tolist() == pytest.approx(expected, abs=1e-4)


def test_focal_alone() -> None:
    loss = focal(torch.tensor(LOGITS, dtype=torch.float64), torch.zeros(5, dtype=torch.int64))
    assert loss.tolist() == pytest.approx((0.0001, 2.7663, 0.1733, 0.0, 7.9950), abs=5e-5)


def test_logits_in_place_of_probabilities_make_a_steep_hinge() -> None:
    wrong = torch.tensor([[-4.0, 4.0]], dtype=torch.float64)
    loss = LMF(ATRX, ldam_input="logit")(wrong, torch.tensor([0])) / class_weights(ATRX)[0]
    # Gap of 8 plus the margin, times 30, plus the focal loss.
    assert loss.item() == pytest.approx(30 * (8 + 0.35288) + 7.995, abs=0.01)
