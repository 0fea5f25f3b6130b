import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedglioma.case import Task
from fedglioma.config.run import RunConfig
from fedglioma.config.site import SiteConfig
from fedglioma.data.dataset import Sample
from fedglioma.data.loader import train_batches
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError, DataError, FedGliomaError, ProtocolError
from fedglioma.tensorfile import write_safetensors
from fedglioma.training import parallel
from fedglioma.training.fit import FitSummary
from fedglioma.training.learner import EQUAL_COUNTS, Objective, build_learner
from fedglioma.training.local import training_set
from fedglioma.training.parallel import (
    Job,
    Trouble,
    load_state,
    main,
    require_divisible,
    state_of,
    summed,
    trouble_of,
    useful_processes,
)
from fedglioma.training.part import BatchSize, Part, PartDropout, share_dropout
from fedglioma_client import processes as client
from fedglioma_client.processes import _folder, _reason
from tests.parallel_fixture import begun, made_up_cases, work_of

NETWORKS = {"mdpnet": {"crop": 16}, "sgpnet": {"crop": 32}}


def settings_of(model: str, **changed: object) -> RunConfig:
    return RunConfig.model_validate({"model": model, "width": 2, **NETWORKS[model], **changed})


@pytest.mark.parametrize(("model", "world"), [("mdpnet", 2), ("mdpnet", 4), ("sgpnet", 4)])
def test_gradients_of_the_parts_add_up_to_those_of_the_batch_with_dropout_on(
    tmp_path: Path, model: str, world: int
) -> None:
    settings = settings_of(model, batch_size=3)
    cases = made_up_cases(tmp_path, 3, settings.crop + 2, masks=True)
    dataset = training_set(work_of(cases, settings))
    batch = next(iter(train_batches(dataset, batch_size=3, seed=1, epoch=0)))

    def gradients(part: Part | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(7)
        learner = build_learner(settings, EQUAL_COUNTS)
        own = batch
        if part is not None:
            share_dropout(learner.model, part)
            own = part.of(batch)
        objective = Objective(learner.model, learner.loss).double().train()
        torch.manual_seed(11)
        value, _ = objective(own.image.double(), own.present.double(), own.genotype, own.mask)
        (value.sum() / 3).backward()
        return {name: parameter.grad for name, parameter in objective.named_parameters()}

    whole = gradients(None)
    parts = [gradients(Part(rank, world)) for rank in range(world)]  # of 4 processes, one has no case
    for name, expected in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), expected, rtol=1e-9, atol=1e-12)


@given(
    cases=st.integers(1, 7),
    world=st.integers(1, 4),
    inner=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    transposed=st.booleans(),
)
def test_dropout_of_the_parts_is_that_of_the_batch(
    cases: int, world: int, inner: list[int], transposed: bool
) -> None:
    x = torch.arange(1.0, 1 + cases * int(np.prod(inner))).reshape(cases, *inner)
    if transposed:
        x = torch.transpose(torch.transpose(x, 1, -1).contiguous(), 1, -1)
    torch.manual_seed(3)
    whole, after = F.dropout(x, 0.4), torch.rand(1)
    for rank in range(world):
        layer = PartDropout(0.4, Part(rank, world, BatchSize(cases)), channels=False).train()
        torch.manual_seed(3)
        assert torch.equal(layer(x[rank::world]), whole[rank::world])
        assert torch.equal(torch.rand(1), after)  # the next draws agree too


def test_dropout_of_channels_is_that_of_the_batch_in_channels_last_too() -> None:
    x = torch.randn(5, 6, 2, 3, 2).contiguous(memory_format=torch.channels_last_3d)
    torch.manual_seed(3)
    whole = F.dropout3d(x, 0.5)
    layer = PartDropout(0.5, Part(1, 2, BatchSize(5)), channels=True).train()
    torch.manual_seed(3)
    assert torch.equal(layer(x[1::2]), whole[1::2])


def test_dropout_is_off_outside_training() -> None:
    x = torch.ones(1, 3)
    assert layer_of(0.5).eval()(x) is x
    assert layer_of(0.0).train()(x) is x


def layer_of(p: float) -> PartDropout:
    return PartDropout(p, Part(0, 2, BatchSize(2)), channels=False)


