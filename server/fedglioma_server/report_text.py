"""Numbers and names as readers expect them: ``0.86 [0.78-0.93]``, ``1 min 40 s``, ``12.3 MB``."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from fedglioma.case import CHANNELS, CLASS_TITLES, GENE_TITLES, Gene, Modality
from fedglioma.counts import shown
from fedglioma.metrics.bootstrap import Measure

DASH = "\N{EN DASH}"
MODALITY_TITLES: dict[Modality, str] = {
    Modality.FLAIR: "FLAIR",
    Modality.T1CE: "T1 with contrast",
    Modality.T1: "T1",
    Modality.T2: "T2",
}
STATUS_TITLES: dict[str, str] = {
    "ok": "took part",
    "error": "error",
    "refused": "refused",
    "no_reply": "no reply",
    "idle": "no labels",
}
GROUP_TITLES: dict[str, str] = {
    "trunk": "Shared part",
    **{g.value: GENE_TITLES[g] for g in GENE_TITLES},
    "segmentation": "Tumour outline",
}
KILO = 1000


def decimal(value: float | None, digits: int = 2) -> str:
    """Return a number with so many decimals, a dash where there is none."""
    return DASH if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share as whole percent."""
    return DASH if value is None else f"{100 * value:.0f} %"


def integer(value: int) -> str:
    """Return a count with commas between the thousands."""
    return f"{value:,}"


def count(number: int, noun: str, nouns: str | None = None) -> str:
    """Return ``1 patient`` or ``3 patients``."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def few_or(number: int, noun: str) -> str:
    """Return a number of patients as it may be printed: ``31 patients``, ``<5 patients``."""
    return f"{shown(number)} {noun}s"


def cell(number: int | None, limit: int) -> str:
    """Return a count of patients; one that the site kept to itself as ``<5``."""
    return f"<{limit}" if number is None else f"{number:,}"


def with_interval(measure: Measure, *, share: bool = False) -> str:
    """Return a measure with its interval: ``0.86 [0.78-0.93]``, or ``81 % [74-88]`` as a share."""
    if measure.value is None:
        return DASH
    if measure.low is None or measure.high is None:
        return percent(measure.value) if share else decimal(measure.value)
    if share:
        return f"{percent(measure.value)} [{100 * measure.low:.0f}{DASH}{100 * measure.high:.0f}]"
    return f"{measure.value:.2f} [{measure.low:.2f}{DASH}{measure.high:.2f}]"


def points(measure: Measure) -> str:
    """Return a difference of two shares in percentage points, with its sign: ``+17 [+8 to +25]``."""
    if measure.value is None:
        return DASH
    text = f"{100 * measure.value:+.0f}"
    if measure.low is not None and measure.high is not None:
        text += f" [{100 * measure.low:+.0f} to {100 * measure.high:+.0f}]"
    return re.sub(r"[+-](0)\b", r"\1", text).replace("-", "\N{MINUS SIGN}")


def probability_value(p: float | None) -> str:
    """Return a p-value as journals print it: ``p < 0.001``, ``p = 0.004``, ``p = 0.24``."""
    if p is None:
        return "p not defined"
    if p < 0.001:
        return "p < 0.001"
    if p < 0.0995:
        return f"p = {p:.3f}"
    return f"p = {p:.2f}" if p < 0.995 else "p > 0.99"


def size(number: int) -> str:
    """Return bytes as people read them, in powers of 1000."""
    amount, units = float(number), ["bytes", "kB", "MB", "GB", "TB"]
    while amount >= 999.5 and len(units) > 1:
        amount /= KILO
        units.pop(0)
    if units[0] == "bytes":
        return f"{number} bytes"
    return f"{amount:.0f} {units[0]}" if amount >= 100 else f"{amount:.1f} {units[0]}"


def duration(seconds: float | None) -> str:
    """Return ``0.4 s``, ``12 s``, ``1 min 40 s`` or ``2 h 5 min``."""
    if seconds is None:
        return DASH
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "<0.1 s" if seconds > 0 else "0 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def moment(text: str | None) -> str:
    """Return an ISO time as ``21 November 2026, 04:46 UTC``; other text as it is."""
    if text is None:
        return DASH
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = " UTC" if when.tzinfo else ""
    when = when.astimezone(UTC) if when.tzinfo else when
    return f"{when.day} {when:%B %Y, %H:%M}{zone}"


def listing(words: Sequence[str], most: int = 8) -> str:
    """Return ``a, b and c``; after ``most`` words the rest as a number."""
    shown = [*words[:most], f"{len(words) - most} more"] if len(words) > most else list(words)
    if len(shown) < 2:
        return "".join(shown)
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def subset_title(name: str) -> str:
    """Return a modality subset's name as ``All four``, ``FLAIR, T1 (no T2)``, ``None``."""
    present = [m for m in CHANNELS if m.value in name.split("+")]
    if len(present) == len(CHANNELS):
        return "All four sequences"
    return ", ".join(MODALITY_TITLES[m] for m in present) or "No sequence"


def subset_order(name: str) -> tuple[int, str]:
    """Return a key that puts the fullest subsets of sequences first and none at all last."""
    return -len([m for m in CHANNELS if m.value in name.split("+")]), name


def class_counts(gene: Gene, positives: int, known: int) -> str:
    """Return ``62 mutant, 36 wild-type``."""
    negative, positive = CLASS_TITLES[gene]
    return f"{positives:,} {positive}, {known - positives:,} {negative}"


def general(reason: str) -> str:
    """Return a reason without its numbers, which stand in the table's own row, so that rows can share it."""
    reason = re.sub(r"in \d+ of \d+ resamples only", "in too few resamples", reason)
    reason = re.sub(r"\ball \d+ ", "all ", reason)
    return re.sub(r"\b(of|among) (the )?\d+ ", r"\1 the ", reason)
