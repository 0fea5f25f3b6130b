"""The privacy ledger against a plain list: what is counted, of whom, and what is refused."""

import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedglioma.errors import BudgetExhausted, IdentityError, PrivacyError
from fedglioma.privacy.accounting import Mechanism, epsilon_of
from fedglioma.privacy.ledger import Ledger
from fedglioma.privacy.ledger_entries import Budget, Release, ReleaseKey, Reservation, member_tags
from fedglioma.privacy.ledger_runs import runs_of
from tests.ledger_fixture import AMPLE, DELTA, SECRET, gaussian_epsilon, key, ledger_in, noise, spend, tags


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return ledger_in(tmp_path)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_made_and_nothing_is_spent_before_the_first_round(ledger: Ledger, tmp_path: Path) -> None:
    assert ledger.epsilon_spent(None, DELTA, "prv") == 0
    assert ledger.head().seq == 0
    assert ledger.entries() == ()
    assert ledger.settle() == ()
    assert list(tmp_path.iterdir()) == []


def test_spending_is_composed_over_rounds_and_runs(ledger: Ledger) -> None:
    spend(ledger, key(1), 5.0)
    spend(ledger, key(2), 7.0)
    spend(ledger, key(1, run="b"), 3.0)
    assert ledger.epsilon_spent(tags(1), DELTA, "prv") == pytest.approx(gaussian_epsilon(5, 7, 3), rel=1e-6)


def test_sampled_mechanisms_are_those_of_the_accountant(ledger: Ledger) -> None:
    part = Mechanism(noise_multiplier=1.1, sampling_rate=0.1, steps=10)
    for number in (1, 2, 3):
        ledger.commit(ledger.reserve(key(number), [part], tags(1), AMPLE), b"%d" % number)
    whole = part.model_copy(update={"steps": 30})
    for accountant in ("prv", "rdp"):
        assert ledger.epsilon_spent(tags(1), DELTA, accountant) == epsilon_of([whole], DELTA, accountant)  # type: ignore[arg-type]


def test_each_patient_is_counted_for_own_releases_alone(ledger: Ledger) -> None:
    spend(ledger, key(1), 5.0, (1, 2))
    spend(ledger, key(2), 4.0, (2, 3))
    spend(ledger, key(3), 3.0, (4,))
    for patient, multipliers in ((1, [5]), (2, [5, 4]), (3, [4]), (4, [3]), (5, [])):
        spent = ledger.epsilon_spent(tags(patient), DELTA, "prv")
        assert spent == pytest.approx(gaussian_epsilon(*multipliers), rel=1e-6)
    assert ledger.epsilon_spent(tags(1, 3, 5), DELTA, "prv") == pytest.approx(gaussian_epsilon(4), rel=1e-6)
    everybody = max(gaussian_epsilon(5, 4), gaussian_epsilon(3))
    assert ledger.epsilon_spent(None, DELTA, "prv") == pytest.approx(everybody, rel=1e-6)


def test_budget_refuses_the_round_that_goes_beyond_and_writes_nothing(ledger: Ledger, tmp_path: Path) -> None:
    limit = Budget(epsilon=gaussian_epsilon(5, 5, 5) + 1e-6, delta=DELTA)
    for number in (1, 2, 3):
        ledger.commit(ledger.reserve(key(number), noise(5), tags(1), limit), b"%d" % number)
    before = everything(tmp_path)
    with pytest.raises(
        BudgetExhausted, match=r"round 4.*is spent.*the limit is.*no such release is left"
    ) as raised:
        ledger.reserve(key(4), noise(5), tags(1), limit)
    assert raised.value.exit_code == 6
    assert everything(tmp_path) == before
    ledger.reserve(key(4), noise(5), tags(2), limit)  # another patient has lost nothing yet


def test_open_reservation_counts_as_spent(ledger: Ledger) -> None:
    ledger.reserve(key(1), noise(5), tags(1), AMPLE)
    assert ledger.epsilon_spent(tags(1), DELTA, "prv") == pytest.approx(gaussian_epsilon(5), rel=1e-6)


def test_reservation_asked_for_again_is_the_same_and_spends_once(ledger: Ledger) -> None:
    first = ledger.reserve(key(1), noise(5), tags(1, 2), AMPLE)
    head = ledger.head()
    assert ledger.reserve(key(1), noise(5), tags(2, 1), AMPLE) == first
    assert ledger.head() == head


