"""What a run does when a site, the server, the network, the disk or a clock fails: docs/fault-matrix.md.

Every fault is real: a process is killed, a connection cut, a disk full. The images and settings are those
of the undisturbed run, so that weights can be compared bit for bit wherever the same sites answered.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedglioma.verification import verify
from tests.federation_processes import SITES, Federation, Ground, Running, federation
from tests.federation_proxy import Proxy
from tests.federation_reference import Reference, assert_same_run

pytestmark = [pytest.mark.flower, pytest.mark.slow]

HEARTBEAT_S = 10.0
"""A site counts as away when it was not heard for twice as long."""

Note = Callable[..., None]


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Iterator[Note]:
    """Collect what was seen, for the table in docs/fault-matrix.md, where FAULT_MATRIX names a file."""
    seen: dict[str, object] = {"test": request.node.name}
    began = time.monotonic()
    yield lambda **facts: seen.update(facts)
    path = os.environ.get("FAULT_MATRIX")
    if path:
        seen["seconds"] = round(time.monotonic() - began, 1)
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(seen) + "\n")


@pytest.fixture
def fed(ground: Ground, folder: Path) -> Iterator[Federation]:
    """A federation whose centre has no patients of its own: nothing is evaluated, which takes a while."""
    with federation(ground, folder, cohorts=[]) as made:
        yield made


def phase(fed: Federation, site: str) -> str:
    return str(fed.status().get("sites", {}).get(site, {}).get("phase"))


def sent_again(fed: Federation, site: str) -> int:
    return len(fed.audit("sent", site=site, again=True))


def ends_well(fed: Federation, server: Running, sites: dict[str, Running], expected: Reference) -> None:
    """The server and all sites end with 0, nothing was left out, and the weights are the undisturbed ones."""
    fed.ends(server, 0)
    for site in sites.values():
        fed.ends(site, 0)
    assert_same_run(fed, expected)
    for line in fed.rounds()[1:]:
        assert {name: one.status for name, one in line.sites.items()} == dict.fromkeys(SITES, "ok")
    assert verify(fed.run.path / "audit.jsonl").broken is None
    assert not list(fed.run.path.rglob(".*.part"))


def test_site_killed_before_the_run_comes_back_and_nothing_is_lost(fed, undisturbed, note):
    server = fed.serve()
    sites = {"ningxia": fed.join("ningxia"), "zhengzhou": fed.join("zhengzhou")}
    fed.until(fed.online("ningxia", "zhengzhou"), "both are connected")
    for site in ("ningxia", "zhengzhou"):
        fed.until(lambda site=site: fed.audit("site_joined", site=site), f"{site} has joined")
    sites["ningxia"].kill()
    sites["zhengzhou"].kill_node()
    sites["ningxia"] = fed.join("ningxia")
    assert not fed.rounds()
    fed.until(lambda: "the connection ended (killed by SIGKILL" in sites["zhengzhou"].said(), "it says so")
    began = time.monotonic()
    sites["henan"] = fed.join("henan")
    fed.until(fed.complete(1), "round 1 is complete")
    note(seconds_to_round=round(time.monotonic() - began, 1), rounds_lost=0, weights="the same bits")
    ends_well(fed, server, sites, undisturbed)


@pytest.mark.parametrize(
    ("meddle", "instant"), [("train_waits:1", "training"), ("upload_waits", "uploading")]
)
def test_site_killed_in_its_work_comes_back_and_the_round_counts(meddle, instant, fed, undisturbed, note):
    server = fed.serve()
    sites = {site: fed.join(site, meddle=meddle) for site in ("ningxia", "zhengzhou")}
    sites["henan"] = fed.join("henan")
    for site in ("ningxia", "zhengzhou"):
        fed.until(fed.at(site, instant), f"{site} is {instant}")
    if instant == "uploading":
        fed.until(lambda: phase(fed, "ningxia") == "upload", "the server sees it")
    fed.until(lambda: phase(fed, "henan") == "done", "henan has answered")
    began = time.monotonic()
    sites["ningxia"].kill()
    sites["zhengzhou"].kill_node()
    for site in ("ningxia", "zhengzhou"):
        fed.release(site)
    sites["ningxia"] = fed.join("ningxia")
    fed.until(fed.complete(1), "round 1 is complete")
    note(seconds_to_round=round(time.monotonic() - began, 1), rounds_lost=0, weights="the same bits")
    ends_well(fed, server, sites, undisturbed)
    assert sent_again(fed, "ningxia") == sent_again(fed, "zhengzhou") == 1
    assert sent_again(fed, "henan") == 0


def test_site_killed_between_rounds_comes_back_for_the_next(fed, undisturbed, note):
    server = fed.serve()
    sites = {site: fed.join(site) for site in ("ningxia", "zhengzhou")}
    sites["henan"] = fed.join("henan", meddle="train_waits:2")
    fed.until(fed.at("henan", "training"), "henan trains in round 2")
    for site in ("ningxia", "zhengzhou"):
        fed.until(lambda site=site: phase(fed, site) == "done", f"{site} has answered")
    began = time.monotonic()
    sites["ningxia"].kill()
    sites["zhengzhou"].kill_node()
    sites["ningxia"] = fed.join("ningxia")
    fed.release("henan")
    fed.until(fed.complete(2), "round 2 is complete")
    fed.until(fed.complete(3), "round 3 is complete")
    note(seconds_to_round=round(time.monotonic() - began, 1), rounds_lost=0, weights="the same bits")
    ends_well(fed, server, sites, undisturbed)


def test_site_killed_for_good_is_left_out_after_the_grace_and_the_others_finish(
    ground, without_henan_from_2, folder, note
):
    with federation(ground, folder, cohorts=[], run={"grace_s": 15}) as fed:
        server = fed.serve()
        sites = {site: fed.join(site) for site in ("ningxia", "zhengzhou")}
        sites["henan"] = fed.join("henan", meddle="train_waits:2")
        fed.until(fed.at("henan", "training"), "henan trains in round 2")
        for site in sites:
            fed.until(lambda site=site: site == "henan" or phase(fed, site) == "done", f"{site} has answered")
        sites.pop("henan").kill()
        held = fed.until(fed.complete(2), "round 2 is complete")
        fed.ends(server, 0)
        for site in sites.values():
            fed.ends(site, 0)
        lines = {line.round: line.sites["henan"] for line in fed.rounds()[1:]}
        assert (lines[1].status, lines[2].status, lines[3].status) == ("ok", "no_reply", "no_reply")
        assert "no reply before the grace after the quorum" in lines[2].reason
        assert lines[3].reason
        assert fed.digests() == without_henan_from_2
        assert fed.run.read().status == "completed"
        weights = "those of a run in which henan answers round 1 only"
        note(seconds_to_round=round(held, 1), rounds_lost=0, weights=weights)


@pytest.fixture(scope="session")
def without_henan_from_2(ground: Ground, undisturbed: Reference) -> dict[int, str | None]:
    """The weights after each round where henan answers the first round only."""
    from tests.federation_reference import run_without

    return run_without(ground, undisturbed.folder.path.parent / "without", site="henan", first=2)


@pytest.mark.parametrize(
    ("meddle", "instant"),
    [("aggregate_waits:2", "aggregating"), ("checkpoint_waits:2", "checkpointing")],
)
def test_server_killed_at_work_continues_with_the_same_run(meddle, instant, fed, undisturbed, note):
    server, sites = fed.serve(meddle=meddle), fed.join_all()
    fed.until(fed.at("server", instant), f"the server is {instant}")
    run, done = fed.run.read(), fed.digests()
    assert list(done) == [0, 1]
    if instant == "checkpointing":
        (half,) = fed.run.checkpoints.glob(".round-0002*.part")
        assert half.stat().st_size > 1000
    note(**killed_and_started_again(fed, server, sites, undisturbed))
    assert fed.run.read().model_dump(include=SAME) == run.model_dump(include=SAME)
    assert {number: fed.digests()[number] for number in done} == done
    assert fed.audit("run_resumed", round=1, sites=list(SITES))


def test_server_killed_while_it_waits_continues_with_the_same_run(fed, undisturbed, note):
    server = fed.serve()
    sites = {site: fed.join(site) for site in ("ningxia", "zhengzhou")}
    sites["henan"] = fed.join("henan", meddle="train_waits:2")
    fed.until(fed.at("henan", "training"), "henan trains in round 2")
    for site in ("ningxia", "zhengzhou"):
        fed.until(lambda site=site: phase(fed, site) == "done", f"{site} has answered")
    run = fed.run.read()
    server.kill()
    # A site's answer to a server that is gone is of no use to the next one: it is asked again.
    fed.release("henan")
    note(**killed_and_started_again(fed, server, sites, undisturbed))
    assert fed.run.read().model_dump(include=SAME) == run.model_dump(include=SAME)
    assert fed.audit("run_resumed", round=1, sites=list(SITES))


SAME = {"run_id", "created", "settings", "sites", "class_counts", "data_digest"}
"""What tells that a run is the one that was begun."""


def killed_and_started_again(
    fed: Federation, server: Running, sites: dict[str, Running], expected: Reference
) -> dict[str, object]:
    """Kill the server, start the same command, and see the run to the end of the undisturbed one."""
    nodes = {site: one.children() for site, one in sites.items()}
    server.kill()
    killed = time.monotonic()
    assert fed.run.read().status == "running"
    again = fed.serve()
    fed.until(fed.complete(2), "round 2 is complete")
    seconds = round(time.monotonic() - killed, 1)
    fed.ends(again, 0)
    for name, site in sites.items():
        assert site.ended() or site.children() == nodes[name], "a site's node survives the server's restart"
        fed.ends(site, 0)
    assert_same_run(fed, expected)
    assert verify(fed.run.path / "audit.jsonl").broken is None
    assert not list(fed.run.path.rglob(".*.part"))
    return {"seconds_to_round": seconds, "rounds_lost": 1, "weights": "the same bits"}


def test_network_of_one_site_is_cut_for_longer_than_the_heartbeat(fed, undisturbed, note):
    with Proxy(fed.port) as cut, Proxy(fed.port) as dumb:
        fed.set_site("ningxia", server=f"127.0.0.1:{cut.port}")
        fed.set_site("zhengzhou", server=f"127.0.0.1:{dumb.port}")
        server = fed.serve()
        sites = {"ningxia": fed.join("ningxia", meddle="train_waits:2"), "henan": fed.join("henan")}
        sites["zhengzhou"] = fed.join("zhengzhou", meddle="train_waits:2")
        for site in ("ningxia", "zhengzhou"):
            fed.until(fed.at(site, "training"), f"{site} trains in round 2")
        cut.refuse()
        dumb.swallow()
        away = fed.until(
            lambda: not fed.online("ningxia")() and not fed.online("zhengzhou")(), "both are away"
        )
        time.sleep(max(0, HEARTBEAT_S + 1 - away))  # the last sign of a busy site may be older than that
        for site in ("ningxia", "zhengzhou"):
            fed.release(site)
        time.sleep(2)  # their answers meet a closed road
        cut.restore()
        dumb.restore()
        back = fed.until(fed.complete(2), "round 2 is complete")
        note(away_s=round(away, 1), back_s=round(back, 1), rounds_lost=0, weights="the same bits")
        ends_well(fed, server, sites, undisturbed)


def test_full_disk_at_the_checkpoint_ends_the_run_and_room_continues_it(fed, undisturbed, small_disk, note):
    fed.run.path.parent.mkdir(parents=True)
    fed.run.path.symlink_to(small_disk)
    server, sites = fed.serve(meddle="checkpoint_waits:2"), fed.join_all()
    fed.until(fed.at("server", "checkpointing"), "round 2's checkpoint is begun")
    for part in fed.run.checkpoints.glob(".round-0002*.part"):
        part.unlink()
    filler = small_disk / "work" / "filler"
    fill(filler)
    fed.release("server")
    took = fed.ends(server, 1)
    assert "No space left on device" in server.said()
    assert "make space" in server.said()
    assert "Traceback" not in server.said()
    assert [line.round for line in fed.rounds()] == [0, 1]
    filler.unlink()
    again = fed.serve()
    ends_well(fed, again, sites, undisturbed)
    note(ended_after_s=round(took, 1), exit_code=1, rounds_lost=1, weights="the same bits")


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB in memory; only root may mount one."""
    mount = shutil.which("mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() != 0 or mount is None:
        pytest.skip("only root may mount a small disk")
    made = subprocess.run(  # noqa: S603 - our own words
        [mount, "-t", "tmpfs", "-o", "size=24m", "fedglioma-test", str(folder)], check=False
    )
    if made.returncode != 0:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run([str(shutil.which("umount")), "-l", str(folder)], check=True)  # noqa: S603


def test_site_whose_clock_is_wrong_is_told_so_and_the_others_go_on(ground, folder, without_henan, note):
    with federation(ground, folder, cohorts=[], join_timeout_s=60) as fed:
        late = fed.join("henan", meddle="clock:600")
        fed.until(lambda: "does not answer" in late.said(), "henan waits for the server")
        server = fed.serve()
        sites = {site: fed.join(site) for site in ("ningxia", "zhengzhou")}
        told = fed.until(lambda: "s ahead of the server's; trying again" in late.said(), "henan says so")
        said = [int(seconds) for seconds in re.findall(r"clock is (\d+) s ahead of", late.said())]
        assert all(560 <= seconds <= 640 for seconds in said), said
        fed.ends(server, 0)
        for site in sites.values():
            fed.ends(site, 0)
        assert not late.ended()
        assert not late.children()
        assert not fed.audit("site_joined", site="henan")
        assert fed.digests() == without_henan.digests
        note(told_s=round(told, 1), rounds_lost=0, weights="those of a run without henan")


@pytest.fixture(scope="session")
def without_henan(ground: Ground, undisturbed: Reference) -> Reference:
    """The run of the two other sites."""
    from tests.federation_reference import run_reference

    others = [site for site in SITES if site != "henan"]
    return run_reference(ground, undisturbed.folder.path.parent / "two", others)
