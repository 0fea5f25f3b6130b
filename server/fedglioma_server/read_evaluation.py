"""The centre's cohort folders -> prepared cases, divided into those that choose and those that report."""

from collections.abc import Sequence
from pathlib import Path

from fedglioma.config.run import RunConfig
from fedglioma.config.site import site_name
from fedglioma.console import Progress, silent
from fedglioma.data.cache import Cache
from fedglioma.data.cohort import read_cohorts
from fedglioma.data.prepare import PrepareSettings, prepare_cases
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.split import Split, assign_split
from fedglioma.errors import ConfigError
from fedglioma_server.evaluation_cohort import EvaluationCohort
from fedglioma_server.gather import summarise


def read_evaluation(
    folders: Sequence[Path],
    settings: RunConfig,
    cache: Path,
    *,
    workers: int = 1,
    progress: Progress = silent,
) -> EvaluationCohort:
    """Return the centre's patients, divided in the ratio of ``selection`` and ``report``.

    Raises
    ------
    ConfigError
        Cohorts are named, and both shares are 0.
    DataError
        There is no cohort, one cannot be read, or none of its cases can be used.
    """
    shares = settings.selection + settings.report
    if shares == 0:
        raise ConfigError("cohorts: selection and report are both 0; give the patients something to do")
    cohort = read_cohorts(folders, purpose=settings.purpose)
    cases = [case.model_copy(update={"site": site_name(case.site)}) for case in cohort.cases]
    prepared = prepare_cases(
        cases,
        PrepareSettings.of(settings),
        Cache(cache),
        workers=workers,
        progress=progress,
    )
    selection: list[PreparedCase] = []
    report: list[PreparedCase] = []
    for item in prepared.cases:
        split = assign_split(
            item.case.patient,
            seed=settings.seed,
            selection=0.0,
            report=min(settings.report / shares, 1 - 1e-9),
        )
        (report if split is Split.REPORT else selection).append(item)
    return EvaluationCohort(
        selection=tuple(selection),
        report=tuple(report),
        exclusions=(*cohort.exclusions, *prepared.exclusions),
        warnings=(*cohort.warnings, *prepared.warnings),
        issues=tuple(
            summarise(
                [*cohort.exclusions, *prepared.exclusions],
                [*cohort.warnings, *prepared.warnings],
                [case.patient for case in cohort.cases],
            )
        ),
        names=tuple(folder.resolve().name for folder in folders),
        synthetic=cohort.synthetic,
    )
