"""Which of the four sequences a series shows: what it is called and how it was timed must agree.

Names are written by people and timing by the scanner; either alone is believed less. A hospital's own
table, ``series_map.csv``, overrules both::

    description,modality
    Ax T1 post,t1ce
    /^hirn.*dunkel/,flair
    Ax T1 repeat,ignore

Text between slashes is a regular expression; anything else is the whole description. Case and outer
spaces do not count.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedglioma.case import Frozen, Modality
from fedglioma.data.dicom_header import SeriesText, TechnicalHeader
from fedglioma.data.smallfile import read_small
from fedglioma.errors import ConfigError

MIN_CONFIDENCE: Final = 0.6
MAP_NAME: Final = "series_map.csv"
_MAP_BYTES: Final = 1 << 20
_DERIVED: Final = frozenset(
    {"DERIVED", "SECONDARY", "MPR", "PROJECTION IMAGE", "PHASE", "P", "PHASE MAP", "ADC", "TRACEW", "FA"}
    | {"MIN IP", "MAXIMUM", "MINIMUM", "SUBTRACTION", "T1 MAP", "T2 MAP", "T2_STAR", "SCREEN SAVE"}
)
_LOCALIZER: Final = re.compile(
    r"(?<![a-z])(loc(alizer|aliser)?|scout|survey|topogram|3[- ]?plane)(?![a-z])", re.I
)
_NOT_STRUCTURAL: Final = re.compile(
    r"(?<![a-z])(calib\w*|asset cal\w*|smartbrain|dwi?|diff\w*|dti|e?adc|b[-_ ]?1000|ep2d|epi|trace|fa(?!\d)|"
    r"tensor|perf\w*|dsc|dce|asl|cbf|cbv|mtt|ttp|swi|swan|mip|minip|phase|pha|tof|mra|mrv|angio|"
    r"spectro\w*|mrs|press|bold|fmri|spine|cervical|orbit\w*|pituit\w*|sub(traction)?(?!-)|screen ?save|"
    r"report|dose)(?![a-z])",
    re.I,
)
_REFORMATTED: Final = re.compile(r"(?<![a-z])mpr(?![a-z])", re.I)
_POST: Final = re.compile(
    r"\+ ?c\b|\+ ?gd|\bgd\b|(?<![a-z])ce\b|t1ce|t1c\b|t1\+c|t1gd|post(?!er)|c\+|\bc$|contrast|gado|gad\b|"
    r"增强|enh|\bkm\b|(?<![a-z])mit km|kontrast",
    re.I,
)
_PRE: Final = re.compile(
    r"\bpre\b(?![- ]?op)|non[- ]?(contrast|enh)|no contrast|w/?o\b|without|plain|unenh|\bnc\b|"
    r"平扫|\bnativ\b|ohne|\bvor km",
    re.I,
)
_FLAIR: Final = re.compile(r"flair|tirm|dark[- ]?fluid|dafl|t2[- ]?fl\b|压水", re.I)
_T1: Final = re.compile(r"(?<![a-z])t1|mprage|bravo|f?spgr|\btfe\b|mp2rage|\bvibe\b|\btfl", re.I)
_T2: Final = re.compile(r"(?<![a-z])t2(?!\*|[- ]?star)", re.I)
_T2_STAR: Final = re.compile(r"t2\*|t2[- ]?star|hemo|fl2d|\bgre\b", re.I)
_PD: Final = re.compile(r"(?<![a-z])pd(?![a-z])|proton", re.I)

# Times in ms that tell the contrasts apart on every scanner from 1 to 3 T.
_T2_ECHO: Final = 60.0
_FLAIR_INVERSION: Final = (1500.0, 3000.0)


class Choice(Frozen):
    """What a series is taken for; ``modality`` is None where it must not be used as any of the four.

    ``code`` is the reason's short name: ``chosen``, or why not: ``localizer``, ``derived``,
    ``not_structural``, ``unclear``, ``ignored``. ``reasons`` never quote the header.
    """

    modality: Modality | None
    confidence: float
    code: str = "chosen"
    reasons: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether it is certain enough to be used unattended."""
        return self.modality is not None and self.confidence >= MIN_CONFIDENCE


@dataclass(frozen=True)
class SeriesMap:
    """The hospital's own table: patterns of descriptions and what they mean, None for to be ignored."""

    rows: tuple[tuple[re.Pattern[str], Modality | None], ...] = ()

    def find(self, text: SeriesText) -> Choice | None:
        """Return what the first row that fits says, by description and then by protocol name."""
        for name in (text.description, text.protocol):
            for pattern, modality in self.rows if name else ():
                if pattern.search(name):
                    why = (f"{MAP_NAME} says so",)
                    if modality is None:
                        return Choice(modality=None, confidence=1.0, code="ignored", reasons=why)
                    return Choice(modality=modality, confidence=1.0, reasons=why)
        return None


NO_MAP: Final = SeriesMap()


def read_series_map(path: Path) -> SeriesMap:
    """Return a ``series_map.csv``; one that is not there is empty.

    Raises
    ------
    ConfigError
        It cannot be read, or a row has no pattern or an unknown modality.
    """
    try:
        content = read_small(path, _MAP_BYTES)
        rows = list(csv.reader(content.decode("utf-8-sig").splitlines()))
    except FileNotFoundError:
        return NO_MAP
    except OSError as error:
        raise ConfigError(f"{path.name}: {error.strerror}; is this the right file?") from None
    except (UnicodeDecodeError, csv.Error) as error:
        reason = f"{path.name}: cannot be read as CSV in UTF-8 ({type(error).__name__}); save it again"
        raise ConfigError(reason) from None
    if not rows or [cell.strip().lower() for cell in rows[0]] != ["description", "modality"]:
        raise ConfigError(f"{path.name}: the first line must be description,modality")
    return SeriesMap(tuple(_map_row(path.name, n, row) for n, row in enumerate(rows[1:], 2) if any(row)))


