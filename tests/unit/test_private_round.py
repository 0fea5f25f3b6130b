"""What a private site answers, and what its ledger then has, whoever came, went or lacks a label."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from fedglioma.case import Genotype
from fedglioma.config.run import RunConfig
from fedglioma.config.site import PrivacyLimits, SiteConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import DataError, PrivacyError
from fedglioma.masked_update import subject
from fedglioma.privacy.ledger import Ledger
from fedglioma.privacy.masked_state import forget
from fedglioma.training.learner import EQUAL_COUNTS, initial_learner, layout_of
from fedglioma.weights import FlatArrays, pack
from fedglioma.wire import StatisticsReply, StatisticsRequest, TrainReply, TrainRequest
from fedglioma_client import masking
from fedglioma_client.norms import OwnNorms
from fedglioma_client.round import statistics_round, train_round
from fedglioma_client.site import Site
from tests.federation_fixture import TINY, prepared_case

PRIVATE = RunConfig.model_validate(
    TINY.model_dump()
    | {"privacy": "site", "noise_multiplier": 2.0, "sampling_rate": 0.5, "standardize": "zscore"}
    | {"local_epochs": 1, "counts_epsilon": 4.0}
)
EVERYBODY = PrivacyLimits(max_epsilon=None, max_counts_epsilon=4.0)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedCase, ...]:
    folder = tmp_path_factory.mktemp("data")
    return tuple(prepared_case(folder, "henan", number) for number in range(8))


def hospital(folder: Path, cases: Sequence[PreparedCase]) -> Site:
    config = SiteConfig(
        site="henan", data=folder, state=folder / "state", small_cell_limit=1, privacy=EVERYBODY
    )
    return Site(config, tuple(cases))


def changed(case: PreparedCase, **what: Any) -> PreparedCase:
    return replace(case, case=case.case.model_copy(update=what))


def told(site: Site, run: str = "first") -> StatisticsReply:
    return statistics_round(StatisticsRequest(run=run, settings=PRIVATE), site)


def start(settings: RunConfig) -> FlatArrays:
    learner = initial_learner(settings, EQUAL_COUNTS)
    return pack(learner.model, learner.loss)


def trained(
    site: Site, settings: RunConfig = PRIVATE, number: int = 1, run: str = "first"
) -> tuple[TrainReply, FlatArrays]:
    request = TrainRequest(
        run=run,
        round=number,
        settings=settings,
        proximal_mu=0,
        class_counts=EQUAL_COUNTS,
        layout=layout_of(settings).digest,
    )
    return train_round(request, start(settings), site)


def ledger_of(site: Site) -> Ledger:
    return Ledger(site.config.state, "henan")


def spent(site: Site) -> float:
    return ledger_of(site).epsilon_spent(None, 1e-5, "rdp")


def test_answer_to_a_run_asked_again_says_nothing_of_a_patient_who_came_meanwhile(tmp_path, cases):
    first = told(hospital(tmp_path, cases[:7]))
    for later in (cases, cases[:6], cases[:7]):
        assert told(hospital(tmp_path, later)) == first, "and the ledger's head is that of then"
    assert len(ledger_of(hospital(tmp_path, cases)).entries()) == 1


def test_patient_who_came_for_another_run_is_in_what_it_pays_for(tmp_path, cases):
    site = hospital(tmp_path, cases[:7])
    told(site)
    swapped = hospital(tmp_path, [*cases[:6], cases[7]])
    told(swapped, run="second")
    one, other = ledger_of(site).entries()
    ledger = ledger_of(site)
    assert len(ledger.members_of(one) ^ ledger.members_of(other)) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"patient": "BraTS-GLI-00005-000"}, {"patient": "BraTS-GLI-00005-001"}),
        ({"patient": "BraTS-GLI-00005-000"}, {"patient": "BRATS-GLI-00005-000"}),
        ({"patient": "BraTS-GLI-00005-000"}, {"patient": "brats-gli-00005-001"}),
        ({"patient": "sub-0042"}, {"patient": " SUB-0042"}),
        ({"patient": "A1", "linkage_id": "11010X"}, {"patient": "B7", "linkage_id": "11010x"}),
    ],
)
def test_person_under_another_id_or_at_another_visit_is_the_same_to_the_ledger(
    before: dict[str, str], after: dict[str, str], tmp_path: Path, cases: tuple[PreparedCase, ...]
) -> None:
    told(hospital(tmp_path / "one", [changed(cases[0], **before)]))
    site = hospital(tmp_path / "one", [changed(cases[0], **after)])
    told(site, run="second")
    fresh = hospital(tmp_path / "other", [changed(cases[0], **before)])
    told(fresh)
    told(fresh, run="second")
    assert spent(site) == pytest.approx(spent(fresh))
    stranger = hospital(tmp_path / "third", [changed(cases[0], **before)])
    told(stranger)
    assert spent(stranger) < spent(site)


def test_answer_that_a_crash_prevented_is_not_charged(tmp_path, cases):
    site = hospital(tmp_path, cases)
    crash = patch("fedglioma_client.published.noised_counts", side_effect=KeyboardInterrupt)
    with crash, pytest.raises(KeyboardInterrupt):
        told(site)
    told(site, run="second")
    undisturbed = hospital(tmp_path / "other", cases)
    told(undisturbed, run="second")
    assert spent(site) == spent(undisturbed)


def test_hospital_without_a_label_answers_with_noise_as_one_with_a_label_does(tmp_path, cases):
    unknown = Genotype(idh=-1, atrx=-1, codel_1p19q=-1)
    none = [changed(case, genotype=unknown) for case in cases]
    answers = []
    for name, held in (("none", none), ("one", [*none[:7], cases[7]])):
        site = hospital(tmp_path / name, held)
        reply, update = trained(site)
        (release,) = (r for r in ledger_of(site).entries() if r.key.round == 1)
        answers.append((reply.steps, reply.loss, set(update), release.reserved.patients, set(reply.seconds)))
        assert any((update[group] != start(PRIVATE)[group]).any() for group in update)
    assert answers[0] == answers[1]
    plain = TINY.model_copy(update={"standardize": "zscore"})
    with pytest.raises(DataError, match="no case with a known label"):
        trained(hospital(tmp_path / "plain", none), plain)


@pytest.mark.parametrize("crash", [KeyboardInterrupt, OSError])
def test_norms_of_a_round_that_crashed_after_it_was_paid_for_are_kept_when_it_is_asked_again(
    crash: type[BaseException], tmp_path: Path, cases: tuple[PreparedCase, ...]
) -> None:
    settings = PRIVATE.model_copy(update={"strategy": "fedbn"})
    site = hospital(tmp_path, cases)
    trained(site, settings)
    with patch.object(OwnNorms, "save", side_effect=crash("away")), pytest.raises(crash):
        trained(site, settings, 2)
    before = spent(site)
    trained(site, settings, 2)
    assert spent(site) == before
    (folder,) = (tmp_path / "state" / "norms").iterdir()
    assert sorted(path.stem for path in folder.iterdir()) == ["round-0001", "round-0002"]
    kept = (folder / "round-0002.safetensors").read_bytes()
    trained(site, settings, 2)
    assert (folder / "round-0002.safetensors").read_bytes() == kept


def test_round_that_was_masked_never_leaves_as_it_is_even_when_the_sum_is_forgotten(tmp_path, cases):
    site = hospital(tmp_path, cases)
    path = masking._path(site.config, subject("train", "first", 1))
    path.parent.mkdir(parents=True)
    path.with_suffix(masking.MASKED).write_bytes(b"")
    forget(path)
    masking.forget_sums(site.config)
    with pytest.raises(PrivacyError, match="does not leave without them"):
        trained(site)
    trained(site, number=2)


@pytest.mark.parametrize("folder", ["outbox", "sets"])
def test_ledger_from_a_backup_without_empty_folders_goes_on(
    folder: str, tmp_path: Path, cases: tuple[PreparedCase, ...]
) -> None:
    site = hospital(tmp_path, cases)
    ledger = ledger_of(site)
    told(site)
    shutil.rmtree(tmp_path / "state" / "privacy" / folder)
    if folder == "outbox":
        before = spent(site)
        trained(site)
        assert spent(site) > before, "the counts are gone and were drawn anew"
    else:
        with pytest.raises(PrivacyError, match="the set of patients is gone"):
            trained(site)
    assert ledger.entries()
