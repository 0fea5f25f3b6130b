"""Context -> Site: the only difference between a real hospital and a simulated one.

A real node carries ``site-config``, the path of its own settings; a virtual node carries ``partition-id``
and the run names the simulation plan of this machine.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from flwr.app import Context

from fedglioma.config.run import RunConfig
from fedglioma.config.site import SiteConfig, load_site_config
from fedglioma.data.cache import Cache
from fedglioma.data.cache_identity import check_cache
from fedglioma.data.cohort import CONSENT, read_cohort
from fedglioma.data.plan import PLAN_KEY, SitePlan, load_plan, plan_path
from fedglioma.data.prepare import PrepareSettings, prepare_cases
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError
from fedglioma_client.intake import secret_of

logger = logging.getLogger(__name__)

SITE_CONFIG_KEY = "site-config"


@dataclass(frozen=True)
class Site:
    """A hospital as its node sees it: settings and prepared training cases."""

    config: SiteConfig
    cases: tuple[PreparedCase, ...]
    synthetic: bool = False


def resolve_config(context: Context) -> SiteConfig:
    """Return the settings of the site that a node stands for; no data are touched.

    Raises
    ------
    ConfigError
        The node carries neither settings nor a place in a simulation, or its settings are wrong.
    """
    place = _place(context)
    return load_site_config(place) if isinstance(place, Path) else place.settings


class _InRun(SiteConfig):
    """A hospital's own settings in a simulation: ``state`` is the run's, ``own_state`` the hospital's."""

    own_state: Path

    @property
    def lasting_state(self) -> Path:
        """Where the site's secret and privacy ledger lie, which outlast every run."""
        return self.own_state


@dataclass(frozen=True)
class _Simulated:
    """A hospital of a simulation, and the run folder that it belongs to."""

    plan: SitePlan
    run_folder: Path

    @property
    def settings(self) -> SiteConfig:
        """Its settings; what it remembers lies with the run.

        But for secret and privacy ledger of a hospital that a file describes: what its patients lost counts
        over all runs, and in its own ledger.
        """
        config, own = self.plan.settings, self.run_folder / "work" / "sites" / self.plan.settings.site
        if self.plan.described:
            return _InRun(**dict(config) | {"state": own, "own_state": config.state})
        return config.model_copy(update={"state": own})


def _place(context: Context) -> Path | _Simulated:
    """Return where a real node's settings lie, or a virtual node's part of the simulation plan."""
    node: Mapping[str, object] = context.node_config
    if SITE_CONFIG_KEY in node:
        return Path(str(node[SITE_CONFIG_KEY]))
    path = plan_path(context.run_config)
    if "partition-id" in node and path is not None:
        plan = load_plan(path)
        return _Simulated(plan.sites[int(str(node["partition-id"]))], plan.run_folder)
    raise ConfigError(f"node: carries neither {SITE_CONFIG_KEY} nor partition-id with a run's {PLAN_KEY}")


def agree(config: SiteConfig, settings: RunConfig) -> None:
    """Raise ``PolicyError`` unless the site agrees to a run's terms; asked of every message, before data."""
    config.policy.check(
        model=settings.model,
        strategy=settings.strategy,
        payload=settings.payload,
        purpose=settings.purpose,
        rounds=settings.rounds,
        local_epochs=settings.local_epochs,
    )
    config.privacy.check(settings.privacy_terms, secure_aggregation=settings.secure_aggregation)


def resolve_site(context: Context, settings: RunConfig) -> Site:
    """Return the site that a node stands for.

    Raises
    ------
    ConfigError
        The node carries neither, or the run asks a real node to read a simulation plan.
    IdentityError
        Something in a real site's cache may say who the patients are.
    """
    place = _place(context)
    if isinstance(place, Path):
        if PLAN_KEY in context.run_config:
            raise ConfigError("run configuration: a real site does not read a simulation plan")
        site = _real_site(place, PrepareSettings.of(settings), settings.purpose)
        # Patients are prepared once; what they may lose is asked of the file each time, as the policy is.
        limits = load_site_config(place).privacy
        return replace(site, config=site.config.model_copy(update={"privacy": limits}))
    return Site(place.settings, place.plan.cases)


def site_of(context: Context) -> str:
    """Return the site's name; ``unknown`` where its settings cannot be read: a refusal is due even so."""
    try:
        return resolve_config(context).site
    except ConfigError:
        return "unknown"


@lru_cache(maxsize=1)
def _real_site(path: Path, common: PrepareSettings, purpose: str) -> Site:
    config = load_site_config(path)
    layout = None if config.layout == "auto" else config.layout
    cohort = read_cohort(config.data, layout=layout, secret=secret_of(config), purpose=purpose)
    if others := sum(finding.code == CONSENT for finding in cohort.exclusions):
        logger.warning("%d patients did not agree to %s", others, purpose)
    settings = common.model_copy(update={"brain_extractor": config.brain_extractor})
    everybody = {case.patient for case in cohort.cases} | {finding.patient for finding in cohort.exclusions}
    check_cache(config.cache, everybody)
    prepared = prepare_cases(cohort.cases, settings, Cache(config.cache), workers=config.workers)
    check_cache(config.cache, everybody)
    return Site(config, prepared.cases, synthetic=cohort.synthetic)