def test_reservation_that_is_asked_for_otherwise_is_made_anew(ledger: Ledger) -> None:
    first = ledger.reserve(key(1), noise(5), tags(1, 2), AMPLE)
    second = ledger.reserve(key(1), noise(4), tags(1, 2), AMPLE)
    third = ledger.reserve(key(1), noise(4), tags(1, 2, 3), AMPLE)
    assert len({first.seq, second.seq, third.seq}) == 3
    assert ledger.epsilon_spent(tags(1), DELTA, "prv") == pytest.approx(gaussian_epsilon(4), rel=1e-6)
    for given_up in (first, second):
        with pytest.raises(PrivacyError, match="nothing is reserved for it any more"):
            ledger.commit(given_up, b"update")


def test_lower_limit_refuses_a_reservation_that_is_taken_up(ledger: Ledger) -> None:
    ledger.reserve(key(1), noise(5), tags(1), AMPLE)
    with pytest.raises(BudgetExhausted):
        ledger.reserve(key(1), noise(5), tags(1), Budget(epsilon=0.1, delta=DELTA))


def test_committed_release_can_only_be_sent_again_as_it_is(ledger: Ledger) -> None:
    reservation = ledger.reserve(key(1), noise(5), tags(1), AMPLE)
    assert ledger.committed(key(1)) is None
    assert ledger.stored(key(1)) is None
    ledger.commit(reservation, b"update")
    assert ledger.stored(key(1)) == b"update"
    assert ledger.committed(key(1)) is not None
    ledger.commit(reservation, b"update")
    with pytest.raises(PrivacyError, match="another update was released"):
        ledger.commit(reservation, b"another")
    with pytest.raises(PrivacyError, match="answered before"):
        ledger.reserve(key(1), noise(5), tags(1), AMPLE)
    assert ledger.epsilon_spent(None, DELTA, "prv") == pytest.approx(gaussian_epsilon(5), rel=1e-6)


@pytest.mark.parametrize("loss", ["removed", "changed"])
def test_update_that_is_lost_is_made_again_and_paid_for_again(
    ledger: Ledger, tmp_path: Path, loss: str
) -> None:
    spend(ledger, key(1))
    (kept,) = (tmp_path / "privacy" / "outbox").iterdir()
    kept.unlink() if loss == "removed" else kept.write_bytes(b"something else")
    assert ledger.stored(key(1)) is None
    again = key(1, attempt=2)
    spend(ledger, again)
    assert ledger.stored(again) is not None
    assert ledger.epsilon_spent(None, DELTA, "prv") == pytest.approx(gaussian_epsilon(5, 5), rel=1e-6)


