"""Arms that would be trained twice: two names for the same settings make no comparison."""

from collections.abc import Mapping
from itertools import combinations

from fedglioma.config.resolved import resolved
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError
from fedglioma_server.study_file import Protocol, Study

_MOST_PAIRS = 5


def require_apart(study: Study, settings: Mapping[str, Mapping[Protocol, RunConfig]]) -> None:
    """Refuse a study of which two arms are the same training under every protocol.

    Parameters
    ----------
    settings : mapping of an arm's name to its settings by protocol

    Raises
    ------
    ConfigError
        Two arms are one; the message names all such pairs, five at most.
    """
    values = {
        arm: {protocol: resolved(own) for protocol, own in by_protocol.items()}
        for arm, by_protocol in settings.items()
    }
    same = [f"{one} and {other}" for one, other in combinations(values, 2) if values[one] == values[other]]
    if same:
        more = f" and {len(same) - _MOST_PAIRS} more pairs" if len(same) > _MOST_PAIRS else ""
        raise ConfigError(
            f"{study.file}: arms: the same training under two names: {'; '.join(same[:_MOST_PAIRS])}{more}: "
            "they differ in nothing that has an effect; leave one out, or change what you meant to compare"
        )
