"""How a site's node process ends: exit codes between it and its supervisor."""

from typing import Final

FINISHED: Final = 64
"""The run has finished and the node was started for one run only."""
FAILED: Final = 70
"""Flower's connection or the worker ended; starting again is worth a try."""
BROKEN: Final = 71
"""The audit log is not as it was written; a person has to look into it first."""
