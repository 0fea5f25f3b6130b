"""What an operator does with a running server: look, stop it after the round in flight, interrupt it."""

import signal

import pytest

from tests.cli_fixture import call, data_of, reason_of
from tests.federation_processes import SITES, federation
from tests.federation_reference import assert_same_run

pytestmark = [pytest.mark.flower, pytest.mark.slow]


def test_status_tells_and_stop_ends_after_the_round_and_start_continues(ground, undisturbed, folder):
    with federation(ground, folder, cohorts=[]) as fed:
        words = ("--config", fed.settings, "--format", "json")
        told = data_of(call("status", *words))
        assert told == {"running": False, "run_id": None}
        assert "no server runs there" in reason_of(call("stop", "--config", fed.settings))

        server = fed.serve()
        sites = {site: fed.join(site) for site in ("ningxia", "zhengzhou")}
        sites["henan"] = fed.join("henan", meddle="train_waits:2")
        fed.until(fed.at("henan", "training"), "henan trains in round 2")
        told = data_of(call("status", *words))
        assert (told["running"], told["round"], told["complete"], told["rounds"]) == (True, "2", 1, 3)
        assert {site: view["online"] for site, view in told["sites"].items()} == dict.fromkeys(SITES, True)
        assert told["sites"]["henan"]["phase"] == "train"
        assert data_of(call("stop", *words))["stopping"] is True
        assert not server.ended()
        fed.release("henan")
        fed.ends(server, 0)
        assert [line.round for line in fed.rounds()] == [0, 1, 2]
        assert fed.run.read().status == "interrupted"
        assert fed.audit("control", what="stop")
        told = data_of(call("status", *words))
        assert (told["running"], told["status"], told["complete"]) == (False, "interrupted", 2)
        assert not any(site.ended() for site in sites.values()), "the hospitals wait for the server"

        again = fed.serve()
        fed.ends(again, 0)
        for site in sites.values():
            fed.ends(site, 0)
        assert_same_run(fed, undisturbed)
        assert data_of(call("status", *words))["status"] == "completed"
        done = fed.serve()
        fed.ends(done, 0)
        assert "3 rounds over 3 sites" in done.said()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_server_and_client_in_order_with_130(how, ground, folder):
    with federation(ground, folder, cohorts=[]) as fed:
        server = fed.serve()
        client = fed.join("henan", once=False)
        fed.until(fed.online("henan"), "henan is connected")
        for process in (client, server):
            process.popen.send_signal(how)
            fed.ends(process, 130)
            assert "Traceback" not in process.said()
        assert not client.children()
        assert not (fed.run.work / "control.json").exists()
        assert fed.run.read().status == "interrupted"


def test_second_server_on_the_same_run_is_refused(ground, folder):
    with federation(ground, folder, cohorts=[]) as fed:
        fed.serve()
        fed.until(lambda: bool(fed.status()), "the server waits")
        second = call("start", "--config", fed.settings)
        assert second.exit_code == 2
        assert "another process is running here" in reason_of(second)
