"""Everything that fedglioma raises on purpose.

::

    FedGliomaError              1   the run failed
    ├── Diverged                1   training ran away
    ├── ConfigError             2   a setting, a file or an argument is wrong
    ├── QuorumError             3   too few sites answered in time
    ├── DataError               4   the data cannot be used
    │   ├── ModalityMissing         a case lacks what was asked of it
    │   ├── NoUsableCase            every patient was left out; names the first
    │   └── ScaleError              intensities do not fit the consortium's scale
    ├── PolicyError             5   the site's policy refuses
    ├── PrivacyError            5   what protects the patients does not hold
    │   └── BudgetExhausted     6   the site's privacy budget does not allow it
    ├── ProtocolError           1   a message or a checkpoint is not what was agreed
    ├── AggregationError        1   the sites' updates cannot be combined
    └── IdentityError           7   a certificate or key does not prove who it should

The number is the exit code of a command that ends with the error; ``docs/exit-codes.md`` has a
paragraph for each. A message names the place, the value and the remedy, in one line.
"""

from typing import ClassVar


class FedGliomaError(Exception):
    """The run failed for a reason that its message gives."""

    exit_code: ClassVar[int] = 1


class Diverged(FedGliomaError):
    """Training ran away; the message has numbers of the network alone and may be told to anybody."""


class ConfigError(FedGliomaError):
    """A setting, a file or an argument is wrong; nothing was started."""

    exit_code = 2


class QuorumError(FedGliomaError):
    """Too few sites answered in time for the round to count."""

    exit_code = 3


class DataError(FedGliomaError):
    """The data cannot be used as they are."""

    exit_code = 4


class ModalityMissing(DataError):
    """A case lacks a modality that was asked of it and cannot be spared."""


class NoUsableCase(DataError):
    """Every patient was left out. ``counts`` names nobody; the whole message names the first patient."""

    def __init__(self, counts: str, first: str) -> None:
        super().__init__(counts, first)
        self.counts = counts
        self.first = first

    def __str__(self) -> str:
        return f"{self.counts}; {self.first}" if self.first else self.counts


class ScaleError(DataError):
    """A site's intensities lie too far from the consortium's scale; the message names no case."""


class PolicyError(FedGliomaError):
    """The site's own policy refuses what the coordinator asks."""

    exit_code = 5


class PrivacyError(FedGliomaError):
    """What protects the site's patients does not hold: the ledger was changed, or terms cannot be kept."""

    exit_code = 5


class BudgetExhausted(PrivacyError):
    """The site's patients would lose more privacy than their hospital allows."""

    exit_code = 6


class ProtocolError(FedGliomaError):
    """A message or a checkpoint is not what server and sites agreed on."""


class AggregationError(FedGliomaError):
    """The sites' updates cannot be combined into one model."""


class IdentityError(FedGliomaError):
    """A certificate, a key or a name does not prove what it should."""

    exit_code = 7
