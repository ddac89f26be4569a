"""From the evidence of a run to its verdict: each promise is checked, one after the other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

from cachebus.tools.verify.checker.evidence import Evidence
from cachebus.tools.verify.checker.explanation import Explainer
from cachebus.tools.verify.checker.fault_free import check_fault_free
from cachebus.tools.verify.checker.history import History, ReadCheck, StaleRead
from cachebus.tools.verify.checker.load_timing import LoadTimes, loaded_too_soon, served, unexcused
from cachebus.tools.verify.checker.loads import Excuses, ItemLoad, overlapping, reloaded_without_l2, unexplained
from cachebus.tools.verify.checker.verdict import Finding, Verdict
from cachebus.tools.verify.fleet import anomalies
from cachebus.tools.verify.fleet.guarded_writes import GUARDED
from cachebus.tools.verify.fleet.history_log import ITEM_MASK, VERB_SHIFT, records
from cachebus.tools.verify.fleet.reading import SESSION_TOKEN
from cachebus.tools.verify.fleet.setup import l2_timeout_s

KEPT = 3
"""Findings that are kept of each promise; all are counted."""
STALLED_BOUNDS = 3.0
"""A node that stood still may store a loaded value so many bounds later."""
ADD_S = 2.0
"""If L2 loses data within this time after it refused an `add`, the lost record may be the reason."""


@dataclass
class Judgement:
    """What has been found so far."""

    evidence: Evidence
    history: History
    explainer: Explainer
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def lead_s(self) -> float:
        """How long before its load a lease may have been granted."""
        return l2_timeout_s(self.evidence.largest_bound_s) + 0.1

    def found(self, promise: str, told: str, explain: Callable[[], tuple[str, ...]] = tuple) -> None:
        """Note that a promise broke. `explain` makes the explanation, where it is kept."""
        self.counts[promise] += 1
        if self.counts[promise] <= KEPT:
            self.findings.append(Finding(promise, told, explain()))


async def judge(evidence: Evidence, *, seed: int, server: str, nodes: int, seconds: float) -> Verdict:
    """Check the evidence against every promise. Yields to the event loop now and then."""
    history = evidence.history()
    case = Judgement(evidence, history, evidence.explainer(history))
    check = await _reads(case)
    check_fault_free(case, check.late)
    tokens = _tokens(case)
    _anomalies(case)
    loads = evidence.loads()
    twice = _loads(case, loads)
    await _lives(case, loads)
    _rests(case, loads)
    looked = _at_rest(case)
    for node in evidence.not_ready:
        case.found(
            "recovery", f"node {node} had no lease, or a worker that stood still, long after the last fault was over"
        )
    ticks = evidence.ticks
    return Verdict(
        seed=seed,
        server=server,
        nodes=nodes,
        seconds=seconds,
        bound_s=evidence.bound_s,
        reads=sum(tick.accesses for tick in ticks),
        judged=check.judged,
        failed=sum(tick.failed for tick in ticks),
        tokens=tokens,
        writes=len({(w.node, w.called_s) for w in history.writes if w.returned_s}),
        repeated=sum(tick.repeated for tick in ticks),
        loads=sum(tick.loads for tick in ticks),
        l1_hits=sum(tick.l1_hits for tick in ticks),
        loads_twice=twice,
        unsure=check.unsure,
        looked=looked,
        ways=_ways(case),
        faults=dict(sorted(Counter(done.fault for done in evidence.faults).items())),
        ages=tuple(check.ages),
        stale_beyond=check.beyond,
        foreign=case.counts["G8"],
        worst_age_s=check.worst_age_s,
        broken=tuple(case.findings),
        counts=dict(case.counts),
    )


def _ways(case: Judgement) -> dict[str, int]:
    ways = Counter[str]()
    for tick in case.evidence.ticks:
        ways.update(tick.ways)
    writes = case.history.writes
    ways["writes that waited for the nodes"] = sum(write.waited and write.returned_s > 0 for write in writes)
    ways["commits behind a guard"] = sum(write.verb == GUARDED and write.version > 0 for write in writes)
    ways["guards left"] = sum(write.guard_ends_s > 0 and not write.returned_s and write.version > 0 for write in writes)
    return dict(sorted(ways.items()))


async def _reads(case: Judgement) -> ReadCheck:
    """G1, G2, G4, G5, G6."""
    check = ReadCheck(case.history)
    for node in case.evidence.lives:
        bound_s = case.evidence.bound_of(node)
        for _ in check.add(node, records(case.evidence.directory, node, "reads"), bound_s):
            await asyncio.sleep(0)  # so that Ctrl-C is heard
    for promise, stales, count in (
        ("G1", check.worst, check.beyond),
        ("G2", check.missed, check.own_missed),
        ("G5", check.filled, check.fills),
        ("G4", check.waited, check.unseen),
        ("G6", check.guarded, check.outlived),
    ):
        for stale in stales:
            case.found(promise, _in_words(case, stale), partial(case.explainer.explain_read, stale))
        case.counts[promise] = count
    return check


def _in_words(case: Judgement, stale: StaleRead) -> str:
    item = case.evidence.items[stale.item]
    return (
        f"node {stale.node} read version {stale.version} of {item}, "
        f"{stale.age_s:.3f} s after that of version {stale.missed} had returned"
    )


def _tokens(case: Judgement) -> int:
    """G3, I7."""
    seen = 0
    for node in case.evidence.lives:
        for code, version, started_s, least, kind in case.evidence.records(node, "tokens"):
            seen += 1
            item = code & ITEM_MASK
            if version < least and (item, version) not in case.history.unsure:
                stale = StaleRead(node, code >> VERB_SHIFT, item, version, started_s, 0.0, least)
                case.found(
                    "I7" if kind == SESSION_TOKEN else "G3",
                    f"node {node} read version {version} of {case.evidence.items[item]} with the token of {least}",
                    partial(case.explainer.explain_read, stale),
                )
    return seen


def _anomalies(case: Judgement) -> None:
    """G8, and what else a node notices by itself."""
    evidence, impaired = case.evidence, cache(case.evidence.impaired)
    items, excused, paused = evidence.items, evidence.data_loss(), evidence.paused()
    for node in evidence.lives:
        for code, kind, a, b, at_s in evidence.records(node, "anomalies"):
            item = items[code & ITEM_MASK]
            explain: Callable[[], tuple[str, ...]] = tuple
            if kind == anomalies.UNAVAILABLE:
                if impaired(evidence.shard_of(item))[node].overlap(at_s, at_s + a / 1000):
                    continue
                explain = partial(case.explainer.explain_moment, node, at_s)
            if kind == anomalies.ADD_REFUSED and excused.overlap(at_s, at_s + ADD_S):
                continue
            if kind == anomalies.TOO_SLOW and paused[node].overlap(at_s, at_s + a / 1000):
                continue
            told = anomalies.DESCRIPTIONS[kind].format(a=a, b=b)
            case.found(anomalies.PROMISES[kind], f"node {node}: {item} {told}", explain)


def _loads(case: Judgement, loads: list[ItemLoad]) -> int:
    """I13: one load at a time. Returns how many loads overlapped, excused or not."""
    evidence, history, lead_s = case.evidence, case.history, case.lead_s
    pairs = overlapping(loads)
    ends = {item: Excuses(spans) for item, spans in history.ending_leases().items()}
    wrong = unexplained(pairs, ends, evidence.lease_excuses(), evidence.fleet_lease_excuses(), lead_s=lead_s)
    for first, second in wrong:
        what = f"two loads of {evidence.items[first.item]} at a time"
        case.found("I13", what, partial(case.explainer.explain_loads, first, second, lead_s))
    own = {node: history.touching(evidence.items, node) for node in evidence.lives}
    often = reloaded_without_l2(
        loads, evidence.away, evidence.l1_drops(), own, evidence.bound_s, lead_s, evidence.kept, evidence.asked_s
    )
    for first, second in often:
        what = f"node {second.node} loaded {evidence.items[first.item]} again within D, with L2 away"
        case.found("I13", what, partial(case.explainer.explain_loads, first, second, evidence.bound_s))
    return len(pairs)


async def _lives(case: Judgement, loads: list[ItemLoad]) -> None:
    """Expiry: no read gives a value that was loaded too long ago."""
    evidence = case.evidence
    lives = LoadTimes(evidence.items, loads, evidence.stalls(), STALLED_BOUNDS * evidence.largest_bound_s)
    for node in evidence.lives:
        for batch in records(evidence.directory, node, "reads"):
            for code, version, started_s in batch:
                if lives.outlived(code, version, started_s):
                    what = f"node {node} read version {version} of {evidence.items[code & ITEM_MASK]}"
                    case.found("life", f"{what}, which nobody had loaded for longer than it lives")
            await asyncio.sleep(0)
        for item, started_s, answered_s in evidence.records(node, "absent"):
            if lives.absent_too_long(item, started_s, answered_s):
                what = f"node {node} was told that there is no {evidence.items[item]}"
                case.found("life", f"{what}, which nobody had found for longer than that lasts")


def _rests(case: Judgement, loads: list[ItemLoad]) -> None:
    """Rests: no node asks a source again too soon."""
    evidence = case.evidence
    pairs = unexcused(
        loaded_too_soon(evidence.items, loads, case.lead_s),
        case.history.touching(evidence.items),
        evidence.reload_excuses(),
        evidence.leases_deleted(),
        case.lead_s,
    )
    for first, second in served(pairs, lambda node: records(evidence.directory, node, "shown")):
        what = "had answered" if first.version else "had failed"
        told = f"node {second.node} asked the source of {evidence.items[second.item]} again, which {what}"
        case.found(
            "rest",
            f"{told} {second.began_s - first.ended_s:.3f} s before",
            partial(case.explainer.explain_loads, first, second, case.lead_s),
        )


def _at_rest(case: Judgement) -> int:
    """I14, and no lease is left. Returns how many items were looked at."""
    if case.evidence.held:
        case.found("lease", f"{case.evidence.held} fill leases are held, and nobody loads")
    looked = 0
    source = case.evidence.versions
    for node in case.evidence.lives:
        for item, *versions in case.evidence.records(node, "rest"):
            looked += 1
            for level, version in zip(("L1", "L2"), versions, strict=True):
                if version not in (0, source[item]):
                    case.found(
                        "I14",
                        f"{level} of node {node} has version {version} of {case.evidence.items[item]}, "
                        f"the source {source[item]}",
                    )
    return looked
