"""`cachebus doctor`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from cachebus.cli.settings import Namespace

Url = Annotated[
    str | None,
    typer.Argument(
        metavar="[URL]",
        help="As the caches' own; by default CACHEBUS_URL, as all other settings from CACHEBUS_*.",
        show_default=False,
    ),
]
ProbeWrites = Annotated[
    bool,
    typer.Option(
        "--probe-writes",
        help="Try every operation, in a namespace of its own that is removed again. Without it nothing is written.",
    ),
]
Acl = Annotated[
    str | None,
    typer.Option(
        "--acl",
        metavar="NAME",
        help="Only print the command that makes a Redis user with just the rights that cachebus needs.",
        show_default=False,
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Advice counts as a problem, for the exit status.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")]


def doctor(
    url: Url = None,
    namespace: Namespace = None,
    probe_writes: ProbeWrites = False,
    strict: Strict = False,
    acl: Acl = None,
    as_json: AsJson = False,
) -> None:
    """Look at a server with cachebus's eyes: what it is set up to do, and what that means for the promises.

    Eviction, files, replicas, buffers, time limits, latency, clocks, permissions, and the namespace's own state: each
    is ok, an advice, a problem, or could not be checked, with the exact command that mends it. Nothing is changed.

    Exit status: 0, 1 if there is a problem, 2 if the server could not be looked at.
    """
    from cachebus.cli.doctor.access import user_of_its_own
    from cachebus.cli.doctor.examine import examined
    from cachebus.cli.doctor.finding import status_of
    from cachebus.cli.doctor.primaries import deployment_of
    from cachebus.cli.doctor.report import printed, told, under
    from cachebus.cli.performance import until_signalled
    from cachebus.cli.settings import settings_for

    settings = settings_for(url, namespace)
    if acl is not None:
        sys.stdout.write(user_of_its_own(settings, acl) + "\n")
        return
    deployment = until_signalled(deployment_of(settings))
    everything, servers, console = list(deployment.findings), [], Console()
    if everything and not as_json:
        under(f"{deployment.name}, namespace {settings.namespace}", everything, console)
        console.print()
    for primary in deployment.primaries:
        server, findings = until_signalled(examined(settings, primary, probe_writes=probe_writes))
        everything += findings
        if as_json:
            servers.append(told(settings, server, findings))
        else:
            printed(settings, server, findings, console)
    status = status_of(everything, strict=strict)
    if as_json:
        whole = {"status": status, "findings": [each.as_dict() for each in deployment.findings], "servers": servers}
        sys.stdout.write(json.dumps(whole, indent=2) + "\n")
    raise typer.Exit(status)
