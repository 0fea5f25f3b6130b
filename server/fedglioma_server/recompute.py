"""A round's weights, computed again from files alone: by anybody who is given the run folder.

Needs ``keep_updates``: the checkpoint of the round before, the sites' updates as they travelled, and the
weights, digests and settings on record. Every file is checked against its digest on record first.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fedglioma.errors import ConfigError, ProtocolError
from fedglioma.payload import PART, forms
from fedglioma.training.learner import layout_of
from fedglioma.weights import GROUPS, Layout, digest_of
from fedglioma_server.aggregation import Update
from fedglioma_server.checkpoint import Checkpoints
from fedglioma_server.records import RoundRecord, SiteRound
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.strategies import combiner_of
from fedglioma_server.updates import Stored, StoredUpdate, round_folder


def recompute(run_folder: Path, number: int) -> str:
    """Return the digest of the weights that a round's updates combine to.

    Raises
    ------
    ConfigError
        The folder holds no run, or one that kept no updates.
    ProtocolError
        A file is absent, or is not the one on record; or the weights come out otherwise than recorded.
    """
    folder = RunFolder(run_folder)
    settings = folder.read().settings
    if not settings.keep_updates:
        raise ConfigError(f"{run_folder}: this run kept no updates; start one with keep_updates")
    rounds = {line.round: line for line in folder.rounds()}
    line, before = _line(rounds, number), _line(rounds, number - 1)
    layout = layout_of(settings)
    checkpoints = Checkpoints(folder.checkpoints, layout)
    sent = checkpoints.load(number - 1)
    _same("checkpoint", number - 1, digest_of(sent), before.weights_digest)
    combiner = combiner_of(settings)
    state = checkpoints.load_state(number - 1)
    if number > 1:
        _same("state", number - 1, None if state is None else state.digest(), before.state_digest)
        combiner.restore(state)
    opened: list[StoredUpdate] = []
    try:
        updates = []
        for site in sorted(name for name, entry in line.sites.items() if entry.status == "ok"):
            path = round_folder(folder.updates, number) / f"{site}.safetensors"
            opened.append(StoredUpdate.open(path))
            require_recorded(path, opened[-1], line.sites[site], layout)
            updates.append(Update(site, line.sites[site].weights, settings.payload, opened[-1].arrays))
            expected = forms(settings.payload, layout.sizes)
            if {g: (a.dtype, a.size) for g, a in opened[-1].arrays.items()} != expected:
                raise ProtocolError(f"{path}: holds arrays of another type or size than the run's")
        digest = digest_of(combiner.combine(updates, sent).arrays)
    finally:
        for update in opened:
            update.close()
    _same("weights", number, digest, line.weights_digest)
    after = combiner.state()
    _same("state", number, None if after is None else after.digest(), line.state_digest)
    return digest


def require_recorded(path: Path, update: StoredUpdate, entry: SiteRound, layout: Layout) -> None:
    """Raise ``ProtocolError`` unless a kept update is the one on record, to the bit."""
    if update.metadata.get("layout") != layout.digest:
        raise ProtocolError(f"{path}: is of another network than the run")
    if stored_digest(update.arrays) != entry.digest:
        raise ProtocolError(f"{path}: is not the update on record, its digest differs")


def stored_digest(arrays: Mapping[str, Stored]) -> str:
    """Return sha256 over a stored update, as ``digest_of`` gives it for one in memory."""
    digest = hashlib.sha256()
    for group in GROUPS:
        for start in range(0, arrays[group].size, PART):
            digest.update(arrays[group][start : start + PART].data)
    return digest.hexdigest()


def _line(rounds: Mapping[int, RoundRecord], number: int) -> RoundRecord:
    if number not in rounds:
        raise ProtocolError(f"rounds.jsonl: no round {number} on record")
    return rounds[number]


def _same(what: str, number: int, found: str | None, recorded: str | None) -> None:
    if found != recorded:
        raise ProtocolError(f"round {number}: {what} digest {found}, on record {recorded}")
