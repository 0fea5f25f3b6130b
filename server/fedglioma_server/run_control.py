"""The ``status`` and ``stop`` commands: what a running server says, or how its run stands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedglioma.config.server import load_server_config
from fedglioma.errors import FedGliomaError
from fedglioma_server.handle import ask
from fedglioma_server.runfolder import RunFolder

Result = tuple[dict[str, Any], str]


def status(path: Path) -> Result:
    """Return what the server of these settings does now, or how its run stands."""
    folder = _folder(path)
    told = ask(folder, "GET", "status")
    if told is not None:
        return {"running": True, **told}, status_text(told)
    if not folder.exists():
        return {"running": False, "run_id": None}, f"no server runs, and {folder.path} holds no run yet"
    record = folder.read()
    complete = max((line.round for line in folder.rounds()), default=0)
    state = "was killed" if record.status == "running" else record.status
    data = {"running": False, "run_id": record.run_id, "status": record.status, "complete": complete}
    text = f"no server runs; run {record.run_id}: {state} after round {complete} of {record.settings.rounds}"
    if record.failure:
        text += f" ({record.failure})"
    return data, text


def status_text(told: Mapping[str, Any]) -> str:
    """Return a running server's status for reading."""
    lines = [
        f"run {told['run_id']}: {told['complete']} of {told['rounds']} rounds complete"
        + (f", round {told['round']} in flight" if told["round"] else "")
        + (", stopping after it" if told["stopping"] else "")
    ]
    for site, view in told["sites"].items():
        seen = "" if view["last_seen_s"] is None else f", heard {view['last_seen_s']:.0f} s ago"
        lines.append(f"  {site:<20} {'online' if view['online'] else 'away':<7} {view['phase']}{seen}")
    if told["turned_away"]:
        lines.append(
            "turned away: " + ", ".join(f"{count} {why}" for why, count in told["turned_away"].items())
        )
    return "\n".join(lines)


def stop(path: Path) -> Result:
    """Ask the running server to end after the round in flight.

    Raises
    ------
    FedGliomaError
        No server runs there.
    """
    folder = _folder(path)
    if ask(folder, "POST", "stop") is None:
        raise FedGliomaError(f"{folder.path}: no server runs there, nothing to stop")
    return {"run_id": folder.path.name, "stopping": True}, (
        f"run {folder.path.name}: ends after the round in flight; 'fedglioma-server status' shows when"
    )


def _folder(path: Path) -> RunFolder:
    """Return where the run is; a server without TLS may have been told so by its command line only."""
    return RunFolder(load_server_config(path, {"insecure": True}).out)
