"""What is said of a run's privacy: in words, beside the model and in the report."""

from collections.abc import Sequence
from math import isinf
from typing import Any

from fedglioma.config.run import RunConfig
from fedglioma.noise import DELTA
from fedglioma_server.linkage import words_of
from fedglioma_server.records import PrivacyRecord, RoundRecord, RunRecord
from fedglioma_server.spending import noise_over_gradient, spent_by_site, spent_of

READ = (
    "the coordinator reads each site's trained weights as they are (on the way to it they are encrypted), "
    "and such weights can reveal something of the patients that they were trained on"
)
SUMMED = (
    "the coordinator reads the sum of the sites' updates of each round and no single one of them, and even a "
    "sum can reveal something of the patients behind it"
)
NOT_PRIVATE = (
    "Not differentially private. Images, labels and identifiers stay at the sites, but {seen}. No epsilon "
    "can be stated for this run."
)
STARTED_OPEN = (
    "Not differentially private. The run itself was trained with noise, but it started from a model that "
    "was not, or that says nothing of it, or that hides somebody else (patients here, whole hospitals "
    "there): what that model learned from its patients, who may be the same, is in these weights without "
    "noise. No epsilon can be stated for them."
)
COUNTS = (
    "counts of cases, labels and modality subsets; cells below the small-cell limit are suppressed, "
    "totals are rounded up to a multiple of it"
)
UPDATES = {
    "float32": "the trained weights of each round, as 32-bit numbers",
    "bfloat16": "the step that training made in each round, rounded to 16 bits",
    "int8": "the step that training made in each round, rounded to 8 bits",
    "masked": "the step that training made in each round, weighted, in fixed point, under masks that cancel "
    "only in the sum over the sites; public keys and encrypted shares of secrets around it",
}
LANDMARKS = (
    "once, for each sequence of which there are 5 cases or more: the sums of three intensity landmarks, and "
    "their number as the other counts are published"
)
TAGS = (
    "once, of a hospital that set a linkage key: a keyed tag of each training image and, where linkage_id is "
    "known, of each patient, among tags of nobody; who lacks the key cannot try what they stand for"
)
LOSSES = (
    "per round: mean training loss in total, to two digits, where at least the small-cell limit of cases "
    "stands behind it (of a hospital whose limit is 1 also per gene, to four); number of steps, seconds by "
    "phase"
)
PRIVATE_ROUND = (
    "per round: the agreed number of steps, whole seconds by phase, and the head of the hospital's privacy "
    "ledger, which says that it has lines and nothing of what is in them; no training loss"
)
SUMMED_ROUND = "per round: number of steps of the published cases, seconds by phase; no training loss"
MASKED_ROUND = "per round: seconds by phase; no number of steps and no training loss"
MADE_UP = (
    "other runs on the same patients: hospitals of a simulation that no settings file describes keep a "
    "ledger in the run's folder, so that their limits count within this run only"
)
DROWNED = 10.0
"""Times as long as the gradient: about where made-up patients are guessed at (docs/privacy.md)."""
REMEDIES = {
    "site": "More patients or a smaller network (width) help, then a higher sampling_rate and fewer steps, "
    "then a larger epsilon.",
    "central": "It takes more hospitals, a smaller network (width), fewer rounds or a larger epsilon.",
}
STAYS = [
    "images, masks and everything in a file's header",
    "patient ids, file names and paths, dates, ages, sex, follow-up",
    "the label of any single case",
    "the optimizer's state",
]


def privacy_record(record: RunRecord, rounds: Sequence[RoundRecord] = ()) -> PrivacyRecord:
    """Return the privacy statement of a run after the rounds on record."""
    settings = record.settings
    limits = [site.small_cell_limit for site in record.sites.values()]
    return PrivacyRecord(
        small_cell_limit=min(limits, default=1),
        leaves_a_site=[
            _counts(settings),
            *_landmarks(record),
            *([TAGS] if settings.find_duplicates else []),
            f"{UPDATES[settings.payload]}, {_noised(settings)}",
            _per_round(settings),
        ],
        never_leaves_a_site=STAYS,
        ledger_run=record.key if _in_ledgers(record) else None,
        secure_aggregation=settings.secure_aggregation,
        secure_statistics=settings.secure_statistics,
        **_terms(record, rounds),
    )


def _in_ledgers(record: RunRecord) -> bool:
    """Whether a hospital may have written of the run in its ledger."""
    noisy = any(site.landmark_epsilon is not None for site in record.sites.values())
    return record.settings.privacy == "site" or noisy


def noise_words(record: RunRecord) -> str:
    """Return what the noise is to training; empty where there is none."""
    if (times := noise_over_gradient(record)) is None:
        return ""
    of = "step of a hospital" if record.settings.privacy == "central" else "gradient"
    told = f"The noise of one step is {times:.2g} times as long as the largest {of}, in the mean of the sites"
    if isinf(times):
        told = "There are so few patients that the hospitals' noised counts add up to none"
    if times <= DROWNED:
        return f"{told}."
    return f"{told}: expect a model that guesses. {REMEDIES[record.settings.privacy]}"


