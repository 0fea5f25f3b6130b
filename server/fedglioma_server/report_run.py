"""Tables of what a run worked on and how it went: sites, sequences, exclusions, rounds, settings."""

from collections.abc import Iterable, Mapping, Sequence

from fedglioma.case import CLASS_TITLES, GENE_TITLES, GENES, Task
from fedglioma.config.effect import without_effect
from fedglioma.config.run import RunConfig
from fedglioma.counts import PASSED_ON, shown_cells
from fedglioma_server import report_text as words
from fedglioma_server.records import DataIssue, RoundRecord, RunRecord, SiteRound
from fedglioma_server.report_tables import FOLD_ABOVE, Cell, Notes, Row, Table, setting

SPLITS = ("train", "selection", "report")
FEW_CHOOSE = (
    f"Fewer than {PASSED_ON} of them are known, or have one of the statuses, in some marker or outline: its "
    "figures are kept back, no loss is given by task, and their mean has two digits."
)
NO_LOSS = (
    "No hospital told its training loss. None does in a run with noise at the hospitals or with masked "
    "updates, and none of fewer patients than its limit for small counts."
)


def sites_table(run: RunRecord) -> Table:
    """Return cases per site and split, and how many of the training cases carry each status."""
    training = "Training" if _exact(run) else "Training, about"
    splits = (training, "Choosing the model", "Held out for this report") if run.splits else (training,)
    over = [("", 1), ("Cases", len(splits))]
    over += [(f"{GENE_TITLES[gene]} of the training cases", 3) for gene in GENES]
    statuses = [name for gene in GENES for name in (*CLASS_TITLES[gene], "unknown")]
    outlines = Task.SEGMENTATION in run.settings.tasks
    if outlines:
        over.append(("Tumour", 1))
        statuses.append("outlined")
    rows = []
    for site in sorted({*run.splits, *run.told}):
        data = run.told.get(site)
        cells = [Cell(site, head=True, number=False), *_split_cells(run, site)]
        for gene in GENES:
            labels = data.labels.get(gene) if data is not None else None
            limit = data.small_cell_limit if data is not None else 0
            cells += [Cell(words.cell(n, limit)) for n in labels] if labels else [Cell(words.DASH)] * 3
        if outlines:
            cells.append(Cell(words.DASH if data is None else words.cell(data.masks, data.small_cell_limit)))
        rows.append(Row(tuple(cells)))
    noised = "with noise, and " if run.settings.privacy == "site" else ""
    remark = "" if _exact(run) else f"About: {noised}rounded up by the hospital. "
    if any(data.small_cell_limit > 1 for data in run.told.values()):
        remark += (
            "A hospital rounds its label counts to the nearest multiple of its limit, so they do not add "
            "up to its cases; where a count is hidden, half the limit stands for it behind the loss. "
        )
    if run.pooled is not None:
        remark += (
            "Each hospital's counts went into a sum under masks: nobody knows them by themselves. Hidden "
            "counts are in the sum as half the limit. "
        )
    if run.suppressed_cells:
        limits = sorted({data.small_cell_limit for data in run.told.values() if data.small_cell_limit > 1})
        remark += (
            f"{words.listing([f'<{limit}' for limit in limits])}: at least one, but fewer than a hospital "
            f"publishes; {words.count(run.suppressed_cells, 'such count')} in this run."
        )
    columns = ("Hospital", *splits, *statuses)
    return Table("Cases per hospital", columns, tuple(rows), over=tuple(over), remark=remark.strip())


def _exact(run: RunRecord) -> bool:
    """Whether exact numbers of training cases may be told: they are known, and no noise hides them."""
    return bool(run.splits) and run.settings.privacy != "site"


def _split_cells(run: RunRecord, site: str) -> list[Cell]:
    about = Cell(words.integer(run.told[site].cases) if site in run.told else words.DASH)
    if not run.splits:
        return [about]
    if site not in run.splits:
        return [Cell(words.DASH)] * len(SPLITS)
    place = list(run.splits).index(site)
    columns = ([getattr(split, name) for split in run.splits.values()] for name in SPLITS)
    cells = [Cell(shown_cells(column)[place]) for column in columns]
    return cells if _exact(run) else [about, *cells[1:]]


