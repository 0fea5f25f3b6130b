"""The Ray engine: Flower's own simulation, sites in parallel worker processes.

The server app runs in a thread of this process, the client app in Ray's workers. Ray is an optional
extra, and nothing of it is imported before it is asked for.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedglioma.data.plan import PLAN_VARIABLE, load_plan
from fedglioma.errors import ConfigError, FedGliomaError
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.federation import Finished, run_federation


def require_ray() -> None:
    """Raise ``ConfigError`` unless Ray is installed."""
    if find_spec("ray") is None:
        raise ConfigError("engine ray: Ray is not installed; run: pip install 'fedglioma[ray]'")


def run_ray(
    finished: Finished, client_app: ClientApp, *, sites: int, plan: Path, threads: int, gpu: bool
) -> None:
    """Run a federation of virtual sites with Flower's simulation, to its end.

    Parameters
    ----------
    threads : int
        Processor cores per site; as many sites run at once as the machine has room for.
    gpu : bool
        Whether a site needs the GPU; one site at a time then has it.

    Raises
    ------
    ConfigError
        Ray is not installed.
    FedGliomaError
        The run failed; the reason is the server app's.
    """
    require_ray()
    from flwr.simulation import run_simulation

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ[PLAN_VARIABLE] = str(plan)
    outcome: SimpleQueue[Exception | None] = SimpleQueue()
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, _context: Context) -> None:
        try:
            run_federation(grid, Coordinator.of_plan(load_plan(plan)), finished)
        except Exception as error:  # Flower would wrap it; the caller wants the reason itself
            outcome.put(error)
            raise
        outcome.put(None)

    try:
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=sites,
            backend_config={
                "client_resources": {"num_cpus": max(threads, 1), "num_gpus": 1.0 if gpu else 0.0},
                "init_args": {"log_to_driver": False, "logging_level": "ERROR"},
            },
        )
    except RuntimeError as error:
        if outcome.empty():
            raise FedGliomaError(f"engine ray: Flower's simulation ended early ({error})") from error
    except Exception:
        if outcome.empty():
            raise
    finally:
        os.environ.pop(PLAN_VARIABLE, None)
    failure = None if outcome.empty() else outcome.get()
    if failure is not None:
        raise failure
