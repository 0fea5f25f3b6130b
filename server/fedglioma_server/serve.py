"""The deployed server: SuperLink, control and the run in one process, from settings to a finished run."""

import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from fedglioma.audit import AuditLog
from fedglioma.bundle import build_bundle
from fedglioma.chain import AUDIT_FILE
from fedglioma.config.server import ServerConfig
from fedglioma.errors import ConfigError, FedGliomaError, QuorumError
from fedglioma.scrape import new_registry, serve
from fedglioma.training.learner import layout_of
from fedglioma_server.control import Control
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.evaluation_cohort import EvaluationCohort
from fedglioma_server.federation import run_federation
from fedglioma_server.gauges import ServerGauges
from fedglioma_server.link import Address, Link, require_usable
from fedglioma_server.linkgrid import LinkGrid, Terms
from fedglioma_server.members import Members
from fedglioma_server.records import RoundRecord
from fedglioma_server.runfolder import RunFolder, now
from fedglioma_server.runstatus import Stopped
from fedglioma_server.strategies import combiner_of

logger = logging.getLogger(__name__)

_UPDATE_SLACK = 1 << 20


@dataclass
class Server:
    """One start of the server.

    Parameters
    ----------
    config : ServerConfig
        Its settings.
    cohort : EvaluationCohort
        The centre's own patients.
    """

    config: ServerConfig
    cohort: EvaluationCohort
    began: str = field(default_factory=now)
    _stop: threading.Event = field(default_factory=threading.Event)
    _grid: LinkGrid | None = None
    _link: Link | None = None

    @property
    def folder(self) -> RunFolder:
        """The run's folder, which is also the server's state."""
        return RunFolder(self.config.out)

    def run(self) -> None:
        """Accept the hospitals and drive the run to its end.

        Raises
        ------
        ConfigError, IdentityError
            An address, a key or a certificate cannot be used; nothing was opened.
        QuorumError
            Too few sites joined or answered.
        Stopped
            Somebody asked for the end.
        """
        members, expected = self._members()
        audit = AuditLog(self.folder.path / AUDIT_FILE)
        gauges = ServerGauges(run_id=self.folder.path.name)
        link = self._open_link(members, audit, gauges)
        control = Control(self.status, lambda: self._ask_stop(audit))
        with ExitStack() as open_things:
            open_things.callback(members.close)
            open_things.callback(serve(gauges.registry, port=self.config.metrics_port))
            run_id = link.begin_run()
            for site, key in members.sites.items():
                link.state.admit(site, key)
            members.watch(link.state.admit, lambda site, key: _expel(link, audit, site, key))
            open_things.enter_context(control.listening(self.folder))
            port = open_things.enter_context(link.listening(self._address()))
            self._announce(port, sorted(members.sites))
            self._grid = self._make_grid(link, run_id, audit)
            for line in self.folder.rounds()[-1:]:
                gauges.round_restored(line)
            self._watch_sites(open_things, gauges, audit)
            coordinator = Coordinator(
                path=self.config.out,
                settings=self.config.run,
                selection=self.cohort.selection,
                report=self.cohort.report,
                device_name=self.config.device,
                threads=self.config.threads,
                join_timeout_s=self.config.join_timeout_s,
                members=lambda: {view.node: view.site for view in link.state.sites()},
                expected=expected,
                audit=lambda event, /, **facts: audit.note(event, **facts),
                audit_head=audit.head,
                stop_asked=self._stop.is_set,
                usable=self._grid.usable,
            )
            try:
                run_federation(self._grid, coordinator, lambda line: self._finished(line, audit, gauges))
            except BaseException as error:
                if isinstance(error, QuorumError):
                    gauges.round_failed()
                _note_if_possible(audit, "run_stopped", run=self.folder.path.name, reason=_ending(error))
                raise

    def status(self) -> dict[str, Any]:
        """Return what the server does, for people and programs."""
        rounds = self.folder.rounds()
        watch = self._grid.watch if self._grid else None
        seen = self._link.gate.traffic.last_seen if self._link else {}
        sites = {
            view.site: {
                "online": view.online,
                "phase": (watch.phases.get(view.site, "idle") if watch else "idle"),
                "last_seen_s": round(time.time() - seen[view.site], 1) if view.site in seen else None,
            }
            for view in (self._link.state.sites() if self._link else [])
        }
        return {
            "run_id": self.folder.path.name,
            "since": self.began,
            "rounds": self.config.run.rounds,
            "complete": max((line.round for line in rounds), default=0),
            "round": watch.round if watch else "",
            "stopping": self._stop.is_set(),
            "quorum": self.config.run.quorum,
            "sites": sites,
            "turned_away": dict(self._link.gate.traffic.turned_away) if self._link else {},
            "best": next((line.round for line in reversed(rounds) if line.selected), None),
        }

    def _ask_stop(self, audit: AuditLog) -> None:
        logger.warning("stop asked for: the server ends after the round in flight")
        self._stop.set()
        _note_if_possible(audit, "control", what="stop")

    def check(self) -> None:
        """Raise for what would keep the server from starting; nothing is opened or made."""
        self._members()
        with ExitStack() as tried:  # the two ports at once: they may be the same
            tried.callback(serve(new_registry(), port=self.config.metrics_port))
            require_usable(self._address())

    def _members(self) -> tuple[Members, tuple[str, ...]]:
        """Return who may join, and the sites that the start waits for: those named, else all."""
        members = Members(self.config.sites)
        unknown = sorted(set(self.config.expected) - set(members.sites))
        if unknown:
            raise ConfigError(f"expected: {', '.join(unknown)} has no public key in {self.config.sites}")
        return members, self.config.expected

    def _open_link(self, members: Members, audit: AuditLog, gauges: ServerGauges) -> Link:
        def refused(site: str, group: str, reason: str) -> None:
            audit.note("refused", site=site, round=group, reason=reason)
            gauges.rejected("late")

        self._link = Link(
            members,
            self.folder.work / "spool",
            payload_bytes=layout_of(self.config.run).payload_bytes + _UPDATE_SLACK,
            hello=lambda _site: {
                "run": self.folder.path.name,
                "version": version("fedglioma"),
                "bundle": build_bundle().digest,
            },
            refused=refused,
        )
        return self._link

    def _make_grid(self, link: Link, run_id: int, audit: AuditLog) -> LinkGrid:
        settings = self.config.run
        return LinkGrid(
            link.state,
            run_id,
            Terms(combiner_of(settings).quorum(), settings.straggler_wait_s),
            sent=lambda site, group, digest, again: audit.note(
                "sent", site=site, round=group, digests=[digest], again=again
            ),
            stopping=self._stop.is_set,
            answered=lambda site, group, digest: audit.note(
                "received", site=site, round=group, digests=[digest]
            ),
        )

    def _address(self) -> Address:
        config = self.config
        if config.insecure:
            return Address(config.address, config.port)
        return Address(config.address, config.port, config.certificate, config.key)

    def _announce(self, port: int, sites: list[str]) -> None:
        scheme = "http, WITHOUT TLS" if self.config.insecure else "https"
        logger.info(
            "listening for hospitals on %s:%d (%s); may join: %s",
            self.config.address,
            port,
            scheme,
            ", ".join(sites),
        )

    def _finished(self, line: RoundRecord, audit: AuditLog, gauges: ServerGauges) -> None:
        gauges.round_finished(line)
        for name, site in line.sites.items():
            facts: dict[str, Any] = {"site": name, "round": str(line.round)}
            if site.status == "ok":
                facts |= {"digests": [site.digest], "bytes": site.bytes_up, "weights": dict(site.weights)}
                audit.append("accepted", **facts)
            elif site.status != "idle":
                audit.note("excluded", **facts, reason=f"{site.code}: {site.reason}")
        digests: list[str | int | float | bool | None] = [line.weights_digest] if line.weights_digest else []
        audit.note("aggregated", round=str(line.round), digests=digests)

    def _watch_sites(self, open_things: ExitStack, gauges: ServerGauges, audit: AuditLog) -> None:
        """Say who comes and goes, every second, in a thread that ends with the server."""
        ended = threading.Event()
        thread = threading.Thread(target=self._look, args=(ended, gauges, audit), name="sites", daemon=True)
        open_things.callback(thread.join)
        open_things.callback(ended.set)
        thread.start()

    def _look(self, ended: threading.Event, gauges: ServerGauges, audit: AuditLog) -> None:
        before: set[str] = set()
        while not ended.wait(1.0):
            if self._link is None:
                continue
            online = {view.site for view in self._link.state.sites() if view.online}
            for site in sorted(online - before):
                logger.info("%s is connected", site)
            gone, before = sorted(before - online), online
            for site in gone:
                logger.warning("%s is away: not heard for 20 s, or it said goodbye", site)
                _note_if_possible(audit, "site_left", site=site)
            gauges.sites_connected(len(online))
            for site, seen in dict(self._link.gate.traffic.last_seen).items():
                gauges.site_seen(site, seen)


def _ending(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error) if isinstance(error, FedGliomaError | Stopped) else type(error).__name__


def _expel(link: Link, audit: AuditLog, site: str, key: bytes) -> None:
    link.state.expel(key)
    audit.append("key_revoked", site=site)


def _note_if_possible(audit: AuditLog, event: str, /, **facts: str) -> None:
    """Note what happens whether it can be noted or not: an end, above all, which has its own cause."""
    try:
        audit.note(event, **facts)
    except (FedGliomaError, OSError) as error:
        logger.error("%s", error)
