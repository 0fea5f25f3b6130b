"""The counts that a site publishes: under the small-cell rule, in private runs with noise."""

from fedglioma.config.run import RunConfig
from fedglioma.counts import SiteCounts, count_cases
from fedglioma.privacy.noised_counts import noised_counts
from fedglioma_client.intake import secret_of
from fedglioma_client.site import Site
from fedglioma_client.spend import gaussian, spend_once


def told_counts(site: Site, settings: RunConfig) -> SiteCounts:
    """Return the site's counts; with noise once the ledger has what telling them costs.

    The same whenever the same is asked, and then paid for once.

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
    limit = site.config.small_cell_limit
    if settings.privacy != "site":
        return count_cases(cases, limit, settings.tasks)
    found = noised_counts(
        cases,
        limit,
        settings.tasks,
        epsilon=settings.counts_epsilon,
        delta=settings.delta,
        secret=secret_of(site.config),
    )
    mechanism = gaussian(settings.counts_epsilon, settings.delta)
    spend_once(site, "counts", found.question, mechanism, found.counts.model_dump_json().encode())
    return found.counts
