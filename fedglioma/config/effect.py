"""Which settings a run has no use for: those of another network, strategy, privacy or preparation."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fedglioma.config.run import RunConfig

OWN_SWITCHES: dict[str, tuple[str, ...]] = {
    "mdpnet": ("path2", "attention", "guide", "guide_mode", "guide_detach", "head_act"),
    "sgpnet": ("targets", "head_1x1", "detach_k"),
}
"""Settings of one network alone."""

_OF_NOISE = ("noise_multiplier", "target_epsilon", "delta", "clip_norm", "accountant")
_OF_PATIENTS = ("sampling_rate", "clipping", "counts_epsilon")
_OF_STRATEGIES = {
    "proximal_mu": ("fedprox",),
    "server_lr": ("fedavgm", "fedadam", "fedyogi"),
    "server_momentum": ("fedavgm",),
    "beta_1": ("fedadam", "fedyogi"),
    "beta_2": ("fedadam", "fedyogi"),
    "tau": ("fedadam", "fedyogi"),
    "trim": ("trimmed_mean",),
    "byzantine": ("multikrum",),
}


class Idle(NamedTuple):
    """A setting without effect: ``because`` of what another one is, and which values of it would use it."""

    name: str
    because: str
    change: str = ""
    to: tuple[str, ...] = ()


def without_effect(settings: "RunConfig") -> frozenset[str]:
    """Return the names of the settings whose value changes nothing in this run."""
    return frozenset(found.name for found in _idle(settings))


def idle_settings(settings: "RunConfig") -> list[str]:
    """Return the settings that were changed and that the run has no use for."""
    return list(dict.fromkeys(found.name for found in _changed(settings)))


def require_effect(settings: "RunConfig", written: Iterable[str] | None = None) -> None:
    """Raise ``ValueError`` for settings that were changed and that the run has no use for.

    For settings that somebody writes: who believes in a protection or compares two values that change nothing
    is told. What a run or model of before has on record stays readable. A value that is the default, or the
    network's own, is never refused.

    Parameters
    ----------
    written : iterable of str, optional
        The names to look at; by default all.
    """
    names = None if written is None else frozenset(written)
    reasons: dict[tuple[str, str], list[Idle]] = {}
    for found in _changed(settings):
        if names is None or found.name in names:
            reasons.setdefault((found.because, found.change), []).append(found)
    if reasons:
        raise ValueError("; ".join(_words(group) for group in reasons.values()))


def _changed(settings: "RunConfig") -> Iterator[Idle]:
    ours, usual = settings.model_dump(), type(settings)(model=settings.model).model_dump()
    defaults = {name: field.default for name, field in type(settings).model_fields.items()}
    for found in _idle(settings):
        if ours[found.name] not in (defaults[found.name], usual[found.name]):
            yield found


def _words(group: list[Idle]) -> str:
    """Return what is wrong with settings that one and the same setting leaves without effect."""
    names = list(dict.fromkeys(found.name for found in group))
    said = f"{' and '.join(names)}: without effect while {group[0].because}"
    out = f"; leave {'it' if len(names) == 1 else 'them'} out"
    values = [value for value in group[0].to if all(value in found.to for found in group)]
    if not values:
        return said + out
    return f"{said}{out}, or set {group[0].change} to {' or '.join(values)}"


def _idle(settings: "RunConfig") -> Iterator[Idle]:
    yield from _of_privacy(settings)
    yield from _of_network(settings)
    yield from _of_loss(settings)
    yield from _of_ways(settings)


def _of_privacy(settings: "RunConfig") -> Iterator[Idle]:
    because = f"privacy is {settings.privacy}"
    if settings.privacy == "none":
        yield from (Idle(name, because, "privacy", ("site", "central")) for name in _OF_NOISE)
    if settings.privacy != "site":
        yield from (Idle(name, because, "privacy", ("site",)) for name in _OF_PATIENTS)
    if not settings.secure_aggregation:
        off = ("secure_aggregation is false", "secure_aggregation", ("true",))
        yield Idle("secure_range", *off)
        if not settings.secure_statistics:
            yield Idle("secure_wait_s", *off)


def _of_network(settings: "RunConfig") -> Iterator[Idle]:
    model = f"model is {settings.model}"
    for owner, names in OWN_SWITCHES.items():
        if settings.model != owner:
            yield from (Idle(name, model, "model", (owner,)) for name in names)
    if settings.model == "sgpnet":
        yield from (Idle(name, model) for name in ("preset", "norm"))
        yield from _of_targets(settings)
    if settings.model == "mdpnet" and settings.path2 == "none":
        first, second = settings.attention.split("+")
        if first == "vit" and second != "rda":  # what is built without it, too
            yield Idle("attention", f"path2 is none: of {settings.attention} only {first} is built")
    if settings.model == "mdpnet" and settings.guide == "none":
        guide = ("guide is none", "guide", ("idh+atrx", "idh", "atrx"))
        yield from (Idle(name, *guide) for name in ("guide_mode", "guide_detach"))


def _of_targets(settings: "RunConfig") -> Iterator[Idle]:
    because = f"targets is {settings.targets}"
    if settings.targets == "seg":
        yield Idle("head_1x1", because, "targets", ("both", "idh", "random"))
    if settings.targets in ("seg", "idh"):
        yield Idle("detach_k", because, "targets", ("both", "random"))


def _of_loss(settings: "RunConfig") -> Iterator[Idle]:
    model = f"model is {settings.model}"
    if not settings.weighs_markers:
        yield from (Idle(name, model) for name in ("weighting", "weighting_form", "ldam_input", "counts"))
    elif settings.task_weighting == "fixed":
        yield Idle("weighting_form", "weighting is fixed", "weighting", ("uncertainty",))
    if not settings.genes:
        seg = settings.model == "sgpnet"
        yield Idle("head_lr", "targets is seg" if seg else f"{model}, which reads no marker")


def _of_ways(settings: "RunConfig") -> Iterator[Idle]:
    if settings.own_intensities:
        because = f"preprocessing is {settings.preprocessing}"
        standard = ("preprocessing", ("standard", "fusion"))
        yield from (Idle(name, because, *standard) for name in ("bias_correction", "standardize"))
    if settings.preprocessing != "sgpnet":
        yield Idle("zscore", f"preprocessing is {settings.preprocessing}", "preprocessing", ("sgpnet",))
    if not settings.flips:
        yield Idle("one_flip", "flips is false", "flips", ("true",))
    if settings.selection == 0:
        yield Idle("early_stopping", "selection is 0: no patients say when")
    strategy = f"strategy is {settings.strategy}"
    for name, those in _OF_STRATEGIES.items():
        if settings.strategy not in those:
            yield Idle(name, strategy, "strategy", those)
