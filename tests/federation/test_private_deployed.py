"""Masked sums and private training between real processes over TLS, with keys that hospitals exchanged."""

import json

import pytest
from typer.testing import CliRunner

from fedglioma.privacy.accounting import Mechanism, epsilon_of, gaussian_equivalent
from fedglioma.privacy.ledger import Ledger
from fedglioma_client import cli
from fedglioma_server.records import PrivacyRecord, read_json
from tests.federation_processes import SITES, federation

pytestmark = [pytest.mark.flower, pytest.mark.slow]

MASKED = {"quorum": 3, "secure_aggregation": True, "payload": "masked", "norm_limit": 0, "secure_wait_s": 60}
PRIVATE = {"privacy": "site", "noise_multiplier": 2.0, "sampling_rate": 0.5, "standardize": "zscore"}


def state_of(fed, site):
    (log,) = (fed.kit(site) / "state").rglob("audit.jsonl")
    return log.parent


def test_masked_and_private_run_survives_a_hospital_and_a_server_that_are_killed(ground, folder):
    with federation(ground, folder, run=MASKED | PRIVATE) as fed:
        for site in SITES:
            fed.set_site(site, peers=str(fed.consortium / "sites"))
        server, sites = fed.serve(), fed.join_all()
        fed.until(fed.complete(1), "round 1 is complete")
        sites["henan"].kill()
        sites["henan"] = fed.join("henan")
        server.kill()
        server = fed.serve()
        fed.ends(server, 0, limit_s=400)
        for site in SITES:
            fed.ends(sites[site], 0)
        privacy = read_json(fed.run.path / "privacy.json", PrivacyRecord)
        told = Mechanism(noise_multiplier=gaussian_equivalent(0.5, 1e-5), sampling_rate=1.0, steps=1)
        trained = Mechanism(noise_multiplier=2.0, sampling_rate=0.5, steps=3 * 2)
        expected = epsilon_of([told, trained], 1e-5, "prv")
        assert (privacy.secure_aggregation, privacy.epsilon) == (True, pytest.approx(expected, rel=0.02))
        for site in SITES:
            ledger = Ledger(state_of(fed, site), site)
            assert ledger.epsilon_spent(None, 1e-5, "prv") == pytest.approx(expected, rel=0.02)
            lines = (state_of(fed, site) / "audit.jsonl").read_text().splitlines()
            heads = [json.loads(line)["data"].get("ledger") for line in lines]
            assert ledger.head().digest in heads
            words = ["--site", site, "--config-dir", str(fed.kit(site)), "privacy", "--format", "json"]
            shown = CliRunner().invoke(cli.app, words)
            assert shown.exit_code == 0
            assert json.loads(shown.stdout)["data"]["epsilon_spent"] == pytest.approx(expected, rel=0.02)
        for line in fed.rounds()[1:]:
            assert {entry.update_norm for entry in line.sites.values()} == {None}