def test_dropout_along_another_axis_than_the_cases_is_refused() -> None:
    with pytest.raises(ConfigError, match="another axis than the cases; set processes to 1"):
        layer_of(0.5).train()(torch.ones(8, 3))


def test_dropout_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="AlphaDropout cannot be divided"):
        share_dropout(nn.Sequential(nn.AlphaDropout(0.5)), Part(0, 2))


def test_part_remembers_the_size_of_the_batch() -> None:
    part = Part(2, 3)
    own = part.of(Sample(torch.zeros(4, 1), torch.zeros(4, 4), torch.zeros(4, 3)))
    assert (part.batch.cases, len(own.genotype)) == (4, 1)


@pytest.mark.parametrize(
    ("model", "batch_size", "cases", "asked", "useful"),
    [
        ("mdpnet", 8, 40, 4, 4),
        ("mdpnet", 2, 40, 4, 2),
        ("mdpnet", 8, 3, 4, 3),
        ("mdpnet", 8, 40, 1, 1),
        ("mdpnet", 4, 10, 4, 4),
        ("swinunetr", 4, 10, 4, 2),
        ("swinunetr", 4, 9, 4, 4),
        ("swinunetr", 4, 8, 4, 4),
    ],
)
def test_processes_without_a_case_are_not_started(
    model: str, batch_size: int, cases: int, asked: int, useful: int
) -> None:
    settings = RunConfig.model_validate({"model": model, "batch_size": batch_size})
    assert useful_processes(settings, cases, asked) == useful


def test_batch_normalisation_on_processors_is_refused() -> None:
    learner = build_learner(settings_of("mdpnet", preset="reference"), EQUAL_COUNTS)
    with pytest.raises(ConfigError, match="on GPUs only; set processes to 1"):
        require_divisible(learner, torch.device("cpu"))
    require_divisible(learner, torch.device("cuda"))
    require_divisible(build_learner(settings_of("mdpnet"), EQUAL_COUNTS), torch.device("cpu"))


def test_state_of_another_network_is_refused() -> None:
    learner = build_learner(settings_of("mdpnet", preset="reference"), EQUAL_COUNTS)
    state = state_of(learner)
    assert any(name.endswith("num_batches_tracked") for name in state)
    load_state(learner, state)
    with pytest.raises(ProtocolError, match="of another network"):
        load_state(begun(settings_of("mdpnet")), state)


def test_sums_are_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.mul_(3))
    own = FitSummary(4, 5, 2.5, {Task.IDH: 1.0}, {Task.IDH: 2}, 0.1, 0.2)
    tasks = (Task.IDH, Task.SEGMENTATION)
    told = summed(own, tasks, torch.device("cpu"))
    sums, known = {Task.IDH: 3.0, Task.SEGMENTATION: 0.0}, {Task.IDH: 6, Task.SEGMENTATION: 0}
    assert told == FitSummary(4, 15, 7.5, sums, known, 0.1, 0.2)


def test_job_survives_the_way_through_its_file(tmp_path: Path) -> None:
    job = Job(
        settings=settings_of("sgpnet", targets="idh"),
        site="north",
        round=3,
        proximal_mu=0.1,
        class_counts=EQUAL_COUNTS,
        cases=tuple(made_up_cases(tmp_path, 2, 4, masks=True)),
        device="cuda",
        threads=2,
        limit_s=60.0,
    )
    assert Job.model_validate_json(job.model_dump_json()) == job


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DataError("7f.npy: cannot be read\nmore"), "said", "7f.npy: cannot be read"),
        (dist.DistNetworkError("reset"), "lost", "reset"),
        (RuntimeError("[third_party/gloo/tcp/pair.cc:5] Connection closed"), "lost", None),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "own", "CUDA out of memory. Tried 2 GiB"),
        (FileNotFoundError("/data/john-doe.npy"), "own", "FileNotFoundError"),
    ],
)
def test_trouble_is_one_line_and_names_no_file(error: Exception, kind: str, message: str | None) -> None:
    trouble = trouble_of(error)
    assert trouble.kind == kind
    assert message is None or trouble.message == message


