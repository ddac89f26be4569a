"""What the commands of the campaigns of kills have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Protocol


class Judged(Protocol):
    """What came of a campaign."""

    broken: list[str]

    def told(self) -> str:
        """In a line."""


def command(module: str, about: str | None, killed: str, run: Callable[[int, int, bool], Judged]) -> int:
    """`python -m tests.campaign.MODULE`; its exit status. `run` takes how many are killed (`killed`: of what), the
    seed, and whether all else is left alone."""
    parser = argparse.ArgumentParser(f"python -m tests.campaign.{module}", description=about)
    parser.add_argument("--lives", type=int, default=200, help=f"{killed} to kill (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random here (%(default)s)")
    parser.add_argument("--calm", action="store_true", help=f"leave the servers alone: only {killed} are killed")
    asked = parser.parse_args()
    tally = run(asked.lives, asked.seed, asked.calm)
    print(f"seed {asked.seed}: {tally.told()}")
    for line in tally.broken[:20]:
        print(line)
    return 1 if tally.broken else 0
