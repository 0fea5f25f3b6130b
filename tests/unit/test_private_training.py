"""A private round: its steps written out by hand, what it refuses, and what patients cannot stop."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedglioma.config.privacy import PrivacyTerms
from fedglioma.config.run import RunConfig
from fedglioma.data.dataset import CaseDataset, Sample
from fedglioma.data.loader import drawn_batches
from fedglioma.errors import ConfigError, DataError, PrivacyError
from fedglioma.losses.tasks import Targets
from fedglioma.privacy.noise_source import NoiseSource
from fedglioma.privacy.optimizer import margin
from fedglioma.privacy.sampling import poisson_batches
from fedglioma.privacy.secret import SecretRandom
from fedglioma.training import private
from fedglioma.training.fit import parameter_groups, set_learning_rate
from fedglioma.training.learner import Learner
from fedglioma.training.local import LocalWork, training_set
from fedglioma.training.private import scans_by_patient, train_privately
from tests.parallel_fixture import begun, made_up_cases, work_of

CPU = torch.device("cpu")
KEY = bytes(range(32))
CROPS = {"mdpnet": 16, "sgpnet": 32}


def settings_of(model: str = "mdpnet", **changed: Any) -> RunConfig:
    fixed = {"weighting": "fixed"} if model == "mdpnet" else {}
    return RunConfig.model_validate(
        {"model": model, "width": 1, "crop": CROPS[model], "lr": 1e-3, **fixed, **changed}
    )


def terms_of(**changed: Any) -> PrivacyTerms:
    given = {
        "noise_multiplier": 0.8,
        "clip_norm": 0.5,
        "sampling_rate": 0.4,
        "delta": 1e-3,
        "steps_per_round": 4,
        "rounds": 3,
    }
    return PrivacyTerms.model_validate({**given, **changed})


def without_dropout(learner: Learner) -> Learner:
    for module in learner.model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout3d):
            module.p = 0.0
    learner.model.double()
    learner.loss.double()
    return learner


class Double(CaseDataset):
    """Images in double precision, so that rounding hides nothing."""

    def training_sample(self, index: int, epoch: int) -> Sample:
        found = super().training_sample(index, epoch)
        return found._replace(image=found.image.double())


def doubled(work: LocalWork) -> CaseDataset:
    plain = training_set(work)
    return Double(plain.cases, plain.crop, plain.augment, plain.seed, masks=plain.masks)


def several_scans(folder: Path, **given: Any) -> list[Any]:
    """Return five scans of three patients: 0, 1, 0, 2, 0."""
    cases = made_up_cases(folder, 5, **given)
    owners = ["a", "b", "a", "c", "a"]
    return [
        replace(prepared, case=prepared.case.model_copy(update={"patient": owner}))
        for prepared, owner in zip(cases, owners, strict=True)
    ]


def by_hand(learner: Learner, work: LocalWork, terms: PrivacyTerms, patients: float) -> list[int]:
    """Train as the paper's algorithm 1 reads, a patient at a time; return the sizes of the steps."""
    secret, settings = SecretRandom(KEY), work.settings
    dataset, scans = doubled(work), scans_by_patient(work.cases)
    dataset.seed = secret.branch("crops").below(1 << 62)
    if settings.channels_last:  # noise is drawn in the order of memory
        learner.model.to(memory_format=torch.channels_last_3d)
    chooser, noise = secret.branch("scan"), NoiseSource(secret.branch("noise"))
    groups = parameter_groups(learner.model, learner.loss, settings.weight_decay, settings.head_lr)
    optimizer = torch.optim.Adam(groups, lr=settings.lr)
    # The optimizer's order, in which the noise is drawn.
    weights: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    start = [weight.detach().clone() for weight in weights]
    learner.model.train()
    sizes = []
    steps = poisson_batches(len(scans), terms.sampling_rate, terms.steps_per_round, secret.branch("sampling"))
    for step, units in enumerate(steps):
        total = [torch.zeros_like(weight) for weight in weights]
        for unit in units:
            index = scans[unit][chooser.below(len(scans[unit]))]
            sample = dataset.training_sample(index, (work.round - 1) * terms.steps_per_round + step)
            outputs = learner.model(sample.image[None], sample.present[None])
            mask = None if sample.mask is None else sample.mask[None]
            loss = learner.loss.per_sample(outputs, Targets(sample.genotype[None], mask))
            grads = torch.autograd.grad(loss.sum(), weights, allow_unused=True)
            found = [torch.zeros_like(w) if g is None else g for g, w in zip(grads, weights, strict=True)]
            whole = math.sqrt(sum(float(grad.square().sum()) for grad in found))
            for into, grad in zip(total, found, strict=True):
                into += grad * min(1.0, terms.clip_norm / whole)
        for weight, into, begun_at in zip(weights, total, start, strict=True):
            # A little more than in the paper, for what rounding may add.
            more = margin(terms.sampling_rate * patients)
            noise.add_to(into, more * terms.noise_multiplier * terms.clip_norm)
            pull = work.proximal_mu * (weight.detach() - begun_at)
            weight.grad = into / (terms.sampling_rate * patients) + pull
        set_learning_rate(optimizer, settings.learning_rate(work.round - 1))
        optimizer.step()
        sizes.append(len(units))
    return sizes


