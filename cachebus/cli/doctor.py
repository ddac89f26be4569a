"""`cachebus doctor`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import typer
from rich.console import Console

from cachebus.cli.settings import Namespace
from cachebus.errors import ConfigError, L2Unavailable

if TYPE_CHECKING:
    from cachebus.cli.doctor_workers import Workers
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
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        metavar="URL",
        show_default=False,
        help="Look at the outbox in this database too. Beware: what is given here is seen by all users of the machine.",
    ),
]
BootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers", metavar="HOST:PORT,...", show_default=False, help="Look at the commands on Kafka too."
    ),
]
Rules = Annotated[
    Path | None,
    typer.Option("--rules", metavar="FILE", show_default=False, help="Look at change data capture by these rules too."),
]


class _Asked(NamedTuple):
    """What else is to be said, and how."""

    workers: Workers
    strict: bool
    as_json: bool


def doctor(
    url: Url = None,
    namespace: Namespace = None,
    probe_writes: ProbeWrites = False,
    ask_replicas: AskReplicas = False,
    database_url: DatabaseUrl = None,
    bootstrap_servers: BootstrapServers = None,
    rules: Rules = None,
    strict: Strict = False,
    acl: Acl = None,
    as_json: AsJson = False,
) -> None:
    """Look at a server with cachebus's eyes: what it is set up to do, and what that means for the promises.

    Eviction, files, replicas, buffers, time limits, latency, clocks, permissions, and the namespace's own state: each
    is ok, an advice, a problem, or could not be checked, with the exact command that mends it. Nothing is changed.
    With a database, Kafka or rules it looks at what their workers assume as well, as `cachebus worker check` does: all
    else is as the environment has it for the worker. Such a check begins a namespace that is new. With --rules the
    database, or Kafka (CACHEBUS_CDC_SOURCE), is where changes come from: that it has no outbox, or no topic of
    commands, is a warning, unless a variable names one.

    Exit status: 0 if all was checked and there is no problem; 1 if there is one, as one of several servers that is
    away; 2 if no server could be looked at; 3 if there is no problem in what was checked, and something was not.
    """
    from cachebus.cli.doctor_workers import Workers
    from cachebus.cli.performance import until_signalled
    from cachebus.cli.settings import settings_for
    from cachebus.tools.doctor.access import user_of_its_own
    from cachebus.tools.doctor.examine import examined
    from cachebus.tools.doctor.finding import UNSEEN
    from cachebus.tools.doctor.primaries import deployment_of

    try:
        settings = settings_for(url, namespace)
        if acl is not None:
            sys.stdout.write(user_of_its_own(settings, acl) + "\n")
            return
        workers = Workers(settings, database_url, bootstrap_servers, rules)
        workers.check_options()  # a mistake of the command line is told before anything is looked at
        deployment = until_signalled(deployment_of(settings))
    except (ConfigError, L2Unavailable) as error:
        if as_json:
            sys.stdout.write(json.dumps({"status": UNSEEN, "error": str(error), "findings": [], "servers": []}) + "\n")
        raise
    look = partial(examined, settings, probe_writes=probe_writes, ask_replicas=ask_replicas)
    status = _gone_through(settings, deployment, look, _Asked(workers, strict, as_json))
    raise typer.Exit(status)


def _gone_through(settings: Settings, deployment: Deployment, look: Look, asked: _Asked) -> int:
    """Look at one server after the other, and tell what each has, then what workers found; gives the exit status. One
    that is out of reach is a finding, with what it means and what helps. Where none is within reach, that is an error
    besides."""
    from cachebus.cli.doctor_report import as_dict, printed, under
    from cachebus.cli.performance import until_signalled
    from cachebus.tools.doctor.examine import out_of_reach
    from cachebus.tools.doctor.finding import BAD, UNSEEN, status_of

    everything, servers, errors, console = list(deployment.findings), [], list[L2Unavailable](), Console()
    if everything and not asked.as_json:
        under(f"{deployment.name}, namespace {settings.namespace}", everything, console)
        console.print()
    for primary in deployment.primaries:
        try:
            server, findings = until_signalled(look(primary))
        except L2Unavailable as error:
            errors.append(error)
            server, findings = out_of_reach(primary, error, deployment)
        everything += findings
        if asked.as_json:
            servers.append(as_dict(settings, server, findings))
        else:
            printed(settings, server, findings, console)
    reports = asked.workers.reports()
    status = UNSEEN if len(errors) == len(deployment.primaries) else status_of(everything, strict=asked.strict)
    if status != UNSEEN and any(each.status for each in reports):
        status = BAD
    if asked.as_json:
        whole = {"status": status, "findings": [each.as_dict() for each in deployment.findings], "servers": servers}
        whole["workers"] = [each.as_dict() for each in reports]
        sys.stdout.write(json.dumps(whole, indent=2) + "\n")
    else:
        for each in reports:
            console.print()
            each.printed(console)
    if status == UNSEEN:
        raise errors[0]
    return status
