"""What a read gets, and why, in one sentence: the worst that is so decides.

| case | what is so |
|---|---|
| `replaced_is_served` | a node that answered serves what was replaced |
| `may_be_served` | a silent node may |
| `guarded` | a write guard stands on the key |
| `waiting` | a node has an invalidation of it that L2 has yet to hear of |
| `not_replaced` | what L2 has is valid: whoever reads gets it, or what the same lease allows |
| `only_in_l1` | L2 has nothing valid, and a node serves what nothing has replaced |
| `nothing` | nothing is cached under this name |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cachebus.keys.words import shown
from cachebus.listening.explanation import Holder, StandingWrite, StoredValue, by, clock_time, moment, seconds
from cachebus.listening.holders import AsSeen
from cachebus.listening.touching import KeyHistory, Touch
from cachebus.listening.worth import READABLE


class Grounds(NamedTuple):
    """All that a verdict is given on."""

    seen: AsSeen
    stored: StoredValue
    history: KeyHistory
    guards: Sequence[StandingWrite]
    nodes: Sequence[Holder]
    waiting: Sequence[str]
    """The nodes on which an invalidation waits."""
    elsewhere: str
    """Under which other names the id lies; "" where that is not known."""
    unasked: bool = False
    """Whether the nodes could not be asked."""


def verdict(found: Grounds) -> tuple[str, str]:
    """The case, and the sentence."""
    told = moment(found.seen.told_s)  # what may be over by then, as others were waited for, only its node's row tells
    served = [node for node in found.nodes if node.answered and node.replaced and (node.until or told) > told]
    silent = [node for node in found.nodes if not node.answered and node.replaced]
    if served:
        return "replaced_is_served", _replaced_is_served(found, served)
    if silent:
        return "may_be_served", _may_be_served(found, silent)
    if found.guards:
        return "guarded", _guarded(found)
    if found.waiting:
        return "waiting", (
            f"node {found.waiting[0]} has an invalidation of it that L2 has yet to hear of{_others(found.waiting)}: "
            "until then all other nodes serve what it replaces"
        )
    if found.stored.state in READABLE:
        return "not_replaced", _not_replaced(found)
    held = [node for node in found.nodes if node.answered and node.serves]
    if held:
        return "only_in_l1", (
            f"L2 has nothing that a read is given ({found.stored.says}), and node {held[0].node} serves seq "
            f"{held[0].seq}, which nothing is known to have replaced{_until(held[0])}{_others(held)}"
        )
    if found.stored.state == "none":
        return "nothing", f"nothing is cached under this name{found.elsewhere or ': the next read asks the source'}"
    return "nothing", f"a read is given nothing of what L2 has, and asks the source: it is {found.stored.says}"


def _replaced_is_served(found: Grounds, served: Sequence[Holder]) -> str:
    last = max(served, key=lambda node: node.until or moment(0))
    return (
        f"node {last.node} serves seq {last.seq}{_until(last)}: {_replacement(found)}, and its lease ends by then"
        f"{_others(served)}"
    )


def _may_be_served(found: Grounds, silent: Sequence[Holder]) -> str:
    last = max(silent, key=lambda node: node.until or moment(0))
    how, others = ("could not be asked", "") if found.unasked else ("does not answer", "; no node that answered does")
    return (
        f"node {last.node} {how}, and may serve what was replaced{_until(last)}: {_replacement(found)}"
        f"{_others(silent)}{others}"
    )


def _replacement(found: Grounds) -> str:
    """What the last replacement was: of what was there before."""
    replacement, now_s = found.seen.replacement, found.seen.told_s
    if not replacement.seq:
        return "L2 has begun another epoch since it was heard of last"
    touch = _touch(found, replacement.seq)
    if touch is None and replacement.seq in found.seen.facts.low.values():
        return f"L2 has forgotten what was invalidated up to seq {replacement.seq}"
    if replacement.at_s is None or touch is None:
        return f"seq {replacement.seq} replaced it, which the log no longer has"
    who = by(shown(touch.part.origin), shown(touch.part.reason))
    return f"seq {replacement.seq} replaced it {seconds(max(0.0, now_s - replacement.at_s))} ago{who}"


def _touch(found: Grounds, seq: int) -> Touch | None:
    return next((touch for touch in found.history.touches if touch.seq == seq), None)


def _guarded(found: Grounds) -> str:
    last = found.guards[0]
    until = f"until {clock_time(last.until)} at the latest"
    if last.began_at is None:
        began = "since when, the log no longer tells"
    else:
        since_s = max(0.0, found.seen.told_s - last.began_at.timestamp())
        began = f"that began {seconds(since_s)} ago{by(last.origin, last.reason)}"
    return f"it is guarded by a write {began}, {until}: every read asks the source, and no level keeps what that gives"


def _not_replaced(found: Grounds) -> str:
    stored, seen = found.stored, found.seen
    age = "" if stored.created_at is None else seconds(max(0.0, seen.told_s - stored.created_at.timestamp())) + " old"
    when = "" if stored.created_at is None else f" (of {clock_time(stored.created_at)})"
    who = f"{stored.written_by} wrote it" if stored.written_by else "the source gave it"
    since = f"; {_replacement(found)}" if seen.replacement.seq not in (0, stored.seq) else ""
    return (
        f"nobody serves anything that was replaced: what L2 has is {age}{when}, and if that is wrong, {who} so, or "
        f"nobody has told of the change since{since}"
    )


def _until(node: Holder) -> str:
    return ", as long as its lease is renewed" if node.until is None else f" until at most {clock_time(node.until)}"


def _others(some: Sequence[object]) -> str:
    more = len(some) - 1
    return f" (and {more} other node{'s' * (more > 1)})" if more else ""