@pytest.mark.parametrize(
    ("model", "changed", "rate", "mu"),
    [
        ("mdpnet", {"batch_size": 2}, 0.4, 0.0),
        ("mdpnet", {"batch_size": 1, "strategy": "fedprox"}, 1.0, 0.7),
        ("sgpnet", {"batch_size": 2}, 0.4, 0.0),
    ],
)
def test_round_is_the_papers_algorithm_a_patient_at_a_time(
    model: str,
    changed: dict[str, Any],
    rate: float,
    mu: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, terms = settings_of(model, **changed), terms_of(sampling_rate=rate)
    cases = several_scans(tmp_path, edge=settings.crop + 2, masks=model == "sgpnet")
    work = work_of(cases, settings, mu)
    expected = without_dropout(begun(settings))
    sizes = by_hand(expected, work, terms, 3.2)
    assert rate == 1.0 or {0} < set(sizes)  # an empty step is among them

    monkeypatch.setattr(private, "training_set", doubled)
    found = without_dropout(begun(settings))
    summary = train_privately(found, work, terms, CPU, patients=3.2, secret=SecretRandom(KEY))
    assert (summary.steps, summary.cases) == (terms.steps_per_round, sum(sizes))
    for ours, plain in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_round_draws_new_noise_every_time(tmp_path: Path) -> None:
    settings, cases = settings_of(), made_up_cases(tmp_path, 3, 18)
    found = []
    for _ in range(2):
        learner = begun(settings)
        train_privately(learner, work_of(cases, settings), terms_of(steps_per_round=1), CPU, patients=3)
        found.append(learner.model.fc_in.weight.detach().clone())
    assert not torch.equal(*found)


def test_site_without_patients_takes_every_step(tmp_path: Path) -> None:
    settings = settings_of()
    learner, before = begun(settings), begun(settings)
    summary = train_privately(learner, work_of([], settings), terms_of(), CPU, patients=20)
    assert (summary.steps, summary.cases, summary.loss) == (4, 0, None)
    pairs = zip(learner.model.parameters(), before.model.parameters(), strict=True)
    assert all(not torch.equal(ours, old) for ours, old in pairs)


def test_network_that_is_exchanged_keeps_its_names(tmp_path: Path) -> None:
    settings = settings_of("sgpnet", targets="idh")
    learner, before = begun(settings), begun(settings)
    cases = made_up_cases(tmp_path, 2, 34)
    train_privately(learner, work_of(cases, settings), terms_of(steps_per_round=1), CPU, patients=2)
    assert learner.model.state_dict().keys() == before.model.state_dict().keys()
    heads = [module.model.heads["segmentation"].parameters() for module in (learner, before)]
    pairs = zip(*heads, strict=True)
    assert all(torch.equal(ours, old) for ours, old in pairs)  # not asked for, so not even noised


def test_patient_whose_image_is_broken_does_not_stop_the_round(tmp_path: Path) -> None:
    settings, cases = settings_of(batch_size=3), made_up_cases(tmp_path, 3, 18)
    np.save(cases[1].array, np.full((4, 18, 18, 18), np.nan, np.float16))
    learner = begun(settings)
    summary = train_privately(learner, work_of(cases, settings), terms_of(sampling_rate=1.0), CPU, patients=3)
    assert summary.steps == 4
    assert math.isfinite(summary.loss_sum)
    assert all(parameter.isfinite().all() for parameter in learner.model.parameters())


def test_rates_follow_the_schedule_within_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(rounds=4, local_epochs=2, schedule="cosine", lr=1.0)
    seen: list[float] = []
    monkeypatch.setattr(private, "set_learning_rate", lambda _optimizer, lr: seen.append(lr))
    work = LocalWork(settings, [], "north", 3)
    train_privately(begun(settings), work, terms_of(steps_per_round=4), CPU, patients=5)
    expected = [(1 + math.cos(math.pi * epoch / 8)) / 2 for epoch in (4, 4, 5, 5)]
    assert seen == pytest.approx(expected)


def test_patient_with_several_scans_is_one_unit(tmp_path: Path) -> None:
    assert scans_by_patient(several_scans(tmp_path, edge=4)) == [[0, 2, 4], [1], [3]]
    work = work_of(several_scans(tmp_path, edge=4), settings_of())
    parts = list(private._parts(work, terms_of(sampling_rate=1.0, steps_per_round=60), SecretRandom(KEY)))
    steps = [[case for part in parts if part.step == step for case in part.cases] for step in range(60)]
    assert all(len(cases) == 3 and cases[1:] == [1, 3] for cases in steps)
    assert {cases[0] for cases in steps} == {0, 2, 4}
    assert [part.last for part in parts[:4]] == [False, True, False, True]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"weighting": "uncertainty"}, "choose fixed"),
        ({"accumulate": 2}, "accumulate: 2"),
        ({"compile": True}, "compile: .*switch it off"),
        ({"checkpointing": True}, "checkpointing: .*switch it off"),
        ({"precision": "bfloat16"}, "choose auto or float32"),
    ],
)
def test_settings_that_cannot_be_private_are_refused(changed: dict[str, Any], words: str) -> None:
    settings = settings_of(**changed)
    with pytest.raises(ConfigError, match=words):
        train_privately(begun(settings), work_of([], settings), terms_of(), CPU, patients=5)


