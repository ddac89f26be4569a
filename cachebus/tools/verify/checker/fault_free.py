"""What may not happen while nothing is wrong: an outage of everything breaks no bound, and is no success either."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from cachebus.consumers.worker.patience import LONGEST_S
from cachebus.tools.verify.checker.history import Stale
from cachebus.tools.verify.checker.loads import Excuses
from cachebus.tools.verify.fleet.disturbances import BEGAN_ANEW
from cachebus.tools.verify.fleet.writing import ERRAND

if TYPE_CHECKING:
    from cachebus.tools.verify.checker.judge import Judgement


def while_well(case: Judgement, late: Sequence[Stale]) -> None:
    """Late news and flushes, and what was left over; `late`: reads that were older than half of the bound."""
    evidence, unwell = case.evidence, case.evidence.unwell()
    for node in evidence.lives:
        for kind, from_s, until_s in evidence.records(node, "trouble"):
            if kind == BEGAN_ANEW and not unwell[node].touch(from_s, until_s):
                told = f"node {node} dropped all it held, though nothing was wrong"
                case.found("flush", told, partial(case.teller.of_moment, node, from_s))
    for stale in late:
        if not _any(unwell, stale):
            told = f"node {stale.node} read version {stale.version} of {evidence.items[stale.item]}"
            case.found("lag", f"{told}, {stale.age_s:.3f} s after that of version {stale.missed} had returned")
    for write in case.history.writes:
        took_s = write.returned_s - write.called_s
        # Whatever was wrong before is tried again after the longest pause only.
        began_s = write.called_s - LONGEST_S
        if (
            write.verb == ERRAND
            and took_s > evidence.bound_s
            and not unwell[write.node].touch(began_s, write.returned_s)
        ):
            told = f"the worker of node {write.node} had {evidence.items[write.item]} invalidated"
            case.found("lag", f"{told} {took_s:.3f} s after it was asked to, though nothing was wrong")
    for number, what in evidence.left.items():
        case.found("left", f"node {number} had {what} more than at its start")


def _any(unwell: dict[str, Excuses], stale: Stale) -> bool:
    """Whether anything was wrong with any node: it may be the one that wrote."""
    return any(excuses.touch(stale.started_s - stale.age_s, stale.started_s) for excuses in unwell.values())
