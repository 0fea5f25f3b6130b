"""The server's metrics, scraped over HTTP and read by Prometheus' own parser."""

import gc
import math
import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.samples import Sample

from fedglioma.case import Gene
from fedglioma.errors import ConfigError
from fedglioma.scrape import serve
from fedglioma_client.gauges import ClientGauges
from fedglioma_server.gauges import ServerGauges
from fedglioma_server.records import HeldOutRound, RoundRecord, SiteRound
from tests.scrape_fixture import fetch, samples_of, scrape, served, value

ROOT = Path(__file__).resolve().parents[2]

AGREED = {
    "fedglioma_round": set(),
    "fedglioma_rounds_total": {"status"},
    "fedglioma_round_duration_seconds": set(),
    "fedglioma_sites_connected": set(),
    "fedglioma_site_last_seen_timestamp_seconds": set(),
    "fedglioma_update_bytes": {"direction"},
    "fedglioma_update_norm": set(),
    "fedglioma_privacy_epsilon": set(),
    "fedglioma_aggregate_rejected_total": {"reason"},
    "fedglioma_metric": {"name", "region"},
    "fedglioma_gpu_memory_bytes": set(),
    "fedglioma_process_resident_memory_bytes": set(),
    "fedglioma_build_info": {"version"},
}
"""Names of the conventions, and the labels beyond the usual three."""
OF_THE_SITE = {"fedglioma_server_connected", "fedglioma_server_last_contact_timestamp_seconds"}
USUAL = {"site", "run_id", "phase"}


def a_round(number: int = 3, **sites: SiteRound) -> RoundRecord:
    genes: dict[Gene, float | None] = {Gene.IDH: 0.9, Gene.ATRX: None}
    return RoundRecord(
        round=number,
        seconds={"sites": 20.0, "aggregate": 0.2, "evaluate": 4.0, "checkpoint": 0.3, "tea": 900.0},
        sites=sites,
        heldout=HeldOutRound(cases=10, loss=1.25, loss_by_task=genes, auc=genes, accuracy=genes),
    )


def good(**more: object) -> SiteRound:
    table = {
        "status": "ok",
        "bytes_down": 100,
        "bytes_up": 50,
        "update_norm": 2.5,
        "loss": 0.7,
        "loss_by_task": {Gene.IDH: 0.4},
        "seconds": {"setup": 1.0, "load": 3.0, "train": 12.0, "pack": 0.5, "tea": 900.0},
    }
    return SiteRound.model_validate(table | more)


@pytest.fixture
def gauges() -> ServerGauges:
    return ServerGauges("glioma-1")


def in_use() -> tuple[CollectorRegistry, CollectorRegistry]:
    """Return the registries of a server and a site that have shown everything once."""
    server, client = ServerGauges("glioma-1"), ClientGauges("henan")
    server.round_finished(a_round(henan=good(), ningxia=SiteRound(status="no_reply")))
    server.sites_connected(2)
    server.site_seen("henan", 5.0)
    client.round_started(1)
    client.phase_finished("train", 1.0)
    client.received(1)
    return server.registry, client.registry


def labels_by_name(samples: list[Sample]) -> dict[str, set[str]]:
    """Return every metric with its labels; what a histogram is made of counts as the histogram."""
    found: dict[str, set[str]] = {}
    for sample in samples:
        if not sample.name.endswith("_created"):
            name = re.sub(r"_(bucket|count|sum)$", "", sample.name)
            found.setdefault(name, set()).update(sample.labels)
    return {name: labels - {"le"} for name, labels in found.items()}


def test_every_agreed_name_is_served_with_agreed_labels_only() -> None:
    server, client = in_use()
    with served(server) as one, served(client) as other:
        shown = labels_by_name([*samples_of(fetch(one)), *samples_of(fetch(other))])
    assert set(shown) == set(AGREED) | OF_THE_SITE
    for name, labels in shown.items():
        assert labels <= USUAL | AGREED.get(name, set()), name


def test_finished_round_is_shown_as_it_stands_on_record(gauges: ServerGauges) -> None:
    gauges.round_finished(a_round(henan=good()))
    samples, run = scrape(gauges.registry), "glioma-1"
    assert value(samples, "round", run_id=run) == 3
    assert value(samples, "rounds_total", run_id=run, status="completed") == 1
    assert value(samples, "rounds_total", run_id=run, status="failed") == 0
    assert value(samples, "update_bytes", run_id=run, site="henan", direction="down") == 100
    assert value(samples, "update_bytes", run_id=run, site="henan", direction="up") == 50
    assert value(samples, "update_norm", run_id=run, site="henan") == 2.5
    assert value(samples, "metric", run_id=run, name="loss", region="", site="") == 1.25
    assert value(samples, "metric", run_id=run, name="auc", region="idh", site="") == 0.9
    assert value(samples, "metric", run_id=run, name="loss", region="idh", site="henan") == 0.4
    assert math.isnan(value(samples, "metric", run_id=run, name="accuracy", region="atrx", site=""))


