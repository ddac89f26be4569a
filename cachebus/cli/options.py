"""The options that `demo` and `replay` share."""

from __future__ import annotations

from typing import Annotated

import typer

RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        metavar="URL",
        help="Use this server (redis://, rediss://, valkey://, valkeys:// or unix://) instead of starting one. "
        "Keys stay within a namespace of their own, and are removed.",
        show_default=False,
    ),
]
Nodes = Annotated[int, typer.Option("--nodes", min=1, max=64, help="Node processes.")]
Duration = Annotated[
    float, typer.Option("--duration", min=1.0, metavar="SECONDS", help="How long each of the two runs lasts.")
]
Rate = Annotated[
    float, typer.Option("--rate", min=0.0, help="Accesses a second that each node makes; 0: as fast as it can.")
]
WriteRatio = Annotated[float, typer.Option("--write-ratio", min=0.0, max=1.0, help="Share of the accesses that write.")]
L1Entries = Annotated[int, typer.Option("--l1-entries", min=0, help="Entries that a node's memory holds.")]
Bound = Annotated[float, typer.Option("--bound", min=0.2, max=60.0, metavar="SECONDS", help="The staleness bound D.")]
Ttl = Annotated[
    float, typer.Option("--ttl", min=0.1, metavar="SECONDS", help="TTL of the dict that it is compared with.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of the accesses and of the choice of writes.")]
Cut = Annotated[bool, typer.Option("--cut/--no-cut", help="Let one node's connections hang half way.")]
Compare = Annotated[bool, typer.Option("--compare/--no-compare", help="Run the same again with coherence off.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON; progress goes to stderr.")]
