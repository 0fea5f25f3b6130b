"""One server and three hospitals as real processes, with TLS and node keys, against the inline engine."""

import stat

import httpx
import pytest

from fedglioma.verification import verify
from tests.federation_fixture import assert_same_bits
from tests.federation_processes import ROUNDS, SITES, federation
from tests.federation_reference import final_weights

pytestmark = [pytest.mark.flower, pytest.mark.slow]


def test_deployed_federation_gives_the_inline_engines_weights_bit_for_bit(ground, undisturbed, folder):
    with federation(ground, folder) as fed:
        server, sites = fed.serve(), fed.join_all()
        handle = fed.run.work / "control.json"
        fed.until(handle.exists, "the control port is open")
        assert stat.S_IMODE(handle.stat().st_mode) == 0o600
        fed.ends(server, 0)
        for site in SITES:
            fed.ends(sites[site], 0)
        assert_same_bits(final_weights(fed.run), undisturbed.weights)
        assert fed.digests() == undisturbed.digests
        assert [line.round for line in fed.rounds()] == list(range(ROUNDS + 1))
        assert fed.run.read().status == "completed"
        assert fed.run.report.stat().st_size > 0
        assert not handle.exists()
        for site in SITES:
            assert len(fed.audit("accepted", site=site)) == ROUNDS
            (log,) = (fed.kit(site) / "state").rglob("audit.jsonl")
            assert verify(log).broken is None
        assert verify(fed.run.path / "audit.jsonl").broken is None


def test_without_tls_both_ends_say_so_in_red_and_keys_still_count(ground, folder):
    run = {"quorum": 1, "rounds": 1}
    with federation(ground, folder, cohorts=[], insecure=True, expected=["henan"], run=run) as fed:
        fed.set_site("henan", insecure=True, ca=None)
        server = fed.serve()
        fed.until(lambda: bool(fed.status()), "the server waits")
        stranger = httpx.post(f"http://127.0.0.1:{fed.port}/v1/fleet/pull-messages", timeout=60)
        assert (stranger.status_code, stranger.content) == (404, b"")
        client = fed.join("henan")
        fed.ends(server, 0)
        fed.ends(client, 0)
        for end in (server, client):
            assert "NO TLS: everything travels readable for anyone on the way" in end.said()
