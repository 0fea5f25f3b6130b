"""What is said of a run's privacy: in words, beside the model and in the report."""

from fedglioma.noise import DELTA
from fedglioma_server.records import PrivacyRecord, RunRecord

STATEMENT = (
    "Not differentially private. Images, labels and identifiers stay at the sites, but the coordinator reads "
    "each site's trained weights as they are (on the way to it they are encrypted), and such weights can "
    "reveal something of the patients that they were trained on. No epsilon can be stated for this run."
)
COUNTS = (
    "counts of cases, labels and modality subsets; cells below the small-cell limit are suppressed, "
    "totals are rounded up to a multiple of it"
)
UPDATES = {
    "float32": "the trained weights of each round, as 32-bit numbers, neither noised nor masked",
    "bfloat16": "the step that training made in each round, rounded to 16 bits, neither noised nor masked",
    "int8": "the step that training made in each round, rounded to 8 bits, neither noised nor masked",
}
LANDMARKS = (
    "once, for each sequence of which there are 5 cases or more: the sums of three intensity landmarks, and "
    "their number rounded as the other counts"
)
TAGS = (
    "once, of a hospital that set a linkage key: a keyed tag of each training image and, where linkage_id is "
    "known, of each patient, among tags of nobody; who lacks the key cannot try what they stand for"
)
LEAVES = [
    "per round: mean training loss in total and per gene to four digits, where at least the small-cell limit "
    "of cases stands behind it; number of steps, seconds by phase",
]
STAYS = [
    "images, masks and everything in a file's header",
    "patient ids, file names and paths, dates, ages, sex, follow-up",
    "the label of any single case",
    "the optimizer's state",
]


def privacy_record(record: RunRecord) -> PrivacyRecord:
    """Return the privacy statement of a run."""
    limits = [site.small_cell_limit for site in record.sites.values()]
    return PrivacyRecord(
        differentially_private=False,
        statement=STATEMENT,
        small_cell_limit=min(limits, default=1),
        leaves_a_site=[
            COUNTS,
            *_landmarks(record),
            *([TAGS] if record.settings.find_duplicates else []),
            UPDATES[record.settings.payload],
            *LEAVES,
        ],
        never_leaves_a_site=STAYS,
    )


def _landmarks(record: RunRecord) -> list[str]:
    """Return what is said of intensities and who adds noise to it; nothing without a common scale."""
    if not record.settings.common_scale:
        return []
    noisy = [
        f"{name} (epsilon {data.landmark_epsilon:g})"
        for name, data in sorted(record.sites.items())
        if data.landmark_epsilon is not None
    ]
    if not noisy:
        return [f"{LANDMARKS}; without noise"]
    return [
        f"{LANDMARKS}; with Gaussian noise at {', '.join(noisy)}, delta {DELTA:g}, for replacing one "
        "patient's images: that protects these sums alone, not the counts and not the model"
    ]
