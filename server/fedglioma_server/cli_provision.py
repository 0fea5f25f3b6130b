"""fedglioma-server provision: the consortium's certificates and the hospitals' kits.

Commands import what they need when they run, as those of ``cli.py``.
"""

from pathlib import Path
from typing import Annotated

import typer

from fedglioma import log
from fedglioma.console import (
    Format,
    LogLevel,
    OutputFormat,
    door,
    emit_judged,
    human,
    interruptible,
)
from fedglioma.errors import IdentityError


def provision(
    out: Annotated[Path, typer.Option(help="the consortium's folder", metavar="DIR")] = Path("consortium"),
    name: Annotated[
        str | None,
        typer.Option(
            help="the consortium, as its certificates name it; default: fedglioma", show_default=False
        ),
    ] = None,
    host: Annotated[
        list[str],
        typer.Option(
            help="name or address of the server, may be repeated; kits connect to the first", metavar="HOST"
        ),
    ] = [],  # noqa: B006 (typer copies it)
    port: Annotated[
        int | None,
        typer.Option(
            help="port that kits connect to; default: that of server.yaml, at first 8443", min=1, max=65535
        ),
    ] = None,
    site: Annotated[
        list[str], typer.Option(help="hospital that gets a key and a kit, may be repeated", metavar="NAME")
    ] = [],  # noqa: B006
    site_key: Annotated[
        list[str],
        typer.Option(
            help="hospital that made its own key ('fedglioma-client keygen'): its kit has no private key; "
            "may be repeated",
            metavar="NAME=FILE",
        ),
    ] = [],  # noqa: B006
    days: Annotated[
        int | None,
        typer.Option(help="validity of the server's certificate; default: 397", min=1, max=3650),
    ] = None,
    ca_days: Annotated[
        int | None, typer.Option(help="validity of the authority; default: 3650", min=1, max=18250)
    ] = None,
    renew_server: Annotated[
        bool, typer.Option("--renew-server", help="a new server certificate; the old one is kept beside it")
    ] = False,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="with --renew-server: with a new private key")
    ] = False,
    renew_site: Annotated[
        list[str],
        typer.Option(
            help="a new key and kit for a hospital, the old key is barred; with --site-key its own new one; "
            "may be repeated",
            metavar="NAME",
        ),
    ] = [],  # noqa: B006
    revoke: Annotated[
        list[str],
        typer.Option(help="bar a hospital, also from a running server; may be repeated", metavar="NAME"),
    ] = [],  # noqa: B006
    contact: Annotated[
        str | None, typer.Option(help="whom a hospital should ask, for the kit's page", metavar="TEXT")
    ] = None,
    show_status: Annotated[
        bool,
        typer.Option("--status", help="show what ends when, and stop; with 7 if something has ended"),
    ] = False,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Make the consortium's certificates, and a start-up kit with a key for each hospital.

    Typed again with another --site it adds that hospital. What is there is kept, never overwritten.
    """
    with door(output), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_server.provision_request import Request
        from fedglioma_server.provision_status import status
        from fedglioma_server.run_provision import provision as make

        request = Request(
            out=out,
            name=name,
            hosts=tuple(host),
            port=port,
            sites=tuple(site),
            site_keys=tuple(site_key),
            days=days,
            ca_days=ca_days,
            renew_server=renew_server,
            new_key=new_key,
            renew_sites=tuple(renew_site),
            revoke=tuple(revoke),
            contact=contact,
        )
        data, text, reason = status(request) if show_status else (*make(request), None)
        emit_judged(data, text, output, None if reason is None else IdentityError(reason))
