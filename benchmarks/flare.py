"""NVIDIA FLARE's side of the benchmark: its simulator, and its POC of server and sites over mutual TLS.

The job is what FLARE's own ``NumpyFedAvgRecipe`` exports, less the widgets that a round does not need: its
FedAvg controller with streaming aggregation, its NumPy persistor that saves every round, its client API in
the process of the site's job. All settings are FLARE's defaults. Everything is written below one folder, the
home folder included.
"""

import json
import re
import shutil
import ssl
import subprocess
import zipfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from socket import create_connection
from typing import Any

import numpy as np
from sampling import SERVER, SITE, TOOL, wait_for

CLIENT = Path(__file__).with_name("flare_client.py")
PORT = 8002
"""FLARE's default; its server listens on it while the POC runs."""
TIMEOUT_S = 600.0
HOW_TO_INSTALL = "python -m venv X && X/bin/pip install nvflare==2.9.0, then --flare-python X/bin/python"

_MOMENT = re.compile(
    r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) - [^\n]*\n[-=]+\n *(?:Round \d+ started|Finished FedAvg)\.",
    re.MULTILINE,
)


def version_of(python: str | None) -> str | None:
    """Return the version of FLARE that a Python has, or None."""
    if not python or shutil.which(python) is None:
        return None
    ask = "from importlib.metadata import version; print(version('nvflare'))"
    answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)  # noqa: S603
    return answer.stdout.strip() if answer.returncode == 0 else None


def server_config(initial: Path, *, sites: int, rounds: int) -> dict[str, Any]:
    """Return ``config_fed_server.json`` of the job."""
    common = "nvflare.app_common"
    return {
        "format_version": 2,
        "workflows": [
            {
                "id": "controller",
                "path": f"{common}.workflows.fedavg.FedAvg",
                "args": {"num_clients": sites, "num_rounds": rounds},
            }
        ],
        "components": [
            {
                "id": "persistor",
                "path": f"{common}.np.np_model_persistor.NPModelPersistor",
                "args": {"source_ckpt_file_full_name": str(initial)},
            }
        ],
        "task_data_filters": [],
        "task_result_filters": [],
    }


def client_config() -> dict[str, Any]:
    """Return ``config_fed_client.json`` of the job."""
    return {
        "format_version": 2,
        "executors": [
            {
                "tasks": ["*"],
                "executor": {
                    "path": "nvflare.app_common.executors.client_api_executor.ClientAPIExecutor",
                    "args": {
                        "execution_mode": "in_process",
                        "task_script_path": CLIENT.name,
                        "params_exchange_format": "numpy",
                    },
                },
            }
        ],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }


def write_job(folder: Path, *, sites: int, numbers: int, rounds: int) -> Path:
    """Write the job and the weights it starts from, zeros, and return the job's folder."""
    initial = folder / "initial.npy"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(initial, np.zeros(numbers, np.float32))
    job = folder / "job"
    (job / "app" / "config").mkdir(parents=True)
    (job / "app" / "custom").mkdir()
    meta = {"name": "add-one", "resource_spec": {}, "min_clients": sites, "deploy_map": {"app": ["@ALL"]}}
    files = {
        job / "meta.json": meta,
        job / "app" / "config" / "config_fed_server.json": server_config(initial, sites=sites, rounds=rounds),
        job / "app" / "config" / "config_fed_client.json": client_config(),
    }
    for path, content in files.items():
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    shutil.copy(CLIENT, job / "app" / "custom" / CLIENT.name)
    return job


def stamps_in(log: Path) -> list[float]:
    """Return when FLARE's controller began each round, and when it finished: wall-clock seconds."""
    if not log.exists():
        return []
    found = _MOMENT.findall(log.read_text(encoding="utf-8", errors="replace"))
    return [
        datetime.strptime(day, "%Y-%m-%d %H:%M:%S").astimezone().timestamp() + int(ms) / 1000
        for day, ms in found
    ]


def surroundings(folder: Path) -> dict[str, str]:
    """Return what FLARE's processes find in their environment: a home and a workspace of their own."""
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    return {"HOME": str(home), "NVFLARE_POC_WORKSPACE": str(folder / "poc"), "NO_PROXY": "*", "no_proxy": "*"}


def simulator_role(command: str) -> str:
    """Return whether a process of the simulator is a site's worker or the simulator itself."""
    return SITE if "simulator_worker" in command else SERVER


def poc_role(command: str) -> str:
    """Return whose process of the POC it is: the server's (parent, job, script), a site's, or a tool."""
    if "nvflare.cli" in command:
        return TOOL
    if "server_train" in command or "runner_process" in command or "/server/startup/" in command:
        return SERVER
    return SITE