@pytest.mark.parametrize(
    ("errors", "log", "raised", "said"),
    [
        ([dist.DistError("gone"), DataError("gone: prepare again")], "", DataError, "^gone: prepare again$"),
        (
            [dist.DistError("gone"), RuntimeError("no memory")],
            "",
            FedGliomaError,
            "2 processes.*: no memory$",
        ),
        ([ProtocolError("/srv/x")], "", FedGliomaError, "/srv/x"),
        (
            [dist.DistError("x")],
            "Signal 15 (SIGTERM) received, Signal 9 (SIGKILL) received",
            FedGliomaError,
            "killed by SIGKILL, out of memory",
        ),
        ([], "Signal 11 (SIGSEGV) received", FedGliomaError, r"died \(killed by SIGSEGV\)$"),
        ([], "", FedGliomaError, r"died \(it ended by itself\)$"),
    ],
)
def test_the_first_cause_is_told(
    tmp_path: Path, errors: list[Exception], log: str, raised: type[FedGliomaError], said: str
) -> None:
    (tmp_path / "log").write_text(log)
    for rank, error in enumerate(errors):
        (tmp_path / f"trouble-{rank}.json").write_text(trouble_of(error).model_dump_json())
    (tmp_path / "trouble-9.json").write_text("{")  # ended while it was writing
    found = _reason(tmp_path, 2)
    assert type(found) is raised
    with pytest.raises(FedGliomaError, match=said):
        raise found


Alone = Callable[[list[PreparedCase]], Trouble]


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[list[PreparedCase]], Trouble]]:
    """Train on cases as the only process of a job, in this one, and return why it gave up."""

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(parallel, "_end_with_client", lambda folder: None)
    monkeypatch.setattr(sys, "argv", ["parallel", str(tmp_path)])
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)

    def train(cases: list[PreparedCase]) -> Trouble:
        settings = settings_of("mdpnet")
        job = Job(
            settings=settings,
            site="north",
            round=1,
            proximal_mu=0.0,
            class_counts=EQUAL_COUNTS,
            cases=tuple(cases),
            device="cpu",
            threads=1,
            limit_s=60.0,
        )
        (tmp_path / "request.json").write_text(job.model_dump_json())
        (tmp_path / "alive").touch()
        write_safetensors(tmp_path / "start.safetensors", state_of(begun(settings)), {})
        with pytest.raises(Ended, match="1"):
            main()
        return Trouble.model_validate_json((tmp_path / "trouble-0.json").read_text())

    yield train
    dist.destroy_process_group()


def test_volume_that_is_gone_is_told_by_its_entry_and_not_by_its_patient(
    tmp_path: Path, alone: Alone
) -> None:
    cases = made_up_cases(tmp_path / "cases", 2)
    cases[0].array.unlink()
    trouble = alone(cases)
    assert (trouble.kind, trouble.error) == ("said", "DataError")
    assert trouble.message.startswith("0.npy: the prepared volume cannot be read")
    assert "patient-" not in trouble.message


def test_loss_that_is_no_number_is_told(tmp_path: Path, alone: Alone) -> None:
    cases = made_up_cases(tmp_path / "cases", 2)
    np.save(cases[0].array, np.full((4, 20, 20, 20), np.nan, np.float16))
    trouble = alone(cases)
    assert (trouble.kind, trouble.error) == ("said", "Diverged")
    assert trouble.message.startswith("training diverged: the loss became nan at or before step 1;")


def test_folder_of_a_round_is_private_and_goes(tmp_path: Path) -> None:
    with _folder(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.iterdir())


def test_folder_that_a_killed_client_left_is_removed_and_one_in_use_is_not(tmp_path: Path) -> None:
    left = tmp_path / "round-left"
    left.mkdir()
    (left / "lock").touch()
    with _folder(tmp_path) as first, _folder(tmp_path) as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second])


def test_each_process_takes_its_own_gpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write device: cuda, not cuda:1"):
        SiteConfig(site="north", data=tmp_path, device="cuda:1", processes=2)
    assert SiteConfig(site="north", data=tmp_path, device="cuda", processes=2).processes == 2


def test_torchrun_is_told_to_listen_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, object] = {}
    monkeypatch.setattr(client.subprocess, "Popen", lambda command, **given: told.update(given, c=command))
    job = Job.model_construct(threads=1)
    with (tmp_path / "log").open("wb") as log:
        client._start(tmp_path, 2, job, log)
    assert "--rdzv-conf=store_type=file" in told["c"]
    assert told["env"]["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert told["env"]["GLOO_SOCKET_IFNAME"].startswith("lo")
    assert told["env"]["PATH"] == os.environ["PATH"]
