"""ServerApp: builds a simulation's coordinator from the context and runs its federation."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedglioma.data.plan import PLAN_KEY, load_plan, plan_path
from fedglioma.errors import ConfigError
from fedglioma_server.coordinator import Coordinator
from fedglioma_server.federation import Finished, run_federation


def resolve_coordinator(context: Context) -> Coordinator:
    """Return the coordinator of a simulation.

    Raises
    ------
    ConfigError
        The run configuration names no simulation plan.
    """
    path = plan_path(context.run_config)
    if path is None:
        raise ConfigError(
            f"run configuration: no {PLAN_KEY}; 'fedglioma-server simulate' sets it, "
            "'fedglioma-server start' runs a federation of hospitals"
        )
    return Coordinator.of_plan(load_plan(path))


def make_app(finished: Finished = lambda _line: None) -> ServerApp:
    """Return the server app; ``finished`` is told of every round that is on disk."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        run_federation(grid, resolve_coordinator(context), finished)

    return server_app


app = make_app()
