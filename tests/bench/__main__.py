"""`make bench`: ours and others in one run, interleaved; a table of ratios with their goals, and a chart.

Speed is reported, never asserted: a busy machine must not make a test fail.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from cachebus.base.clock import perf_counter
from cachebus.errors import ConfigError
from cachebus.tools.servers.redis import EmbeddedServer
from tests.bench import (
    availability,
    batches,
    blocking,
    cdc,
    encryption,
    hits,
    imports,
    invalidations,
    kafka_bus,
    memory,
    outbox,
    reads,
    server_cpu,
    warm_up,
)
from tests.bench.report import show
from tests.bench.rows import Row
from tests.bench.run import Bench
from tests.bench.scale import Progress, Scale

PEERS: Final = (
    "redis",
    "hiredis",
    "cashews",
    "aiocache",
    "async-lru",
    "cachetools",
    "moka-py",
    "theine",
    "asyncpg",
    "aiokafka",
    "cryptography",
)


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are measured together; the names of their rows begin with one of `names`."""

    names: tuple[str, ...]
    title: str
    measure: Callable[[Bench], Awaitable[list[Row]]]


GROUPS: Final = (
    Group(("hit",), "hits in L1", hits.rows),
    Group(("blocking",), "synchronous code", blocking.rows),
    Group(("l2",), "reads of L2", reads.rows),
    Group(("encryption",), "encryption", encryption.rows),
    Group(("batch",), "many ids at once", batches.rows),
    Group(("vectors",), "vectors", batches.vectors),
    Group(("invalidate", "flood"), "invalidations", invalidations.rows),
    Group(("kafka", "commands"), "invalidations over Kafka", kafka_bus.rows),
    Group(("outbox",), "the outbox's relay", outbox.rows),
    Group(("cdc",), "change data capture", cdc.rows),
    Group(("availability",), "availability", availability.rows),
    Group(("warm-up",), "a rolling restart, warmed up", warm_up.rows),
    Group(("server",), "server CPU per operation", server_cpu.rows),
    Group(("drop",), "drops of a scope", memory.drops),
    Group(("import",), "import time", imports.rows),
    Group(("memory",), "memory", memory.entry_bytes),
    Group(("ratio",), "hit ratios", memory.hit_ratios),
)
NAMES: Final = tuple(name for group in GROUPS for name in group.names)


async def measure(scale: Scale, only: Sequence[str], progress: Progress) -> list[Row]:
    """The rows of all groups, or of those asked for; each group has a server to itself."""
    found: list[Row] = []
    for group in GROUPS:
        if only and not set(only) & set(group.names):
            continue
        progress.group(group.title)
        with EmbeddedServer() as server:
            found += await group.measure(Bench(server, scale, progress))
    progress.done()
    return [row for row in found if not only or row.name.startswith(tuple(only))]


def surroundings() -> dict[str, Any]:
    """What the figures were measured with."""
    installed: dict[str, str] = {}
    for name in PEERS:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "server": EmbeddedServer().binary.name,
        "packages": installed,
    }


def told(around: dict[str, Any]) -> str:
    """The same in a line."""
    packages = ", ".join(f"{name} {number}" for name, number in around["packages"].items())
    return (
        f"Python {around['python']}, {around['cores']} cores (load {around['load']} at the start), "
        f"{around['server']}, {packages}"
    )


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; the figures mean little")
    parser.add_argument("--full", action="store_true", help="whole traces: some ten minutes more")
    parser.add_argument(
        "--only", action="append", default=[], choices=NAMES, metavar="NAME", help="one of: " + ", ".join(NAMES)
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args(given)


def main() -> None:
    """Measure, and tell."""
    asked = arguments()
    scale = Scale.quick() if asked.quick else Scale.full() if asked.full else Scale.normal()
    started = perf_counter()
    try:
        around = surroundings()
        print(told(around), flush=True)
        rows = asyncio.run(measure(scale, asked.only, Progress(lively=sys.stderr.isatty())))
    except ConfigError as error:
        sys.exit(str(error))
    if asked.json is not None:
        found = {"surroundings": around, "rows": [row.as_json() for row in rows]}
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    show(rows, terminal=sys.stdout.isatty())
    print(f"\ntook {perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
