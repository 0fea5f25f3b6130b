from typing import Any

import pytest
import torch

from fedglioma.errors import ConfigError
from fedglioma.models.build import MODEL_NAMES, build_model


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_listed_model_is_built(name: str) -> None:
    model = build_model(name, width=1, pos_grid=(2, 2, 2))
    assert model(torch.zeros(1, 4, 16, 16, 16))["idh"].shape == (1, 2)


def test_same_seed_draws_the_same_weights() -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return build_model("mdpnet", width=1, pos_grid=(2, 2, 2)).state_dict()

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fuse.weight"], other["fuse.weight"])


def test_model_on_the_meta_device_takes_over_a_checkpoint() -> None:
    saved = build_model("mdpnet", width=1, pos_grid=(2, 2, 2)).eval()
    with torch.device("meta"):
        empty = build_model("mdpnet", width=1, pos_grid=(2, 2, 2)).eval()
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(saved.state_dict(), assign=True)
    image = torch.randn(1, 4, 16, 16, 16)
    assert torch.equal(empty(image)["atrx"], saved(image)["atrx"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet"}, "model 'resnet' is unknown: choose mdpnet"),
        ({"name": "mdpnet", "preset": "best"}, "preset 'best' is unknown"),
        ({"name": "mdpnet", "width": 0}, "mdpnet: width: 0: Input should be greater"),
        ({"name": "mdpnet", "pos_grid": (4, 4)}, "mdpnet: pos_grid"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(**arguments)
    assert "\n" not in str(caught.value)