@pytest.mark.parametrize(
    ("phase", "site", "seconds"),
    [
        ("wait", "", 20.0),
        ("aggregate", "", 0.2),
        ("evaluate", "", 4.0),
        ("checkpoint", "", 0.3),
        ("setup", "henan", 1.0),
        ("load", "henan", 3.0),
        ("train", "henan", 12.0),
        ("pack", "henan", 0.5),
    ],
)
def test_phases_of_a_round_are_counted(gauges: ServerGauges, phase: str, site: str, seconds: float) -> None:
    gauges.round_finished(a_round(henan=good()))
    samples, labels = scrape(gauges.registry), {"run_id": "glioma-1", "phase": phase, "site": site}
    assert value(samples, "round_duration_seconds_sum", **labels) == seconds
    assert value(samples, "round_duration_seconds_count", **labels) == 1
    shown = {s.labels["phase"] for s in samples if s.name == "fedglioma_round_duration_seconds_count"}
    assert shown == {"wait", "aggregate", "evaluate", "checkpoint", "setup", "load", "train", "pack"}


def test_sites_that_were_not_used_are_counted_by_their_state(gauges: ServerGauges) -> None:
    line = a_round(
        henan=good(),
        ningxia=SiteRound(status="no_reply", reason="no reply within the round's time"),
        zhengzhou=SiteRound(status="error", reason="update: not finite"),
        yinchuan=SiteRound(status="idle"),
    )
    gauges.round_finished(line)
    gauges.round_finished(line)
    gauges.rejected("late")
    rejected = {
        s.labels["reason"]: s.value
        for s in scrape(gauges.registry)
        if s.name == "fedglioma_aggregate_rejected_total"
    }
    assert rejected == {"no_reply": 2, "error": 2, "late": 1, "refused": 0}


def test_site_that_drops_out_shows_no_old_figures(gauges: ServerGauges) -> None:
    gauges.round_finished(a_round(1, henan=good()))
    gauges.round_finished(a_round(2, henan=SiteRound(status="no_reply", bytes_down=100)))
    samples = scrape(gauges.registry)
    assert math.isnan(value(samples, "update_norm", run_id="glioma-1", site="henan"))
    assert value(samples, "update_bytes", run_id="glioma-1", site="henan", direction="up") == 0
    assert math.isnan(value(samples, "metric", run_id="glioma-1", name="loss", region="", site="henan"))
    assert math.isnan(value(samples, "metric", run_id="glioma-1", name="loss", region="idh", site="henan"))


def test_untrained_model_and_a_resumed_round_are_shown_and_not_counted(gauges: ServerGauges) -> None:
    gauges.round_finished(a_round(0))
    gauges.round_restored(a_round(7, henan=good()))
    samples = scrape(gauges.registry)
    assert value(samples, "round", run_id="glioma-1") == 7
    assert value(samples, "rounds_total", run_id="glioma-1", status="completed") == 0
    assert not [s for s in samples if s.name == "fedglioma_round_duration_seconds_count"]


def test_sites_and_failed_rounds_are_shown(gauges: ServerGauges) -> None:
    gauges.sites_connected(2)
    gauges.site_seen("henan", 1.75e9)
    gauges.round_failed()
    samples = scrape(gauges.registry)
    assert value(samples, "sites_connected", run_id="glioma-1") == 2
    assert value(samples, "site_last_seen_timestamp_seconds", run_id="glioma-1", site="henan") == 1.75e9
    assert value(samples, "rounds_total", run_id="glioma-1", status="failed") == 1


def test_memory_is_what_linux_says(gauges: ServerGauges) -> None:
    shown = value(scrape(gauges.registry), "process_resident_memory_bytes")
    status = Path("/proc/self/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    assert shown == pytest.approx(resident, rel=0.1)


def test_nothing_is_registered_for_the_whole_process(gauges: ServerGauges) -> None:
    ServerGauges("another")
    assert gauges.registry is not REGISTRY
    assert not [family for family in REGISTRY.collect() if family.name.startswith("fedglioma")]


def test_port_0_shows_nothing_and_any_other_only_on_this_computer(gauges: ServerGauges) -> None:
    gc.collect()  # what earlier tests left must not be closed in between
    before = set(Path("/proc/self/fd").iterdir())
    serve(gauges.registry)()
    assert set(Path("/proc/self/fd").iterdir()) == before
    with served(gauges.registry) as port:
        sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        listening = [words[1] for words in sockets if words[3] == "0A" and words[1].endswith(f":{port:04X}")]
        assert listening == [f"0100007F:{port:04X}"]
    with pytest.raises(OSError, match="refused"):
        fetch(port)


def test_port_that_is_taken_is_told_in_words(gauges: ServerGauges) -> None:
    with served(gauges.registry) as port:
        with pytest.raises(
            ConfigError, match=rf"metrics_port {port} on 127\.0\.0\.1: cannot be opened"
        ) as raised:
            serve(gauges.registry, port=port)
        assert "choose another port, or 0" in str(raised.value)
        assert fetch(port)
    for host, port in (("no.such.host.invalid", 9464), ("127.0.0.1", 70000)):
        with pytest.raises(ConfigError, match="cannot be opened"):
            serve(gauges.registry, host, port)


def test_page_has_every_metric_with_its_labels_and_no_other() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for title, registry in zip(("## Server", "## Site"), in_use(), strict=True):
        section = page.partition(f"{title}\n")[2].partition("\n## ")[0]
        rows = dict(re.findall(r"^\| `(fedglioma_\w+)` \| \w+ \| ([^|]*) \|", section, re.MULTILINE))
        told = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows.items()}
        assert told == labels_by_name(scrape(registry))