def modalities_table(run: RunRecord) -> Table:
    """Return training cases per subset of sequences and site."""
    sites = sorted(run.told)
    subsets = sorted({name for data in run.told.values() for name in data.modalities}, key=words.subset_order)
    rows = tuple(
        Row(
            (
                Cell(words.subset_title(subset), head=True, number=False),
                *(
                    Cell(
                        words.cell(run.told[site].modalities.get(subset, 0), run.told[site].small_cell_limit)
                    )
                    for site in sites
                ),
            )
        )
        for subset in subsets
    )
    return Table("MRI sequences of the training cases", ("Sequences present", *sites), rows)


def issues_table(issues: Sequence[DataIssue]) -> Table:
    """Return what was left out or kept with a warning, by site and reason."""
    ordered = sorted(issues, key=lambda issue: (issue.kind, issue.site, issue.code, issue.explanation))
    rows = tuple(
        Row(
            (
                Cell(issue.site, head=True, number=False),
                Cell("left out" if issue.kind == "excluded" else "kept, with a warning", number=False),
                Cell(issue.explanation, number=False),
                Cell(number),
            )
        )
        for issue, number in zip(ordered, _issue_cells(ordered), strict=True)
    )
    return Table(
        "Left out, or kept with a warning",
        ("Hospital", "What happened", "Why", "Cases"),
        rows,
        words=frozenset({0, 1, 2}),
        fold=len(rows) > FOLD_ABOVE,
    )


def _issue_cells(issues: Sequence[DataIssue]) -> list[str]:
    """Return the issues' numbers of cases; those of a kind add up to a sum that stands above the table."""
    found: dict[int, str] = {}
    for kind in ("excluded", "warning"):
        places = [place for place, issue in enumerate(issues) if issue.kind == kind]
        texts = shown_cells([issues[place].cases for place in places])
        found |= dict(zip(places, texts, strict=True))
    return [found[place] for place in range(len(issues))]


def rounds_table(rounds: Sequence[RoundRecord], chosen: int | None) -> Table:
    """Return one row per round: held-out figures, sites that answered, seconds by phase."""
    phases = _keys(record.seconds for record in rounds)
    genes = [gene for gene in GENES if rounds and gene in rounds[0].heldout.auc]
    outlines = any(record.heldout.dice is not None for record in rounds)
    rows = []
    for record in rounds:
        asked = [site for site in record.sites.values() if site.status != "idle"]
        answered = sum(site.status == "ok" for site in asked)
        cells = [
            Cell(f"{record.round} (untrained)" if record.round == 0 else str(record.round), head=True),
            Cell(record.heldout.loss_text(3) or words.DASH),
            *(Cell(words.decimal(record.heldout.auc.get(gene))) for gene in genes),
            *(Cell(words.percent(record.heldout.accuracy.get(gene))) for gene in genes),
            *([Cell(words.decimal(record.heldout.dice))] if outlines else []),
            Cell(f"{answered} of {len(asked)}" if record.sites else words.DASH),
            *(Cell(words.duration(record.seconds.get(phase))) for phase in phases),
        ]
        if record.round == chosen:
            cells[0] = Cell(f"{record.round} (chosen)", head=True, strong=True)
        rows.append(Row(tuple(cells)))
    titles = tuple(GENE_TITLES[gene] for gene in genes)
    dice = ("Dice",) if outlines else ()
    return Table(
        "Every round",
        ("Round", "Loss", *titles, *titles, *dice, "Hospitals", *(_phase(phase) for phase in phases)),
        tuple(rows),
        over=(
            ("", 2),
            *((("AUC", len(genes)), ("Accuracy", len(genes))) if genes else ()),
            *((("Tumour", 1),) if outlines else ()),
            ("Answered", 1),
            *((("Time", len(phases)),) if phases else ()),
        ),
        words=frozenset(),
        remark="Measured on the held-out patients that choose the model, not on those reported above."
        + (f" {FEW_CHOOSE}" if any(record.heldout.coarse for record in rounds) else ""),
        fold=True,
    )


