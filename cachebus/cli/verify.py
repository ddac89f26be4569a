"""`cachebus verify`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cachebus.errors import ConfigError

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        show_default=False,
        help="Test against this server (redis://, rediss://, valkey://, valkeys:// or unix://) instead of one "
        "of its own. It is mostly read; keys stay within a namespace of their own, and are removed; faults are "
        "made in proxies and nodes alone.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        show_default=False,
        help="Of the faults and of what is read and written; a new one by default. "
        "The same seed makes the same faults at the same times and asks the same in the same order on each node; "
        "how these fall together in time is the machine's doing, and is not replayed.",
    ),
]
Faults = Annotated[
    str,
    typer.Option(
        "--faults",
        metavar="NAMES",
        help='Which faults: "all", "none", or groups (network, node, server, bus, '
        "broker) and names, with commas between; see --list-faults.",
    ),
]
Rate = Annotated[
    float, typer.Option("--rate", min=0.0, help="Reads a second that each node begins; 0: as fast as it can.")
]
WriteRate = Annotated[
    float | None,
    typer.Option("--write-rate", min=0.0, show_default=False, help="Writes a second of each node: 20, with --url 2."),
]
Kind = Annotated[
    str,
    typer.Option(
        "--kind",
        help="Its own server: standalone, sentinel (a primary, two or three replicas, three Sentinels), "
        "or cluster (three primaries, one or two replicas each): as many as the seed says.",
    ),
]
Bus = Annotated[
    str,
    typer.Option(
        "--bus", help="What carries the events: redis, or kafka, a broker of its own, with faults of its own."
    ),
]
Encryption = Annotated[
    bool, typer.Option("--encryption", help="Values lie encrypted in Redis, by two keys that change places.")
]
Picture = Annotated[
    Path | None,
    typer.Option(
        "--picture", metavar="FILE.svg", show_default=False, help="Draw the ages of stale reads into this file."
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", show_default=False, help="Write all figures into this file as JSON."),
]


def verify(
    url: Url = None,
    nodes: Annotated[int, typer.Option("--nodes", min=2, max=32, help="Node processes.")] = 4,
    seconds: Annotated[float, typer.Option("--seconds", min=1.0, max=86_400.0, help="How long it lasts.")] = 30.0,
    seed: Seed = None,
    faults: Faults = "all",
    bound_s: Annotated[float, typer.Option("--bound-s", min=0.2, max=60.0, help="The staleness bound D.")] = 1.0,
    rate: Rate = 2_000.0,
    write_rate: WriteRate = None,
    kind: Kind = "standalone",
    bus: Bus = "redis",
    encryption: Encryption = False,
    picture: Picture = None,
    json_file: JsonFile = None,
    list_faults: Annotated[bool, typer.Option("--list-faults", help="Show what each fault does, and end.")] = False,
) -> None:
    """Put the promises to the test: real processes, a real server, faults of every kind, and every read judged.

    Runs several nodes against a server, each through a proxy of its own, reads and writes in every way there is, and
    breaks things by a schedule that has a seed: connections, messages, nodes, and the server if that is its own. In the
    end each read is held against the history of all writes.

    Exit status: 0, 1 if a promise broke (with the telling part of the history), 2 if it could not start.
    """
    from cachebus.cli.verify_show import perform
    from cachebus.tools.verify.nemesis.faults import chosen
    from cachebus.tools.verify.plan import make_plan

    if list_faults:
        _list()
        return
    for file in (picture, json_file):
        if file is not None and not file.absolute().parent.is_dir():
            raise ConfigError(f"{file}: there is no folder {file.absolute().parent}")
    plan = make_plan(
        url=url,
        seconds=seconds,
        seed=seed,
        faults=chosen(faults),
        nodes=nodes,
        bound_s=bound_s,
        rate=rate,
        write_rate=write_rate,
        kind=kind,
        bus=bus,
    )
    raise typer.Exit(perform(replace(plan, encryption=encryption), picture=picture, json_file=json_file))


def _list() -> None:
    from cachebus.tools.verify.nemesis.faults import FAULTS, GROUPS

    heads = {
        "network": "between one node and the server",
        "node": "of one node's process",
        "source": "of the source behind one node, at the same time as others",
        "server": "of the server, where that is verify's own and alone",
        "group": "of several servers that are one service (--kind)",
        "bus": "between one node and Kafka, and of its publishing (--bus kafka)",
        "broker": "of Kafka itself (--bus kafka)",
    }
    for group in GROUPS:
        sys.stdout.write(f"{group}: {heads[group]}\n")
        for fault in FAULTS.values():
            if fault.where == group:
                sys.stdout.write(f"  {fault.name:14} {fault.what}\n")