def _check(weights: np.ndarray[Any, np.dtype[Any]], rounds: int) -> None:
    if not np.all(weights == rounds):
        raise RuntimeError(f"FLARE: after {rounds} rounds of plus one its weights are {weights[:3]}...")


def _nvflare(
    python: str, *words: str, environment: Mapping[str, str], limit_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    answer = subprocess.run(  # noqa: S603 - the operator names the interpreter
        [python, "-m", "nvflare.cli", *words],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    if answer.returncode != 0:
        raise RuntimeError(f"nvflare {' '.join(words)} failed: {(answer.stderr or answer.stdout)[-600:]}")
    return answer


def run_simulator(
    python: str, folder: Path, environment: Mapping[str, str], *, sites: int, numbers: int, rounds: int
) -> list[float]:
    """Run the job in FLARE's simulator, a thread per site, and return the rounds' stamps."""
    job = write_job(folder, sites=sites, numbers=numbers, rounds=rounds)
    space = folder / "simulator"
    count = str(sites)
    words = ("simulator", str(job), "-w", str(space), "-n", count, "-t", count)
    _nvflare(python, *words, environment={**environment, **surroundings(folder)}, limit_s=TIMEOUT_S)
    _check(np.load(space / "server" / "simulate_job" / "models" / "server.npy", mmap_mode="r"), rounds)
    return stamps_in(space / "server" / "log.txt")


def run_poc(
    python: str, folder: Path, environment: Mapping[str, str], *, sites: int, numbers: int, rounds: int
) -> list[float]:
    """Run the job on a provisioned server and sites, all processes, and return the rounds' stamps.

    Raises
    ------
    RuntimeError
        A command of FLARE fails, the kits do not ask for mutual TLS, a stranger is answered, or the job does
        not end in time.
    """
    environment = {**environment, **surroundings(folder)}
    job = write_job(folder, sites=sites, numbers=numbers, rounds=rounds)
    _require_free_port()
    _nvflare(python, "poc", "prepare", "-n", str(sites), "--force", environment=environment)
    kits = folder / "poc" / "example_project" / "prod_00"
    require_mutual_tls(kits)
    _nvflare(python, "poc", "start", environment=environment)
    require_closed_to_strangers(PORT)
    said = _nvflare(
        python, "--format", "json", "job", "submit", "-j", str(job), environment=environment
    ).stdout
    number = job_number(said)
    log = kits / "server" / "poc_console.log"
    if not wait_for(lambda: len(stamps_in(log)) > rounds, within_s=TIMEOUT_S, every_s=0.5):
        raise RuntimeError(f"FLARE's POC did not finish {rounds} rounds: {log.read_text()[-1500:]}")
    _check(_stored_weights(folder / "poc" / "jobs-storage" / number / "workspace", folder), rounds)
    _nvflare(python, "poc", "stop", environment=environment)
    return stamps_in(log)


def job_number(said: str) -> str:
    """Return the number that FLARE gave a job that was submitted."""
    try:
        return str(json.loads(said)["data"]["job_id"])
    except (ValueError, KeyError, TypeError):
        raise RuntimeError(f"FLARE named no job: {said[-300:]}") from None


def require_mutual_tls(kits: Path) -> None:
    """Raise unless the server's and every site's start-up kit ask for mutual TLS."""
    try:
        server = json.loads((kits / "server" / "startup" / "fed_server.json").read_text())["servers"][0]
        places = sorted(kits.glob("site-*/startup/fed_client.json"))
        clients = [json.loads(path.read_text())["client"] for path in places]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RuntimeError(f"FLARE's kits do not hold what was expected: {error!r}") from None
    found = {kit.get("connection_security") for kit in (server, *clients)}
    if not clients or found != {"mtls"}:
        raise RuntimeError(f"FLARE's kits ask for {found}, not for mutual TLS: not comparable")


def require_closed_to_strangers(port: int) -> None:
    """Raise if the server answers a request over TLS that brings no certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain) as secure,
        ):
            secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = secure.recv(100)
    except (ssl.SSLError, ConnectionError):
        return
    if answer:
        raise RuntimeError("FLARE's server answers without a client certificate: not comparable")


def _require_free_port() -> None:
    try:
        create_connection(("127.0.0.1", PORT), timeout=1).close()
    except OSError:
        return
    raise RuntimeError(f"port {PORT} is taken, FLARE's POC needs it")


def _stored_weights(archive: Path, folder: Path) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the weights in the archive that the server stores after the job."""
    if not wait_for(lambda: zipfile.is_zipfile(archive), within_s=60):
        raise RuntimeError("FLARE's server stored no result")
    with zipfile.ZipFile(archive) as stored:
        path = stored.extract("models/server.npy", folder / "result")
    return np.asarray(np.load(path, mmap_mode="r"))
