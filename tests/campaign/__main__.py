"""`python -m tests.campaign`: ten million reads and more, on every kind of server, under all faults."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from cachebus.cli.performance import Interrupted, until_signalled
from cachebus.cli.verify_report import Screen, printed
from cachebus.errors import CacheBusError
from cachebus.tools.harness.supervisor import NodeCrashed
from cachebus.tools.servers.redis import find_servers
from cachebus.tools.verify.nemesis.faults import chosen
from cachebus.tools.verify.plan import VerifyPlan
from cachebus.tools.verify.run import Run
from tests.campaign.state import Row, loaded, save, table
from tests.support.servers import KINDS, Kind


class Way(NamedTuple):
    """A row: a server, and how it is run."""

    name: str
    server: Kind
    kind: str
    bus: str = "redis"


WAYS = [
    *(Way(kind.name, kind, "standalone") for kind in KINDS),
    Way("sentinel", KINDS[0], "sentinel"),
    Way("cluster", KINDS[0], "cluster"),
    Way("kafka", KINDS[0], "standalone", "kafka"),
]


@dataclass(frozen=True)
class Goal:
    """What a row must reach, and how."""

    reads: int
    invalidations: int
    leg_s: float
    bound_s: float
    rate: float
    write_rate: float
    seed: int
    nodes: int


def main(arguments: list[str] | None = None) -> int:
    """Run it; its exit status."""
    options = _parser().parse_args(arguments)
    kinds = _ways(options.only)
    share = len(kinds)
    goal = Goal(
        reads=-(-options.reads // share),
        invalidations=-(-options.invalidations // share),
        leg_s=options.leg_s,
        bound_s=options.bound_s,
        rate=options.rate,
        write_rate=options.write_rate,
        seed=options.seed,
        nodes=options.nodes,
    )
    state: Path = options.state
    if options.fresh:
        state.unlink(missing_ok=True)
    state.parent.mkdir(parents=True, exist_ok=True)
    rows = loaded(state)
    try:
        until_signalled(_campaign(kinds, goal, rows, state))
    except Interrupted as interrupted:
        print(f"{interrupted}; to go on, run the same again", file=sys.stderr)
        return interrupted.status
    except (CacheBusError, NodeCrashed) as error:
        print(f"campaign: {error}", file=sys.stderr)
        return 1
    done = [rows[kind.name] for kind in kinds if kind.name in rows]
    text = table(done)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    broken = [line for row in done for line in row.broken]
    print("\n".join(broken) or "Every promise was kept.")
    return 1 if broken else 0


async def _campaign(kinds: list[Way], goal: Goal, rows: dict[str, Row], state: Path) -> None:
    console = Console()
    for kind in kinds:
        row = rows.setdefault(kind.name, Row(kind.name))
        while not row.done(goal.reads, goal.invalidations):
            await _leg(kind, row, goal, console)
            save(state, rows)


async def _leg(kind: Way, row: Row, goal: Goal, console: Console) -> None:
    binary = next(binary for binary in find_servers() if binary.origin == kind.server.origin)
    reached = max(row.sums["judged"] / goal.reads, 0.0), row.sums["writes"] / goal.invalidations
    title = f"{kind.name}, leg {row.legs + 1}, {min(reached):4.0%} done: "
    plan = VerifyPlan(
        seed=goal.seed + row.legs,
        faults=chosen("all"),
        nodes=goal.nodes,
        seconds=goal.leg_s,
        bound_s=goal.bound_s,
        rate=goal.rate,
        write_rate=goal.write_rate,
        binary=binary,
        kind=kind.kind,
        bus=kind.bus,
    )
    with Screen(console, title) as screen:
        try:
            verdict = await Run(plan, screen).verdict()
        except NodeCrashed as error:
            raise NodeCrashed(f"{kind.name}, seed {plan.seed}: {error}") from None
    row.add(verdict)
    if verdict.broken:
        printed(verdict, console)


def _ways(only: list[str]) -> list[Way]:
    there = {binary.origin for binary in find_servers()}
    ways = [way for way in WAYS if (not only or way.name in only)]
    for way in ways:
        if way.server.origin not in there:
            print(f"no server of the kind {way.server.name!r} here: {way.server.how_to_get_it}", file=sys.stderr)
    return [way for way in ways if way.server.origin in there]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.campaign", description=__doc__)
    add = parser.add_argument
    add("--reads", type=int, default=10_000_000, help="judged reads of all rows together (%(default)s)")
    add("--invalidations", type=int, default=100_000, help="writes and invalidations likewise (%(default)s)")
    add("--only", nargs="*", default=[], choices=[way.name for way in WAYS], help="rows to run")
    add("--leg-s", type=float, default=60.0, help="seconds a leg: one fleet, one seed (%(default)s)")
    add("--bound-s", type=float, default=1.0, help="the staleness bound D (%(default)s)")
    add("--rate", type=float, default=6_000.0, help="reads a second and node (%(default)s)")
    add("--write-rate", type=float, default=50.0, help="writes a second and node (%(default)s)")
    add("--nodes", type=int, default=4, help="node processes (%(default)s)")
    add("--seed", type=int, default=1, help="of the first leg of each row; one more each leg (%(default)s)")
    add("--state", type=Path, default=Path("build/campaign.json"), help="where it goes on from (%(default)s)")
    add("--fresh", action="store_true", help="begin anew")
    add("--markdown", type=Path, help="write the table into this file")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
