"""The federation's benchmark: its sampler against processes of known size, its job for NVIDIA FLARE."""

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MEGABYTE = 1e6

HOLD = """
import sys, time
held = bytearray(b"x") * int(sys.argv[1])
print("ready", flush=True)
time.sleep(60)
"""
GRANDCHILD = """
import subprocess, sys
nowhere = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True, **nowhere)
print(child.pid, flush=True)
"""
BURN = """
import sys, time
end = time.process_time() + float(sys.argv[1])
while time.process_time() < end:
    pass
print(time.process_time(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("sampling")


@pytest.fixture
def flare(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("flare")


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("deployed")


def start(code: str, *words: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    return start_and_hear(code, *words, environment=environment)[0]


def start_and_hear(code: str, *words: str, environment: dict[str, str]) -> tuple[subprocess.Popen[str], str]:
    child = subprocess.Popen(  # noqa: S603 (this interpreter)
        [sys.executable, "-c", code, *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    return child, child.stdout.readline()


@contextmanager
def watching(sampling: Any, **options: Any) -> Iterator[Any]:
    """Give a sampler that looks only when asked to."""
    sampler = sampling.Sampler(**options)
    yield sampler
    sampling.end(sampler.mark)


def finish(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


def test_memory_of_a_child_is_seen(sampling: Any) -> None:
    with watching(sampling) as sampler:
        child = start(HOLD, "100000000", environment=sampling.marked(sampler.mark))
        server, everything = sampling.peaks([sampler.sample()])
        finish(child)
    assert 100 < server < 130
    assert everything == server


def test_memory_of_two_children_adds_up_by_role(sampling: Any) -> None:
    def role(command: str) -> str:
        return str(sampling.SERVER if command.endswith("60000000") else sampling.SITE)

    with watching(sampling, role=role) as sampler:
        children = [
            start(HOLD, size, environment=sampling.marked(sampler.mark)) for size in ("60000000", "90000000")
        ]
        server, everything = sampling.peaks([sampler.sample()])
        for child in children:
            finish(child)
    assert 60 < server < 90
    assert 150 < everything < 210


def test_tools_are_not_counted(sampling: Any) -> None:
    with watching(sampling, role=lambda _command: sampling.TOOL) as sampler:
        child = start(BURN, "0.3", environment=sampling.marked(sampler.mark))
        sample = sampler.sample()
        finish(child)
    assert sampling.peaks([sample]) == (0.0, 0.0)
    assert sample.cpu_s == 0


def test_process_that_outlives_its_parent_is_counted_and_ended(sampling: Any) -> None:
    with watching(sampling) as sampler:
        parent = subprocess.run(  # noqa: S603 (this interpreter)
            [sys.executable, "-c", GRANDCHILD, HOLD, "50000000"],
            env=sampling.marked(sampler.mark),
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        orphan = int(parent.stdout.split()[0])
        assert sampling.wait_for(lambda: sampling.peaks([sampler.sample()])[0] > 50, within_s=60)
        assert sampling.carries(orphan, sampler.mark)
    assert not sampling.carries(orphan, sampler.mark)


def test_processes_without_the_mark_are_left_alone(sampling: Any) -> None:
    child = start(HOLD, "1000", environment=sampling.marked("other"))
    with watching(sampling) as sampler:
        stranger = start(HOLD, "1000", environment=sampling.marked("another"))
        sample = sampler.sample()
    assert sampling.peaks([sample]) == (0.0, 0.0)
    assert child.poll() is None
    assert stranger.poll() is None
    finish(child)
    finish(stranger)


def test_cpu_seconds_are_those_of_the_child(sampling: Any) -> None:
    with watching(sampling) as sampler:
        child, said = start_and_hear(BURN, "0.5", environment=sampling.marked(sampler.mark))
        spent = sampler.sample().cpu_s
        finish(child)
    assert spent == pytest.approx(float(said), abs=0.05)  # the kernel counts in hundredths, twice


def test_sampling_goes_on_by_itself(sampling: Any) -> None:
    with sampling.Sampler(interval_s=0.01) as sampler:
        child = start(HOLD, "1000", environment=sampling.marked(sampler.mark))
        assert sampling.wait_for(lambda: len(sampler.samples) > 5, within_s=60)
        finish(child)
    times = [sample.at for sample in sampler.samples]
    assert times == sorted(times)
    assert 0 < sampler.share < 1


def at(sampling: Any, second: float, server: int = 0, site: int = 0) -> Any:
    memory = {sampling.SERVER: server, sampling.SITE: site, sampling.TOOL: 10**9}
    return sampling.Sample(second, 2 * second, memory)


def test_figures_drop_the_first_round_for_seconds_and_cpu(sampling: Any) -> None:
    samples = [at(sampling, second / 10) for second in range(300)]
    found = sampling.figures(samples, [0.0, 10.0, 11.0, 13.0, 14.0])
    assert found.rounds == (10.0, 1.0, 2.0, 1.0)
    assert found.seconds_per_round == 1.0
    assert found.cpu_s_per_round == pytest.approx(2 * (14 - 10) / 3)


def test_peaks_are_those_inside_the_rounds(sampling: Any) -> None:
    samples = [
        at(sampling, 0, server=900 * 10**6),
        at(sampling, 1, server=10 * 10**6, site=500 * 10**6),
        at(sampling, 2, server=30 * 10**6, site=100 * 10**6),
        at(sampling, 9, site=900 * 10**6),
    ]
    found = sampling.figures(samples, [0.5, 1.5, 2.5])
    assert (found.peak_server_mb, found.peak_all_mb) == (30.0, 510.0)


@pytest.mark.parametrize("stamps", [[], [1.0], [1.0, 2.0]])
def test_too_few_rounds_give_no_figures(sampling: Any, stamps: list[float]) -> None:
    with pytest.raises(ValueError, match="more than 1 are needed"):
        sampling.figures([at(sampling, 1.5)], stamps)


def test_flare_job_starts_from_zeros_of_the_asked_for_size(flare: Any, tmp_path: Path) -> None:
    job = flare.write_job(tmp_path / "x", sites=3, numbers=1000, rounds=4)
    server = json.loads((job / "app" / "config" / "config_fed_server.json").read_text())
    initial = np.load(server["components"][0]["args"]["source_ckpt_file_full_name"])
    assert initial.dtype == np.float32
    assert initial.shape == (1000,)
    assert not initial.any()


def test_flare_job_asks_all_sites_for_as_many_rounds(flare: Any, tmp_path: Path) -> None:
    job = flare.write_job(tmp_path, sites=3, numbers=1, rounds=4)
    server = json.loads((job / "app" / "config" / "config_fed_server.json").read_text())
    (workflow,) = server["workflows"]
    assert workflow["path"].endswith(".FedAvg")
    assert workflow["args"] == {"num_clients": 3, "num_rounds": 4}
    meta = json.loads((job / "meta.json").read_text())
    assert meta["min_clients"] == 3
    assert meta["deploy_map"] == {"app": ["@ALL"]}


def test_flare_client_script_lies_where_its_configuration_says(flare: Any, tmp_path: Path) -> None:
    job = flare.write_job(tmp_path, sites=2, numbers=1, rounds=1)
    client = json.loads((job / "app" / "config" / "config_fed_client.json").read_text())
    script = job / "app" / "custom" / client["executors"][0]["executor"]["args"]["task_script_path"]
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert {"init", "is_running", "receive", "send"} <= called


LOG = """2026-11-21 07:57:36,100 - FedAvg - INFO - [identity=x] -
--------------------------------------------------------------------------------
                                Round 0 started.
