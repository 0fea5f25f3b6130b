"""Which networks can be trained privately: each patient's gradient must be there, and be theirs alone."""

from collections.abc import Iterator

from opacus.validators import ModuleValidator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from fedglioma.errors import PrivacyError

REMEDY = "choose preset recommended, whose layers keep patients apart, or another network"


def require_private(module: nn.Module) -> None:
    """Refuse a network whose gradients cannot be taken per patient, naming every layer and the remedy.

    Asks Opacus' validator (``opacus.validators.ModuleValidator``) and the house's own rules: no batch
    statistics, trained or not; no running statistics, which would leave a site without noise; every trained
    parameter in a layer of its own, without parts and without buffers, in one layer only.

    Raises
    ------
    PrivacyError
        The network breaks a rule, or is not in training mode.
    """
    if not module.training:
        raise PrivacyError("private training: the network is in evaluation mode: call train() first")
    wrong = list(_complaints(module))
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise PrivacyError(f"private training: this network cannot be trained privately: {shown}; {REMEDY}")


def followed_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that own a trained parameter, by path."""
    return {path: layer for path, layer in module.named_modules() if _trained(layer)}


def _trained(layer: nn.Module) -> list[str]:
    return [name for name, p in layer.named_parameters(recurse=False) if p.requires_grad]


def _complaints(module: nn.Module) -> Iterator[str]:
    named: set[str] = set()
    for path, layer in module.named_modules():
        complaint = _statistics(layer) or _owner(layer)
        if complaint:
            named.add(path)
            yield f"{path or 'the network'} ({type(layer).__name__}) {complaint}"
    owners: dict[int, str] = {}
    for path, layer in followed_layers(module).items():
        for name, parameter in layer.named_parameters(recurse=False):
            if id(parameter) in owners:
                yield f"{path}.{name} is the same parameter as {owners[id(parameter)]}"
            owners.setdefault(id(parameter), f"{path}.{name}")
    if not named:  # Opacus names no layer
        for error in ModuleValidator.validate(module, strict=False):
            yield str(error).rstrip(".")


def _statistics(layer: nn.Module) -> str | None:
    if isinstance(layer, _BatchNorm):
        return "normalises over the batch, so that patients see each other"
    if isinstance(layer, _NormBase) and layer.track_running_stats:
        return "keeps running statistics, which no noise protects"
    return None


def _owner(layer: nn.Module) -> str | None:
    if not _trained(layer):
        return None
    if next(layer.children(), None) is not None:
        return "owns parameters beside layers of its own; they belong into a layer without parts"
    if next(layer.buffers(recurse=False), None) is not None:
        return "has both parameters and buffers"
    if "forward" in vars(layer):
        return "runs something else than its own forward, as recomputed activations do; switch that off"
    return None
