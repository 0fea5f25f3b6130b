"""Every Prometheus name of the server: what the coordinator's dashboard shows of a run.

Labels are ``site``, ``run_id``, ``phase`` and a few short codes; no patient, no path, no free text.
"""

import math

from prometheus_client import Counter, Gauge, Histogram

from fedglioma.case import Task
from fedglioma.scrape import SECONDS, new_registry
from fedglioma.wire import PHASES as SITE_PHASES
from fedglioma_server.records import HeldOutRound, RoundRecord, SiteRound

TAKEN = frozenset({"ok", "idle"})
"""States of a site whose round brought no rejection."""
REASONS = ("error", "refused", "no_reply", "late")
PHASES = {"sites": "wait", "aggregate": "aggregate", "evaluate": "evaluate", "checkpoint": "checkpoint"}
"""The server's phases in rounds.jsonl -> the label."""


class ServerGauges:
    """What a run shows of itself.

    Parameters
    ----------
    run_id : str
        The run's name; a label of everything that belongs to the run.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.registry = new_registry()
        self._round = self._gauge("round", "Last complete round; 0 is the untrained model.")
        self._rounds = Counter(
            "fedglioma_rounds",
            "Rounds since this process started, by how they ended.",
            ["run_id", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "fedglioma_round_duration_seconds",
            "Seconds of a round by phase; the phases of the sites have their site.",
            ["run_id", "phase", "site"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._connected = self._gauge("sites_connected", "Sites that are connected now.")
        self._seen = self._gauge("site_last_seen_timestamp_seconds", "When the site was last heard.", "site")
        self._bytes = self._gauge(
            "update_bytes", "Bytes of the last round: down to the site, up from it.", "site", "direction"
        )
        self._norm = self._gauge(
            "update_norm", "Norm of the site's update in the last round; NaN without one.", "site"
        )
        self._epsilon = self._gauge(
            "privacy_epsilon",
            "Epsilon spent of the site's patients in this run; NaN without privacy.",
            "site",
        )
        self._rejected = Counter(
            "fedglioma_aggregate_rejected",
            "Updates that were asked for or came, and were not used, by short reason.",
            ["run_id", "reason"],
            registry=self.registry,
        )
        self._metric = self._gauge(
            "metric",
            "Held-out figures of the global model (site is empty), or a site's own; NaN where undefined.",
            "name",
            "region",
            "site",
        )
        for status in ("completed", "failed"):
            self._rounds.labels(run_id, status)
        for reason in REASONS:  # counted from 0, so that the first one is an increase
            self._rejected.labels(run_id, reason)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"fedglioma_{name}", meaning, ["run_id", *labels], registry=self.registry)

    def round_finished(self, line: RoundRecord) -> None:
        """Show a complete round as it stands in rounds.jsonl, and count it; round 0 is not one."""
        self.round_restored(line)
        if line.round == 0:
            return
        self._rounds.labels(self.run_id, "completed").inc()
        for phase, seconds in line.seconds.items():
            if phase in PHASES:
                self._seconds.labels(self.run_id, PHASES[phase], "").observe(seconds)
        for name, site in line.sites.items():
            if site.status not in TAKEN:
                self.rejected(site.status)
            for phase in SITE_PHASES:
                if phase in site.seconds:
                    self._seconds.labels(self.run_id, phase, name).observe(site.seconds[phase])

    def round_restored(self, line: RoundRecord) -> None:
        """Show the last round of a run that is resumed; it was counted by the process that drove it."""
        self._round.labels(self.run_id).set(line.round)
        for name, site in line.sites.items():
            self._show_site(name, site)
        self._show_heldout(line.heldout)

    def round_failed(self) -> None:
        """Count a round that ended without enough updates."""
        self._rounds.labels(self.run_id, "failed").inc()

    def sites_connected(self, number: int) -> None:
        """Show how many sites are connected."""
        self._connected.labels(self.run_id).set(number)

    def site_seen(self, site: str, timestamp: float) -> None:
        """Show when a site was last heard, in seconds since 1970."""
        self._seen.labels(self.run_id, site).set(timestamp)

    def rejected(self, reason: str) -> None:
        """Count an update that was not used, by one of ``REASONS``."""
        self._rejected.labels(self.run_id, reason).inc()

    def _show_site(self, name: str, site: SiteRound) -> None:
        self._bytes.labels(self.run_id, name, "down").set(site.bytes_down)
        self._bytes.labels(self.run_id, name, "up").set(site.bytes_up)
        self._epsilon.labels(self.run_id, name).set(_number(site.epsilon))
        self._norm.labels(self.run_id, name).set(_number(site.update_norm))
        self._show("loss", "", name, site.loss)
        for task in Task:  # all of them: a site that dropped out must not keep showing its last figures
            self._show("loss", task, name, site.loss_by_task.get(task))

    def _show_heldout(self, heldout: HeldOutRound) -> None:
        self._show("loss", "", "", heldout.told_loss)
        for name, values in (
            ("loss", heldout.loss_by_task),
            ("auc", heldout.auc),
            ("accuracy", heldout.accuracy),
        ):
            for gene, value in values.items():
                self._show(name, gene, "", value)
        self._show("dice", Task.SEGMENTATION, "", heldout.dice)

    def _show(self, name: str, region: str, site: str, value: float | None) -> None:
        self._metric.labels(self.run_id, name, region, site).set(_number(value))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