def site_rounds_table(rounds: Sequence[RoundRecord]) -> Table:
    """Return one row per round and site: status, weights, loss, seconds by phase, bytes."""
    lines = [(record.round, name, site) for record in rounds for name, site in record.sites.items()]
    groups = _keys(site.weights for _, _, site in lines)
    phases = _keys(site.seconds for _, _, site in lines)
    by_number = {record.round: record for record in rounds}
    notes = Notes()
    rows = []
    begun: set[int] = set()
    for number, name, site in lines:
        left_out = site.status not in ("ok", "idle")
        first = () if number in begun else (Cell(str(number), rows=len(by_number[number].sites), head=True),)
        begun.add(number)
        cells = (
            *first,
            Cell(name, head=True, number=False),
            Cell(
                words.STATUS_TITLES[site.status],
                number=False,
                strong=left_out,
                note=notes.letter(site.reason),
            ),
            *(Cell(_weight(site.weights.get(group))) for group in groups),
            Cell(words.integer(site.steps)),
            Cell(words.decimal(site.loss, 3)),
            Cell(words.decimal(site.update_norm, 2)),
            *(Cell(words.duration(site.seconds.get(phase))) for phase in phases),
            Cell(words.size(site.bytes_down)),
            Cell(words.size(site.bytes_up)),
        )
        rows.append(Row(cells, faint=site.status != "ok"))
    over = [("", 3), *([("Weight in the mean", len(groups))] if groups else []), ("Training", 3)]
    over += [*([("Time", len(phases))] if phases else []), ("Data", 2)]
    return Table(
        "Every hospital in every round",
        (
            "Round",
            "Hospital",
            "Status",
            *(words.GROUP_TITLES.get(g, g) for g in groups),
            "Steps",
            "Loss",
            "Update length",
            *(_phase(phase) for phase in phases),
            "Received",
            "Sent",
        ),
        tuple(rows),
        over=tuple(over),
        words=frozenset({1, 2}),
        notes=notes.listed(),
        remark=_no_loss(rounds),
        fold=True,
    )


def _no_loss(rounds: Sequence[RoundRecord]) -> str:
    """Return why there is no training loss; empty where there is one, or nothing was trained."""
    trained = [site for record in rounds for site in record.sites.values() if site.status == "ok"]
    return NO_LOSS if trained and all(site.loss is None for site in trained) else ""


def site_summary_table(rounds: Sequence[RoundRecord]) -> Table:
    """Return one row per site over the whole run."""
    lines: dict[str, list[SiteRound]] = {}
    for record in rounds:
        for name, site in record.sites.items():
            lines.setdefault(name, []).append(site)
    rows = []
    for name in sorted(lines):
        took_part = [site for site in lines[name] if site.status == "ok"]
        losses = [site.loss for site in took_part if site.loss is not None]
        cells = (
            Cell(name, head=True, number=False),
            Cell(f"{len(took_part)} of {len(lines[name])}"),
            Cell(words.decimal(losses[0] if losses else None, 3)),
            Cell(words.decimal(losses[-1] if losses else None, 3)),
            Cell(words.integer(sum(site.steps for site in took_part))),
            Cell(words.duration(sum(sum(site.seconds.values()) for site in took_part))),
            Cell(words.size(sum(site.bytes_down for site in lines[name]))),
            Cell(words.size(sum(site.bytes_up for site in lines[name]))),
        )
        rows.append(Row(cells, faint=not took_part))
    return Table(
        "Hospitals over the whole run",
        ("Hospital", "Rounds taken part", "First training loss", "Last", "Steps", "Time", "Received", "Sent"),
        tuple(rows),
        remark=_no_loss(rounds),
    )


def settings_table(settings: RunConfig) -> Table:
    """Return every setting that has an effect in this run, with its value and its meaning."""
    values, idle = settings.model_dump(), without_effect(settings)
    rows = tuple(
        Row(
            (
                Cell(name, head=True, number=False),
                Cell(setting(values[name]), number=False),
                Cell(info.description or "", number=False),
            )
        )
        for name, info in RunConfig.model_fields.items()
        if name not in idle
    )
    return Table(
        "Settings of the run",
        ("Setting", "Value", "Meaning"),
        rows,
        words=frozenset({0, 1, 2}),
        remark="Settings that this run has no use for are left out; run.json has all of them.",
        fold=True,
    )


def _keys(tables: Iterable[Mapping[str, float]]) -> list[str]:
    """Return the keys of all tables, each once, in the order of the table that has most of them."""
    return list(dict.fromkeys(key for table in sorted(tables, key=len, reverse=True) for key in table))


def _phase(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _weight(value: float | None) -> str:
    return words.DASH if value is None else f"{value:,.6g}"
