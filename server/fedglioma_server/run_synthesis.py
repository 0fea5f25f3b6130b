"""The ``synthesize`` command: a made-up cohort on disk."""

from pathlib import Path
from typing import Any

from fedglioma.console import Progress
from fedglioma.data.synthetic_cohort import synthesize
from fedglioma.data.synthetic_sites import site_names
from fedglioma.errors import ConfigError


def names_of(spec: str | None) -> tuple[str, ...]:
    """Return names of synthetic hospitals: three by default, as many as asked for, or as named.

    Raises
    ------
    ConfigError
        The number is 0 or no name is left.
    """
    if spec is None:
        return site_names(3)
    if spec.strip().isdecimal():
        if int(spec) < 1:
            raise ConfigError(f"--sites {spec}: at least one hospital")
        return site_names(int(spec))
    names = tuple(name.strip() for name in spec.split(",") if name.strip())
    if not names:
        raise ConfigError(f"--sites {spec!r}: name hospitals, separated by commas, or say how many")
    return names


def write_cohort(
    out: Path,
    *,
    patients: int,
    sites: str,
    size: int,
    overlap: float,
    label_noise: float,
    layout: str,
    by_site: bool,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, Any], str]:
    """Return what was written, as data and as text."""
    summary = synthesize(
        out,
        patients=patients,
        sites=names_of(sites),
        size=size,
        seed=seed,
        overlap=overlap,
        label_noise=label_noise,
        by_site=by_site,
        layout=layout,
        progress=progress,
    )
    counted = f"{summary.patients} synthetic patients, {summary.volumes} volumes, {summary.died} died"
    lines = [f"{counted}: {summary.folder}"]
    lines += [f"  {name}: {count}" for name, count in summary.patients_by_site.items()]
    return summary.model_dump(mode="json"), "\n".join(lines)