--------------------------------------------------------------------------------

2026-11-21 07:57:37,000 - FedAvg - INFO - [identity=x] - Aggregated 1/2 results
2026-11-21 07:57:38,600 - FedAvg - INFO - [identity=x] -
--------------------------------------------------------------------------------
                                Round 1 started.
--------------------------------------------------------------------------------
2026-11-21 07:57:40,850 - FedAvg - INFO - [identity=x] -
================================================================================
                                Finished FedAvg.
================================================================================
"""


def test_flare_rounds_are_read_from_its_log(flare: Any, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert flare.stamps_in(log) == []
    log.write_text(LOG)
    stamps = flare.stamps_in(log)
    assert np.diff(stamps) == pytest.approx([2.5, 2.25])


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("python3 -u -m nvflare.private.fed.app.server.server_train -m /x/prod_00/server", "server"),
        ("python -u -m nvflare.private.fed.app.server.runner_process -m /x/prod_00/server", "server"),
        ("bash /x/prod_00/server/startup/sub_start.sh", "server"),
        ("bash /x/prod_00/site-1/startup/sub_start.sh", "site"),
        ("python3 -u -m nvflare.private.fed.app.client.client_train -m /x/prod_00/site-1", "site"),
        ("python -u -m nvflare.private.fed.app.client.worker_process -m /x/prod_00/site-1", "site"),
        ("python -m nvflare.cli poc start", "tool"),
    ],
)
def test_flare_processes_are_told_apart(flare: Any, command: str, role: str) -> None:
    assert flare.poc_role(command) == role


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/x/bin/python /x/bin/fedglioma-server start --config /tmp/a/consortium/server.yaml", "server"),
        ("/x/bin/python /x/bin/fedglioma-server provision --out /tmp/a/consortium", "tool"),
        ("/x/bin/python /x/benchmarks/adding_site.py /tmp/a/consortium/kits/site-1/site-1.yaml", "site"),
        ("/x/bin/python -m fedglioma_client.node /tmp/a/consortium/kits/site-1/site-1.yaml", "site"),
        ("/x/bin/python /x/bin/fedglioma-client --site henan --config-dir /tmp/a --once", "site"),
    ],
)
def test_our_processes_are_told_apart(deployed: Any, command: str, role: str) -> None:
    assert deployed.role(command) == role


def test_rounds_are_read_as_they_reach_the_disk(deployed: Any, tmp_path: Path) -> None:
    rounds, written = tmp_path / "rounds.jsonl", iter([None, 1000.0, None, 1010.5, 1012.0])

    def poll() -> int | None:
        """Write what is due by the next look, and end when all is written."""
        when = next(written, 0)
        if when:
            rounds.write_text("round")
            os.utime(rounds, (when, when))
        return 0 if when == 0 else None

    assert deployed.watch(rounds, SimpleNamespace(poll=poll)) == [1000.0, 1010.5, 1012.0]


def write_kits(folder: Path, server: str, site: str) -> None:
    for name, file, content in (
        ("server", "fed_server.json", {"servers": [{"connection_security": server}]}),
        ("site-1", "fed_client.json", {"client": {"connection_security": site}}),
    ):
        (folder / name / "startup").mkdir(parents=True)
        (folder / name / "startup" / file).write_text(json.dumps(content))


def test_flare_kits_with_mutual_tls_are_accepted(flare: Any, tmp_path: Path) -> None:
    write_kits(tmp_path, "mtls", "mtls")
    flare.require_mutual_tls(tmp_path)


@pytest.mark.parametrize(("server", "site"), [("clear", "mtls"), ("mtls", "tls")])
def test_flare_kits_without_mutual_tls_are_not_compared(
    flare: Any, tmp_path: Path, server: str, site: str
) -> None:
    write_kits(tmp_path, server, site)
    with pytest.raises(RuntimeError, match="not for mutual TLS"):
        flare.require_mutual_tls(tmp_path)


def test_flare_kits_of_another_shape_are_told(flare: Any, tmp_path: Path) -> None:
    write_kits(tmp_path, "mtls", "mtls")
    (tmp_path / "server" / "startup" / "fed_server.json").write_text("{}")
    with pytest.raises(RuntimeError, match="FLARE's kits do not hold"):
        flare.require_mutual_tls(tmp_path)


@pytest.mark.parametrize("said", ["", "[]", '{"data": {}}', '{"data": null}'])
def test_flare_answer_without_a_job_is_told(flare: Any, said: str) -> None:
    with pytest.raises(RuntimeError, match="FLARE named no job"):
        flare.job_number(said)


@pytest.mark.parametrize("words", [("memory-deployed", "--sites", "8"), ("memory-inline", "--sizes", "20")])
def test_option_that_a_measure_does_not_take_is_refused(words: tuple[str, ...]) -> None:
    script = str(BENCHMARKS / "federation.py")
    done = subprocess.run(  # noqa: S603 (our own script)
        [sys.executable, script, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert f"{words[0]} does not take {words[1]}" in done.stderr


@pytest.mark.parametrize("python", [None, "", "/nowhere/python", sys.executable])
def test_python_without_flare_is_recognised(flare: Any, python: str | None) -> None:
    assert flare.version_of(python) is None