def test_network_that_mixes_patients_is_refused() -> None:
    settings = settings_of(preset="reference")
    with pytest.raises(PrivacyError, match="choose preset recommended"):
        train_privately(begun(settings), work_of([], settings), terms_of(), CPU, patients=5)


def test_site_that_publishes_no_patients_is_refused() -> None:
    settings = settings_of()
    with pytest.raises(PrivacyError, match="expected cases"):
        train_privately(begun(settings), work_of([], settings), terms_of(), CPU, patients=0)


def test_drawn_batches_are_the_samples_of_their_epochs(tmp_path: Path) -> None:
    cases = made_up_cases(tmp_path, 3, 10)
    dataset = CaseDataset(cases, 8, seed=1)
    found = list(drawn_batches(dataset, iter([(4, [2, 0]), (5, []), (6, [1])])))
    assert found[1] is None
    assert [None if batch is None else len(batch.image) for batch in found] == [2, None, 1]
    assert found[0] is not None
    torch.testing.assert_close(found[0].image[0], dataset.training_sample(2, 4).image)


def test_drawn_batch_of_a_volume_that_is_gone_is_an_error_when_due(tmp_path: Path) -> None:
    cases = made_up_cases(tmp_path, 2, 10)
    cases[1].array.unlink()
    batches = drawn_batches(CaseDataset(cases, 8, seed=1), [(0, [0]), (1, [1])])
    assert next(batches) is not None
    with pytest.raises(DataError, match="prepare it again"):
        next(batches)
