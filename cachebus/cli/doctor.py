"""`cachebus doctor`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.console import Console

from cachebus.cli.settings import Namespace
from cachebus.errors import ConfigError, L2Unavailable

if TYPE_CHECKING:
    from cachebus.settings import Settings
    from cachebus.tools.doctor.facts import Server
    from cachebus.tools.doctor.finding import Finding
    from cachebus.tools.doctor.primaries import Deployment, Primary

Look: TypeAlias = "Callable[[Primary], Coroutine[Any, Any, tuple[Server, list[Finding]]]]"
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
AskReplicas = Annotated[
    bool,
    typer.Option(
        "--ask-replicas",
        help="Log in at replicas that only the server names. Those that Sentinels or a Cluster name are always asked.",
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
    ask_replicas: AskReplicas = False,
    strict: Strict = False,
    acl: Acl = None,
    as_json: AsJson = False,
) -> None:
    """Look at a server with cachebus's eyes: what it is set up to do, and what that means for the promises.

    Eviction, files, replicas, buffers, time limits, latency, clocks, permissions, and the namespace's own state: each
    is ok, an advice, a problem, or could not be checked, with the exact command that mends it. Nothing is changed.

    Exit status: 0, 1 if there is a problem, as one of several servers that is away, 2 if none could be looked at.
    """
    from cachebus.cli.performance import until_signalled
    from cachebus.cli.settings import settings_for
    from cachebus.tools.doctor.access import user_of_its_own
    from cachebus.tools.doctor.examine import examined
    from cachebus.tools.doctor.primaries import deployment_of

    try:
        settings = settings_for(url, namespace)
        if acl is not None:
            sys.stdout.write(user_of_its_own(settings, acl) + "\n")
            return
        deployment = until_signalled(deployment_of(settings))
    except (ConfigError, L2Unavailable) as error:
        if as_json:
            sys.stdout.write(json.dumps({"status": 2, "error": str(error), "findings": [], "servers": []}) + "\n")
        raise
    look = partial(examined, settings, probe_writes=probe_writes, ask_replicas=ask_replicas)
    status = _gone_through(settings, deployment, look, strict=strict, as_json=as_json)
    raise typer.Exit(status)


def _gone_through(settings: Settings, deployment: Deployment, look: Look, *, strict: bool, as_json: bool) -> int:
    """Look at one server after the other, and tell what each has; gives the exit status. One that is out of reach is a
    finding where there are others: those it hides nothing of."""
    from cachebus.cli.doctor_report import as_dict, printed, under
    from cachebus.cli.performance import until_signalled
    from cachebus.tools.doctor.examine import out_of_reach
    from cachebus.tools.doctor.finding import status_of

    everything, servers, errors, console = list(deployment.findings), [], list[L2Unavailable](), Console()
    if everything and not as_json:
        under(f"{deployment.name}, namespace {settings.namespace}", everything, console)
        console.print()
    for primary in deployment.primaries:
        try:
            server, findings = until_signalled(look(primary))
        except L2Unavailable as error:
            errors.append(error)
            server, findings = out_of_reach(primary, error, deployment)
        everything += findings
        if as_json:
            servers.append(as_dict(settings, server, findings))
        elif len(deployment.primaries) > 1 or not errors:
            printed(settings, server, findings, console)
    status = 2 if len(errors) == len(deployment.primaries) else status_of(everything, strict=strict)
    if as_json:
        whole = {"status": status, "findings": [each.as_dict() for each in deployment.findings], "servers": servers}
        sys.stdout.write(json.dumps(whole, indent=2) + "\n")
    if status == 2:
        raise errors[0]
    return status
