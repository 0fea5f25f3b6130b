"""The counts that a site publishes: under the small-cell rule, in private runs with noise."""

from pydantic import JsonValue

from fedglioma.config.run import RunConfig
from fedglioma.counts import SiteCounts, count_cases
from fedglioma.privacy.noised_counts import noised_counts
from fedglioma_client.site import Site
from fedglioma_client.spend import gaussian, told_once


def told_counts(site: Site, settings: RunConfig, run: str) -> SiteCounts:
    """Return the site's counts; with noise once the ledger has what telling them costs.

    What a run was told stands for that run, and is paid for once.

    Raises
    ------
    BudgetExhausted
        They would cost a patient more than the site allows.
    PrivacyError
        The ledger is not as it was written.
    IdentityError
        The site's secret cannot be used.
    """
    cases = [prepared.case for prepared in site.cases]
    limit, epsilon, delta = site.config.small_cell_limit, settings.counts_epsilon, settings.delta
    if settings.privacy != "site":
        return count_cases(cases, limit, settings.tasks)

    def tell(key: bytes) -> bytes:
        found = noised_counts(cases, limit, settings.tasks, epsilon=epsilon, delta=delta, key=key)
        return found.counts.model_dump_json().encode()

    terms: dict[str, JsonValue] = {
        "limit": limit,
        "tasks": [task.value for task in settings.tasks],
        "epsilon": epsilon,
        "delta": delta,
    }
    told = told_once(site, run, "counts", terms, gaussian(epsilon, delta), tell)
    return SiteCounts.model_validate_json(told)