def test_outbox_keeps_the_latest_round_of_each_run(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        spend(ledger, key(number))
        spend(ledger, key(number, run="b"))
    spend(ledger, key(3, what="counts"))
    kept = [release.key for release in ledger.entries() if ledger.stored(release.key) is not None]
    assert sorted(map(str, kept)) == [
        "run a, round 3, counts",
        "run a, round 3, update",
        "run b, round 3, update",
    ]


def test_settling_gives_up_what_never_left_but_what_is_kept(ledger: Ledger, tmp_path: Path) -> None:
    spend(ledger, key(1))
    ledger.reserve(key(2), noise(2), tags(1), AMPLE)
    kept = ledger.reserve(key(1, run="b"), noise(3), tags(1), AMPLE)
    orphan = tmp_path / "privacy" / "outbox" / ("f" * 64)
    orphan.write_bytes(b"of a crash")
    assert ledger.settle(keep=key(1, run="b")) == (key(2),)
    assert not orphan.exists()
    assert ledger.stored(key(1)) is not None
    assert ledger.epsilon_spent(None, DELTA, "prv") == pytest.approx(gaussian_epsilon(5, 3), rel=1e-6)
    ledger.commit(kept, b"update")
    assert ledger.settle() == ()


def test_settling_leaves_what_other_runs_at_work_beside_it_reserved(tmp_path: Path) -> None:
    first, second = (Ledger(tmp_path, "north", outbox=tmp_path / run / "outbox") for run in "ab")
    of_a = first.reserve(key(1, run="a"), noise(2), tags(1), AMPLE)
    second.settle(keep=key(1, run="b"))
    of_b = second.reserve(key(1, run="b"), noise(2), tags(1), AMPLE)
    first.commit(of_a, b"update of a")
    second.commit(of_b, b"update of b")
    first.reserve(key(2, run="a"), noise(2), tags(1), AMPLE)
    assert first.settle(keep=key(3, run="a")) == (key(2, run="a"),)
    assert second.stored(key(1, run="b")) is not None


def test_rounds_left_are_as_many_as_are_then_allowed(ledger: Ledger) -> None:
    limit = Budget(epsilon=2.0, delta=DELTA)
    spend(ledger, key(1), 6.0)
    left = ledger.rounds_left(noise(6), tags(1), limit)
    for number in range(left):
        ledger.reserve(key(2 + number), noise(6), tags(1), limit)
    with pytest.raises(BudgetExhausted):
        ledger.reserve(key(99), noise(6), tags(1), limit)
    assert ledger.rounds_left(noise(6), tags(1), limit) == 0


def test_runs_are_summed_up_with_what_each_cost(ledger: Ledger) -> None:
    for number in (1, 2):
        reservation = ledger.reserve(key(number), noise(5, 4), tags(1, 2), AMPLE, about={"clip_norm": 0.5})
        ledger.commit(reservation, b"%d" % number)
    spend(ledger, key(0, run="b", what="counts"), 8.0, (1,))
    spend(ledger, key(1, run="b"), 3.0, (1,))
    ledger.reserve(key(2, run="b"), noise(3), tags(1), AMPLE)
    ledger.settle()
    first, second = runs_of(ledger, AMPLE)
    assert (first.run, first.rounds, first.steps, first.patients) == ("a", (1, 2), 8, 2)
    assert first.about == {"clip_norm": 0.5}
    assert first.epsilon == first.cumulative == pytest.approx(gaussian_epsilon(*[5] * 8), rel=1e-6)
    assert (second.rounds, second.updates, second.releases, second.open) == ((1,), 1, 2, 0)
    assert second.epsilon == pytest.approx(gaussian_epsilon(8, 3), rel=1e-6)
    assert second.cumulative == pytest.approx(gaussian_epsilon(*[5] * 8, 8, 3), rel=1e-6)


def test_folder_is_for_its_owner_alone_and_names_nobody(tmp_path: Path) -> None:
    ledger = ledger_in(tmp_path, tmp_path / "copy.head")
    patients = member_tags(SECRET, ["Maria-Huber-1954", "P2"])
    ledger.commit(ledger.reserve(key(1), noise(5), patients, AMPLE), b"update")
    for path in [tmp_path / "copy.head", *(tmp_path / "privacy").rglob("*"), tmp_path / "privacy"]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert not any(b"huber" in content.lower() for content in everything(tmp_path).values())


def test_tags_differ_by_patient_and_secret_and_not_by_spelling() -> None:
    assert member_tags(SECRET, ["P1"]) == member_tags(SECRET, [" p1 "])
    assert member_tags(SECRET, ["P1"]) != member_tags(SECRET, ["P2"])
    assert member_tags(SECRET, ["P1"]) != member_tags(b"t" * 32, ["P1"])
    assert len(member_tags(SECRET, ["unknown", "none", "P1", "P1"])) == 3
    with pytest.raises(IdentityError, match="secret"):
        member_tags(b"short", ["P1"])


@pytest.mark.parametrize(("mechanisms", "members"), [((), tags(1)), (noise(5), ())])
def test_release_of_nobody_or_of_nothing_is_refused(ledger: Ledger, mechanisms: Any, members: Any) -> None:
    with pytest.raises(PrivacyError, match="names no patient or no mechanism"):
        ledger.reserve(key(1), mechanisms, members, AMPLE)


def test_two_at_once_never_spend_the_same_budget(tmp_path: Path) -> None:
    limit = Budget(epsilon=gaussian_epsilon(*[5] * 6) + 1e-6, delta=DELTA)
    refused = []

    def work(run: str) -> None:
        for number in range(5):
            try:
                reservation = ledger_in(tmp_path).reserve(key(number, run=run), noise(5), tags(1), limit)
                ledger_in(tmp_path).commit(reservation, f"{run}{number}".encode())
            except BudgetExhausted:
                refused.append((run, number))

    workers = [threading.Thread(target=work, args=(run,)) for run in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(refused) == 4
    done = ledger_in(tmp_path)
    assert done.epsilon_spent(None, DELTA, "prv") == pytest.approx(gaussian_epsilon(*[5] * 6), rel=1e-6)


class AgainstAList(RuleBasedStateMachine):
    """Anything in any order, with restarts, beside a list of what left the site."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.state = Path(self.folder.name)
        self.ledger = ledger_in(self.state)
        self.left: list[tuple[float, tuple[int, ...]]] = []
        self.open: dict[ReleaseKey, tuple[Reservation, float, tuple[int, ...]]] = {}
        self.done: set[ReleaseKey] = set()

    def teardown(self) -> None:
        self.folder.cleanup()

    keys = st.builds(key, st.integers(1, 3), st.sampled_from(["a", "b"]))
    sets = st.sampled_from([(1,), (1, 2), (2, 3), (1, 2, 3)])

    @rule(of=keys, multiplier=st.sampled_from([4.0, 6.0, 9.0]), patients=sets)
    def reserve(self, of: ReleaseKey, multiplier: float, patients: tuple[int, ...]) -> None:
        limit = Budget(epsilon=3.0, delta=DELTA)
        if of in self.done:
            with pytest.raises(PrivacyError, match="answered before"):
                self.ledger.reserve(of, noise(multiplier), tags(*patients), limit)
            return
        counted = self.left + [(m, p) for other, (_, m, p) in self.open.items() if other != of]
        after = max(
            gaussian_epsilon(*(m for m, p in counted if patient in p), multiplier) for patient in patients
        )
        if after > 3.0:
            with pytest.raises(BudgetExhausted):
                self.ledger.reserve(of, noise(multiplier), tags(*patients), limit)
            return
        reservation = self.ledger.reserve(of, noise(multiplier), tags(*patients), limit)
        self.open[of] = (reservation, multiplier, patients)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        of = data.draw(st.sampled_from(sorted(self.open, key=str)))
        reservation, multiplier, patients = self.open.pop(of)
        self.ledger.commit(reservation, str(of).encode())
        self.left.append((multiplier, patients))
        self.done.add(of)

    @rule()
    def restart(self) -> None:
        self.ledger = ledger_in(self.state)

    @rule(keep=st.none() | keys)
    def settle(self, keep: ReleaseKey | None) -> None:
        given_up = self.ledger.settle(keep)
        assert set(given_up) == {of for of in self.open if of != keep}
        self.open = {of: entry for of, entry in self.open.items() if of == keep}

    @rule(text=st.sampled_from(["{", '{"seq":', "\0\0\0"]))
    def crash_in_the_middle_of_a_line(self, text: str) -> None:
        path = self.state / "privacy" / "ledger.jsonl"
        if not path.exists() or not path.read_bytes().endswith(b"\n"):
            return
        number = len(path.read_bytes().splitlines()) + 1
        whole = f'{{"seq":{number},"time":"2026-'
        with path.open("ab") as file:
            file.write(whole.encode() if text == '{"seq":' else text.encode())

    @invariant()
    def spending_is_that_of_the_list(self) -> None:
        counted = self.left + [(m, p) for _, m, p in self.open.values()]
        for patient in (1, 2, 3):
            expected = gaussian_epsilon(*(m for m, p in counted if patient in p))
            assert self.ledger.epsilon_spent(tags(patient), DELTA, "prv") == pytest.approx(expected, rel=1e-6)


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(deadline=None, max_examples=40, stateful_step_count=15)


def released(ledger: Ledger) -> Iterator[Release]:
    return (release for release in ledger.entries() if release.committed is not None)


def test_lines_have_what_was_asked_and_what_left(ledger: Ledger) -> None:
    spend(ledger, key(1), 5.0)
    (release,) = released(ledger)
    assert release.reserved.mechanisms == noise(5)
    assert release.reserved.patients == 3
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["opened", "reserved", "committed"]
    assert lines[0]["data"] == {"site": "north", "format": 1}
