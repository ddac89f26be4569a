"""What each node may serve of a key, and until when: by its own answer, or, where it is silent, by its row in L2.

What was replaced at time r may be served until r + D at the latest: a node gets its lease only by a probe that was sent
before the replacement, or has applied it; what it loads for itself, it serves for D from when it began. By a row:

1. A node that has applied the replacement serves nothing older.
2. One that has not has last asked L2 when its row says. Its lease is over D after that; what it has loaded for itself
   since then is, D after the replacement, not what was replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple

from cachebus.core.ports import SILENT_S, KeyFacts, NodeRow
from cachebus.keys.words import shown
from cachebus.listening.explanation import Holder, clock_time, moment, seconds
from cachebus.listening.inquiries import NodeSaid
from cachebus.wire.inquiry import NodeAnswer

WHY_NOT: Final[Mapping[str, str]] = {
    "replaced": "it was replaced, as this node has heard",
    "expired": "it has expired",
    "no_lease": "the lease is over, and the value was read longer ago than the staleness bound",
}


class Replacement(NamedTuple):
    """The last that is known to have replaced the key: what is of an earlier seq may not be served for long."""

    seq: int = 0
    """0: nothing is known to have."""
    at_s: float | None = None
    """When that was, by L2's clock; None where the log no longer tells."""


class AsSeen(NamedTuple):
    """What all nodes are held against."""

    facts: KeyFacts
    replacement: Replacement
    asked_s: float
    """When L2's clock was asked for, on the asker's own."""
    took_s: float = 0.0
    """For how long, from when L2 had been looked at, the nodes were asked."""

    @property
    def now_s(self) -> float:
        """L2's clock when it was asked."""
        return self.facts.server_us / 1e6

    @property
    def told_s(self) -> float:
        """L2's clock when this is told, at the earliest."""
        return self.now_s + self.took_s

    def server_s(self, own_s: float) -> float:
        """L2's clock at a moment of the asker's, at the latest."""
        return self.now_s + max(0.0, own_s - self.asked_s)

    @property
    def over_s(self) -> float:
        """By when what was replaced had been, at the latest."""
        return self.now_s if self.replacement.at_s is None else self.replacement.at_s


def holders(seen: AsSeen, said: Mapping[str, NodeSaid]) -> tuple[Holder, ...]:
    """All nodes that answered, and those that did not though they may serve something."""
    rows, asked = seen.facts.rows, counted(seen.facts)
    answered = [_answered(seen, one, rows.get(name)) for name, one in sorted(said.items())]
    return (*answered, *(_silent(seen, name, rows[name]) for name in sorted(asked - said.keys())))


def counted(facts: KeyFacts) -> frozenset[str]:
    """The nodes whose answer is waited for: those whose row can be read, and is not older than a minute."""
    return frozenset(name for name, row in facts.rows.items() if facts.server_us - row.at_us <= SILENT_S * 1_000_000)


def _silent_s(seen: AsSeen, row: NodeRow | None) -> float | None:
    return None if row is None or not row.at_us else max(0.0, (seen.facts.server_us - row.at_us) / 1e6)


def _answered(seen: AsSeen, said: NodeSaid, row: NodeRow | None) -> Holder:
    answer, server_s = said.answer, seen.server_s(said.at_s)
    elsewhere = answer.epoch.encode() != seen.facts.epoch
    serves = bool(answer.holds) and answer.holds != "absent" and not answer.why_not
    replaced = serves and _predates(seen, answer, elsewhere=elsewhere)
    return Holder(
        node=shown(answer.node),
        answered=True,
        says=f"{shown(answer.node)} {_says(seen, said, replaced=replaced, elsewhere=elsewhere)}",
        silent_s=_silent_s(seen, row),
        applied=0 if elsewhere else answer.applied,
        lease_until=moment(server_s + answer.lease_ms / 1000) if answer.lease_ms > 0 else None,
        holds=shown(answer.holds),
        seq=answer.seq if answer.holds else None,
        version=shown(answer.version),
        serves=serves,
        replaced=replaced,
        until=_until(seen, said, replaced=replaced, elsewhere=elsewhere) if serves else None,
        hit_path=answer.fast,
        why_not=shown(answer.why_not),
        fallback=_is_fallback(answer),
    )


def _predates(seen: AsSeen, answer: NodeAnswer, *, elsewhere: bool) -> bool:
    """Whether what it holds is of before the replacement. The seq of what a node has loaded for itself is that of which
    it had heard then; that lives for D from when its load began."""
    if not elsewhere and answer.seq >= seen.replacement.seq:
        return False
    began_s = seen.now_s + (answer.serves_ms - answer.bound_ms) / 1000
    return not answer.alone or (bool(seen.replacement.seq) and began_s < seen.over_s)


