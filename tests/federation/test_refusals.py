"""A wrong server, a foreign bundle, a bad update: each is refused with its reason, and the others go on."""

import secrets
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree

from fedglioma.wire import FINISHED, STATISTICS, Noted, Refusal, reply_to
from fedglioma_server.authority import (
    certificate_pem,
    create_authority,
    issue_server,
    key_pem,
    new_key,
    read_certificate,
    read_key,
)
from fedglioma_server.link import Address, serving
from tests.federation_member import USUAL_STEP, Member, statistics, step, update
from tests.federation_processes import Federation, Ground, federation

pytestmark = [pytest.mark.flower, pytest.mark.slow]


def other_server(folder: Path, fault: str, ground: Ground) -> tuple[Path, Path]:
    """Write a server's certificate and key with something wrong about them."""
    now = datetime.now(UTC)
    authority_key = new_key() if fault == "self-made" else read_key(ground.consortium / "ca" / "ca.key")
    authority = (
        create_authority(authority_key, "fedglioma", days=10, now=now)
        if fault == "self-made"
        else read_certificate(ground.consortium / "ca" / "ca.pem")
    )
    key = new_key()
    hosts = ["other.example"] if fault == "wrong name" else ["127.0.0.1"]
    begin = max(now - timedelta(days=2), authority.not_valid_before_utc) if fault == "expired" else now
    days = 0 if fault == "expired" else 1
    certificate = issue_server(authority, authority_key, key, hosts, days=days, now=begin)
    folder.mkdir()
    (folder / "server.pem").write_bytes(certificate_pem(certificate))
    (folder / "server.key").write_bytes(key_pem(key))
    return folder / "server.pem", folder / "server.key"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("self-made", "certificate"),
        ("expired", "certificate has expired"),
        ("wrong name", "not valid for '127.0.0.1'"),
    ],
)
def test_client_that_meets_a_wrong_certificate_ends_with_7(fault, words, ground, folder):
    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("a request came through")

    certificate, key = other_server(folder.parent / "other", fault, ground)
    with federation(ground, folder) as fed, serving(app, Address("127.0.0.1", 0, certificate, key)) as port:
        fed.set_site("henan", server=f"127.0.0.1:{port}")
        client = fed.join("henan")
        fed.ends(client, 7)
        assert "its certificate is not the consortium's" in client.said()
        assert words in client.said()
        assert "Traceback" not in client.said()


def test_client_that_meets_a_server_without_tls_ends_with_7(ground, folder):
    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("a request came through")

    with federation(ground, folder) as fed, serving(app, Address("127.0.0.1", 0)) as port:
        fed.set_site("henan", server=f"127.0.0.1:{port}")
        client = fed.join("henan")
        fed.ends(client, 7)
        assert "no TLS there" in client.said()


def test_client_of_another_version_ends_with_5_at_the_door(ground, folder):
    with federation(ground, folder, cohorts=[]) as fed:
        fed.serve(meddle="bundle")
        fed.until(lambda: bool(fed.status()), "the server waits")
        client = fed.join("henan")
        fed.ends(client, 5)
        assert "with another bundle than this site's; install the version" in client.said()
        assert not fed.audit("site_joined")


def test_site_refuses_a_run_with_a_foreign_bundle_and_unpacks_nothing(ground, folder):
    with federation(ground, folder, cohorts=[], expected=["henan"], run={"quorum": 1}) as fed:
        server = fed.serve(meddle="run_bundle")
        client = fed.join("henan")
        fed.ends(server, 3)
        (refused,) = fed.audit("site_refused", site="henan")
        assert "PolicyError: bundle " in refused["reason"]
        assert "install the same version at both ends" in refused["reason"]
        assert "refused: bundle " in client.said()
        assert not [path for path in fed.kit("henan").rglob("*") if path.suffix in (".py", ".toml", ".fab")]
        log = next(fed.kit("henan").rglob("audit.jsonl")).read_text()
        assert '"refused"' in log
        assert "bundle" in log


def next_message(fed: Federation, member: Member, group: str) -> Message:
    """Return the message of a round once it is there."""
    found: list[Message] = []

    def there() -> bool:
        message = member.pull()
        if message is not None:
            found.append(message)
        return message is not None

    fed.until(there, f"{member.site} has its message of round {group}")
    assert found[0].metadata.group_id == group
    return found[0]


def spoiled(message: Message, value: float) -> Message:
    """Return an update with one number replaced."""
    packed = step(message)
    packed["trunk"][3] = value
    return update(message, packed, "henan")