def _map_row(name: str, number: int, row: list[str]) -> tuple[re.Pattern[str], Modality | None]:
    text, word = (row[0].strip(), row[1].strip().lower()) if len(row) == 2 else ("", "")
    allowed = (*(m.value for m in Modality), "ignore")
    if not text or word not in allowed:
        raise ConfigError(f"{name}, line {number}: needs a description and one of {', '.join(allowed)}")
    inner = text[1:-1] if len(text) > 2 and text[0] == text[-1] == "/" else None
    try:
        pattern = re.compile(inner if inner else rf"\A\s*{re.escape(text)}\s*\Z", re.I)
    except re.error as error:
        raise ConfigError(f"{name}, line {number}: no regular expression ({error.msg}); correct it") from None
    return pattern, None if word == "ignore" else Modality(word)


def classify(text: SeriesText, header: TechnicalHeader, series_map: SeriesMap = NO_MAP) -> Choice:
    """Return which sequence a series is, by the hospital's table, else by name and timing."""
    by_hand = series_map.find(text)
    if by_hand is not None:
        return by_hand
    name = " ".join((text.description or text.protocol).replace("_", " ").split())
    said, timed = _by_name(name), _by_timing(header)
    refused = _refused(name, text.image_type, prepared_t1=timed == "t1" and header.inversion_ms is not None)
    if refused:
        return refused
    reasons = (f"the name says {said or 'nothing'}", f"the timing says {timed or 'nothing'}")
    if said and timed and said != timed:
        return _unclear(0.3, *reasons, "they disagree")
    base = said or timed
    if base not in ("t1", "t2", "flair"):
        code = "not_structural" if base else "unclear"
        return Choice(modality=None, confidence=0.6 if base else 0.0, code=code, reasons=reasons)
    sure = 0.95 if said and timed else 0.75
    if base != "t1":  # a FLAIR after contrast is still a FLAIR
        return Choice(modality=Modality(base), confidence=sure, reasons=reasons)
    return _with_contrast(name, sure, reasons, agent=header.contrast)


def _with_contrast(name: str, sure: float, reasons: tuple[str, ...], *, agent: bool) -> Choice:
    """Return T1 or T1ce, by the words for contrast and the agent in the header."""
    before = bool(_PRE.search(name))
    after = bool(_POST.search(name)) and not before
    reasons = (
        *reasons,
        f"the name says {'before' if before else 'after' if after else 'nothing of'} contrast",
    )
    reasons = (*reasons, "an agent is named" if agent else "no agent is named")
    if agent and before:
        return _unclear(0.4, *reasons, "they disagree")
    modality = Modality.T1CE if after or agent else Modality.T1
    if after and not agent:
        sure = min(sure, 0.8)
    return Choice(modality=modality, confidence=sure, reasons=reasons)


def _refused(name: str, image_type: tuple[str, ...], *, prepared_t1: bool) -> Choice | None:
    if "LOCALIZER" in image_type or _LOCALIZER.search(name):
        return Choice(modality=None, confidence=0.9, code="localizer", reasons=("a localizer",))
    if any(word in _DERIVED for word in image_type):
        reason = f"computed from other images; name it in {MAP_NAME} if it is an original after all"
        return Choice(modality=None, confidence=0.9, code="derived", reasons=(reason,))
    # "mpr" is a reformatted picture, but one vendor also calls its MPRAGE so.
    if _NOT_STRUCTURAL.search(name) or (_REFORMATTED.search(name) and not prepared_t1):
        return Choice(
            modality=None, confidence=0.9, code="not_structural", reasons=("not a structural scan",)
        )
    return None


def _by_name(name: str) -> str | None:
    t1, star = bool(_T1.search(name)), bool(_T2_STAR.search(name))
    if _FLAIR.search(name) and not t1:
        return "flair"
    if star and not t1:
        return "T2*"
    if t1:
        return None if _T2.search(name) else "t1"
    if _T2.search(name):
        return "t2"
    return "PD" if _PD.search(name) else None


def _by_timing(header: TechnicalHeader) -> str | None:
    """Return the contrast of a timing in ms, or None where it cannot be told."""
    repetition, echo, inversion = header.repetition_ms, header.echo_ms, header.inversion_ms
    if repetition is None or echo is None:
        return None
    recovery = "IR" in header.scanning_sequence or inversion is not None
    gradient = "GR" in header.scanning_sequence
    if recovery and inversion is not None:
        low, high = _FLAIR_INVERSION
        if low <= inversion <= high and echo >= _T2_ECHO and repetition >= 4000:
            return "flair"
        if inversion < low and echo < 30:  # MPRAGE, and T1-FLAIR
            return "t1"
    if not gradient and echo >= _T2_ECHO and repetition >= 2000:
        # An inversion recovery whose inversion time is not told is no plain T2.
        return None if recovery else "t2"
    if gradient and echo >= 12:
        return "T2*"
    if echo <= 30 and repetition <= 1200:
        return "t1"
    return "PD" if echo <= 40 and repetition > 1500 and not recovery else None


def _unclear(confidence: float, *reasons: str) -> Choice:
    remedy = f"name the series in {MAP_NAME}"
    return Choice(modality=None, confidence=confidence, code="unclear", reasons=(*reasons, remedy))