def _until(seen: AsSeen, said: NodeSaid, *, replaced: bool, elsewhere: bool) -> datetime | None:
    """Until when at most it serves what it holds."""
    answer, server_s = said.answer, seen.server_s(said.at_s)
    ends = [] if answer.expires_ms < 0 else [server_s + answer.expires_ms / 1000]
    if elsewhere:  # no probe renews the lease of an epoch that is over
        ends.append(server_s + answer.serves_ms / 1000)
    elif replaced:  # by a probe that is under way the lease may last longer than the node says, but not beyond that
        ends.append(seen.over_s + answer.bound_ms / 1000)
    return moment(min(ends)) if ends else None


def _says(seen: AsSeen, said: NodeSaid, *, replaced: bool, elsewhere: bool) -> str:
    answer, server_s = said.answer, seen.server_s(said.at_s)
    if answer.lease_ms > 0:
        lease = f"lease until {clock_time(moment(server_s + answer.lease_ms / 1000))}, unless it is renewed"
    else:
        lease = "no lease"
    if elsewhere:
        place = f"is in epoch {shown(answer.epoch) or '(none)'}, which is not the present one"
    else:
        behind = max(seen.facts.seq, answer.highest_seq) - answer.applied
        place = f"has applied seq {answer.applied}" + (f", {behind:,} behind" if behind > 0 else "")
    until = _until(seen, said, replaced=replaced, elsewhere=elsewhere)
    waiting = "; an invalidation of it waits here for L2" if answer.blocked else ""
    return f"{_holding(answer, until, replaced=replaced)}{waiting}; {place}; {lease}"


def _holding(answer: NodeAnswer, until: datetime | None, *, replaced: bool) -> str:
    if not answer.holds:
        return "holds nothing of it"
    if answer.holds == "absent":
        return "remembers that L2 had nothing"
    what = f"holds seq {answer.seq}" + (f", version {shown(answer.version)}" if answer.version else "")
    what += " (the source has nothing)" if answer.holds == "not_found" else ""
    what += " (loaded while L2 was out of reach)" if answer.alone else ""
    if answer.why_not:
        what += f", and does not serve it: {WHY_NOT.get(answer.why_not, shown(answer.why_not))}"
        what += "; while the source fails it is given all the same" if _is_fallback(answer) else ""
        return what + ("; READS TAKE THE HIT PATH, AND MUST NOT: report that" if answer.fast else "")
    path = "by the hit path" if answer.fast else "past the hit path"
    what += f", and serves it {path}" + (", to have it loaded anew" if answer.soft else "")
    if until is None:
        return f"{what}, as long as its lease is renewed"
    return f"{what}, until {clock_time(until)} at most" + (": it was replaced" if replaced else "")


def _is_fallback(answer: NodeAnswer) -> bool:
    return answer.why_not == "expired" and answer.fallback_ms != 0


def _silent(seen: AsSeen, name: str, row: NodeRow) -> Holder:
    bound_s, asked_at_s = row.about.bound_ms / 1000, row.at_us / 1e6
    knows = row.epoch == seen.facts.epoch and row.applied >= seen.replacement.seq
    latest_s = asked_at_s
    if not knows:
        # With neither a lease nor anything of its own it serves nothing that was replaced.
        alone = row.about.keeps_without_l2 and seen.replacement.seq
        latest_s = seen.over_s if alone else min(asked_at_s, seen.over_s)
    until_s = latest_s + bound_s
    serves = until_s > seen.told_s
    silent_s = _silent_s(seen, row) or 0.0
    has = "holds nothing that was replaced" if knows else "may serve what was replaced"
    if serves:
        says = f"it {has}" if knows else f"it {has}, until {clock_time(moment(until_s))} at most"
    else:
        says = f"it {has}" if knows else "whatever it holds, it serves nothing that was replaced any more"
    return Holder(
        node=shown(name),
        answered=False,
        says=f"{shown(name)} does not answer; it asked L2 something {seconds(silent_s)} ago, and had applied "
        f"{'seq ' + str(row.applied) if row.epoch == seen.facts.epoch else 'nothing of this epoch'}; {says}",
        silent_s=silent_s,
        applied=row.applied if row.epoch == seen.facts.epoch else 0,
        lease_until=moment(asked_at_s + bound_s) if asked_at_s + bound_s > seen.told_s else None,
        serves=serves,
        replaced=serves and not knows,
        until=moment(until_s) if serves else None,
    )