def _terms(record: RunRecord, rounds: Sequence[RoundRecord]) -> dict[str, Any]:
    """Return the fields that say how private the run is."""
    settings = record.settings
    if settings.privacy == "none":
        seen = SUMMED if settings.secure_aggregation else READ
        return {"statement": NOT_PRIVATE.format(seen=seen)}
    if spent_of(record, rounds) is None:
        return {"statement": STARTED_OPEN}
    spent, done = spent_by_site(record, rounds), len([line for line in rounds if line.round])
    epsilon = max(spent.values(), default=0.0)
    common = {
        "differentially_private": True,
        "epsilon": epsilon,
        "delta": settings.delta,
        "accountant": settings.accountant,
        "noise_multiplier": settings.noise_multiplier,
        "clip_norm": settings.clip_norm,
        "noise_over_gradient": noise_over_gradient(record),
        "sites": spent,
    }
    words = {
        "epsilon": f"{epsilon:.3g}",
        "delta": f"{settings.delta:g}",
        "noise": f"{settings.noise_multiplier:g}",
        "clip": f"{settings.clip_norm:g}",
        "rounds": f"{done} round{'s' * (done != 1)}"
        + (" and the training of the model that it started from" * (record.initial_digest is not None)),
        "accountant": settings.accountant.upper(),
    }
    if settings.privacy == "central":
        return common | {
            "unit": "site",
            "statement": f"{_central(words)} {noise_words(record)}".strip(),
            "not_covered": _around_central(),
        }
    return common | {
        "unit": "patient",
        "clipping": settings.clipping,
        "sampling_rate": settings.sampling_rate,
        "steps_per_round": settings.steps_per_round,
        "counts_epsilon": settings.counts_epsilon,
        "statement": f"{_site(record, words)} {noise_words(record)}".strip(),
        "not_covered": [*_around_site(record), *([MADE_UP] if record.made_up_sites else [])],
    }


def _site(record: RunRecord, words: dict[str, str]) -> str:
    settings = record.settings
    return (
        "Differentially private at each site: epsilon {epsilon} at delta {delta} for any one patient with "
        "all scans, added or removed, over {rounds} and what was told before them, against the coordinator "
        "and everybody else. In each step every patient took part with probability {rate}, the gradient of "
        "each was cut to the length {clip} ({clipping}) and Gaussian noise of {noise} times that length was "
        "added ({accountant} accountant). {ledgers}"
    ).format(
        **words,
        rate=f"{settings.sampling_rate:g}",
        clipping="each layer its part" if settings.clipping == "per_layer" else "over all layers",
        ledgers="A hospital's own ledger adds up all its runs."
        if not record.made_up_sites
        else "The hospitals' ledgers begin with this run and end with it.",
    )


def _central(words: dict[str, str]) -> str:
    return (
        "Differentially private in the centre: epsilon {epsilon} at delta {delta} for any one hospital, its "
        "steps there or nothing, over {rounds}, against whoever sees the model and its checkpoints. Each "
        "hospital's step was cut to the length {clip} and Gaussian noise of {noise} times that length was "
        "added to the sum ({accountant} accountant, no amplification). The coordinator itself reads every "
        "update as it is, and is not covered."
    ).format(**words)


def _around_site(record: RunRecord) -> list[str]:
    """Return what the epsilon of noised training does not cover."""
    return [
        _at_several(record),
        *(["tags of patients and images, to whoever has their key"] * record.settings.find_duplicates),
        "that a hospital takes part, and when, and that it refuses when its budget is spent",
        "how long its rounds take, which follows how many patients were drawn",
        "other runs of the same hospital, and rounds that were asked again with other weights: its ledger "
        "adds them up, this epsilon does not",
        "the coordinator's own held-out patients, on whom the model was chosen and measured, and their "
        "numbers",
        *(["how many cases were left out or warned about, and why"] if record.issues else []),
    ]


def _at_several(record: RunRecord) -> str:
    """Return that an epsilon is of one hospital's part, and who are known to share patients."""
    said = (
        "a patient at several hospitals of this run: epsilon is that of one hospital's part, and such a "
        "patient's is that of all of them together"
    )
    pairs = [] if record.linkage is None else record.linkage.pairs
    shared = "; ".join(f"{' and '.join(pair.sites)}, {words_of(pair)}" for pair in pairs)
    return f"{said}. In this run these seem to share patients: {shared}" if shared else said


def _around_central() -> list[str]:
    return [
        "anything against the coordinator, who reads single updates, counts and losses",
        "the counts and intensity landmarks of the statistics round",
        "the coordinator's own held-out patients, on whom the model was chosen and measured",
    ]


def _noised(settings: RunConfig) -> str:
    if settings.privacy == "site":
        return "trained with noise"
    return "not noised" if settings.payload == "masked" else "neither noised nor masked"


def _per_round(settings: RunConfig) -> str:
    if settings.privacy == "site":
        return PRIVATE_ROUND
    if settings.secure_statistics:
        return MASKED_ROUND
    return SUMMED_ROUND if settings.secure_aggregation else LOSSES


def _counts(settings: RunConfig) -> str:
    if settings.privacy == "site":
        return (
            f"{COUNTS}; of patients, with Gaussian noise (epsilon {settings.counts_epsilon:g}, delta "
            f"{settings.delta:g})"
        )
    if settings.secure_statistics:
        return f"{COUNTS}; under masks, so that the coordinator reads their sums over the sites alone"
    return COUNTS


def _landmarks(record: RunRecord) -> list[str]:
    """Return what is said of intensities and who adds noise to it; nothing where no site was asked."""
    if not record.settings.common_scale or record.scale_from_model:
        return []
    masked = ", under masks as the counts" if record.settings.secure_statistics else ""
    noisy = [
        f"{name} (epsilon {data.landmark_epsilon:g})"
        for name, data in sorted(record.sites.items())
        if data.landmark_epsilon is not None
    ]
    if not noisy:
        return [f"{LANDMARKS}{masked}; without noise"]
    noise = f"with Gaussian noise at {', '.join(noisy)}, delta {DELTA:g}"
    if record.settings.privacy == "site":
        return [f"{LANDMARKS}{masked}; {noise}, for one patient added or removed"]
    return [
        f"{LANDMARKS}{masked}; {noise}, for replacing one patient's images: that protects these sums alone, "
        "not the counts and not the model"
    ]