def test_bad_updates_are_left_out_with_their_reasons_and_the_run_goes_on(ground, folder):
    settings = {"rounds": 8, "grace_s": 15}
    with ExitStack() as stack:
        fed = stack.enter_context(federation(ground, folder, cohorts=[], run=settings))
        server = fed.serve()
        sites = {site: fed.join(site) for site in ("ningxia", "zhengzhou")}
        fed.until(lambda: bool(fed.status()), "the server waits")
        henan = stack.enter_context(
            Member.joined("henan", fed.port, fed.consortium / "ca" / "ca.pem", fed.kit("henan") / "node.key")
        )
        message = next_message(fed, henan, "0")
        assert message.metadata.message_type == STATISTICS
        henan.push(statistics(message, "henan"))
        first = next_message(fed, henan, "1")
        henan.push(update(first, step(first), "henan"))

        message = next_message(fed, henan, "2")
        henan.push(spoiled(message, np.nan))
        message = next_message(fed, henan, "3")
        henan.push(spoiled(message, np.inf))
        message = next_message(fed, henan, "4")
        packed = step(message)
        packed["trunk"] = packed["trunk"][:-1]
        henan.push(update(message, packed, "henan"))
        message = next_message(fed, henan, "5")
        henan.push(update(message, step(message, 100 * USUAL_STEP), "henan"))
        message = next_message(fed, henan, "6")
        refusal = Refusal(site="henan", error="PolicyError", exit_code=5, reason="policy: no more rounds")
        henan.push(reply_to(message, refusal))

        late = next_message(fed, henan, "7")
        fed.until(fed.complete(7), "round 7 is over without henan")
        assert not henan.push(update(late, step(late), "henan")), "a late reply was taken"
        assert not henan.push(update(first, step(first), "henan")), "an old reply was taken again"

        message = next_message(fed, henan, "8")
        answer = update(message, step(message), "henan")
        forged = update(message, step(message), "ningxia")
        forged.metadata.__dict__["_src_node_id"] = fed.node("ningxia")
        assert not henan.push(forged), "a reply in another's name was taken"
        heavy = ObjectTree(object_id=answer.object_id)
        heavy.children.extend(ObjectTree(object_id=secrets.token_hex(32)) for _ in range(1000))
        assert henan.push_head(answer, heavy)[0] == [], "a reply of a thousand objects was taken"
        assert henan.push(answer)
        assert not henan.push(answer), "a reply was taken twice"

        message = next_message(fed, henan, "end")
        assert message.metadata.message_type == FINISHED
        henan.push(reply_to(message, Noted(site="henan")))
        fed.ends(server, 0)
        for site in sites.values():
            fed.ends(site, 0)
        lines = {line.round: line.sites["henan"] for line in fed.rounds()[1:]}
        found = {number: (line.status, line.code) for number, line in lines.items()}
        assert found == {
            1: ("ok", None),
            2: ("error", "nonfinite"),
            3: ("error", "nonfinite"),
            4: ("error", "shape"),
            5: ("error", "norm"),
            6: ("refused", "policy"),
            7: ("no_reply", "no_reply"),
            8: ("ok", None),
        }
        assert "numbers that are not finite" in lines[2].reason
        assert "100 times as long as the round's median" in lines[5].reason or "times" in lines[5].reason
        assert lines[6].reason == "PolicyError: policy: no more rounds"
        for line in fed.rounds()[1:]:
            assert {line.sites[site].status for site in sites} == {"ok"}
        reasons = [(one["site"], one["reason"]) for one in fed.audit("refused")]
        assert ("henan", "it names ningxia as its sender") in reasons
        assert ("henan", "a reply of 1001 objects is too large") in reasons
        assert sum("late, a duplicate" in reason for _, reason in reasons) == 3
        excluded = {one["round"]: one["reason"].partition(":")[0] for one in fed.audit("excluded")}
        assert excluded == {str(n): line.code for n, line in lines.items() if line.status != "ok"}
        for client in sites.values():
            assert "Traceback" not in client.said()


def test_site_that_does_not_agree_is_left_out_and_says_why(ground, folder):
    with federation(ground, folder, cohorts=[], run={"rounds": 1}) as fed:
        fed.set_site("henan", policy={"strategies": ["fedprox"]})
        server, sites = fed.serve(), fed.join_all()
        fed.ends(server, 0)
        fed.ends(sites["ningxia"], 0)
        fed.ends(sites["zhengzhou"], 0)
        reasons = {one["reason"] for one in fed.audit("site_refused", site="henan")}
        assert reasons == {"PolicyError: policy: strategy fedavg is not among fedprox"}
        assert "policy: strategy fedavg is not among fedprox" in sites["henan"].said()
        assert "henan" not in fed.rounds()[-1].sites
