"""Checks for broken slot moves in a Cluster: only one of the two primaries knows of it, or nothing moves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from cachebus.l2.names import ShardNames
from cachebus.resp import Address, slot_of
from cachebus.settings import Settings
from cachebus.tools.doctor.asking import asked
from cachebus.tools.doctor.cluster import Line, lines_of, own_slots, shards_named
from cachebus.tools.doctor.finding import Finding, Severity, ok, unknown

AGAIN_S: Final = 1.0
"""A move begins, and ends, at one primary first, and it moves keys. So it is broken only if it still looks so a moment
later."""
TO, FROM = "->-", "-<-"


class Move(NamedTuple):
    """A move of one slot, as one primary states it."""

    slot: int
    by: str
    """The id of the primary that states it."""
    leaves: bool
    """Whether the slot leaves that primary, or comes to it."""
    other: str
    """The id of the other primary."""


@dataclass(slots=True)
class PrimaryView:
    """What one primary says of slots."""

    address: Address
    refused: str = ""
    """Why it does not answer."""
    own: list[range] = field(default_factory=list)
    moves: set[Move] = field(default_factory=set)
    lines: list[Line] = field(default_factory=list)

    def has(self, slot: int) -> bool:
        """Whether it says that it has the slot."""
        return any(slot in part for part in self.own)


def view_of(address: Address, text: str) -> tuple[str, PrimaryView]:
    """The view of the node that gave this text of CLUSTER NODES."""
    words = next((each for each in map(str.split, text.splitlines()) if "myself" in "".join(each[2:3])), [""])
    view = PrimaryView(address, "", own_slots(text), set(), lines_of(text))
    for part in words[8:]:
        for sign in (TO, FROM):
            slot, between, other = part.strip("[]").partition(sign)
            if between and part.startswith("[") and slot.isdecimal():
                view.moves.add(Move(int(slot), words[0], sign == TO, other))
    return words[0], view


async def findings_of(settings: Settings, primaries: Sequence[Address]) -> list[Finding]:
    """Check the slots that are being moved, by what all primaries say. Looks twice where there are any."""
    views, places = await _asked(primaries)
    if not _under_way(views):
        return []
    lonely, counts = _alone(views), await _counted(views, places)
    await asyncio.sleep(AGAIN_S)
    views, places = await _asked(primaries)
    counts_now = await _counted(views, places)
    under_way = _under_way(views)
    of: dict[int, list[int]] = {}
    for shard in range(settings.shards):
        of.setdefault(slot_of(ShardNames(settings.namespace, shard).meta), []).append(shard)
    still_lonely = sorted(move for move in _alone(views) if move in lonely)
    found = [_finding(move, views, places, of.get(move.slot, [])) for move in still_lonely]
    for move, count in sorted(counts_now.items()):
        if counts.get(move) == count:
            found.append(_standing(move, count, places, of.get(move.slot, [])))
    if under_way and not found:
        found.append(ok("slot moves", _in_order(len(under_way))))
    return found


def _under_way(views: Mapping[str, PrimaryView]) -> set[int]:
    return {move.slot for view in views.values() for move in view.moves}


async def _counted(views: Mapping[str, PrimaryView], places: Mapping[str, Address]) -> dict[Move, tuple[int, int]]:
    """How many keys each move that both ends know of has left at its source, and has at its target."""
    moves = [move for view in views.values() for move in view.moves if move.leaves and _is_known(move, views)]

    async def keys_in(slot: int, id_: str) -> int | None:
        ((count, _),) = await asked(places[id_], ("CLUSTER", "COUNTKEYSINSLOT", str(slot)))
        return count if isinstance(count, int) else None

    counted = await asyncio.gather(*[keys_in(move.slot, id_) for move in moves for id_ in (move.by, move.other)])
    pairs = zip(moves, counted[::2], counted[1::2], strict=True)
    return {move: (here, there) for move, here, there in pairs if here is not None and there is not None}


async def _asked(primaries: Sequence[Address]) -> tuple[dict[str, PrimaryView], Mapping[str, Address]]:
    """The views of the primaries, and of those that they name, by id; and the address of each."""
    views = dict(await asyncio.gather(*map(_said, primaries)))
    named: dict[str, Address] = {}
    for view in views.values():
        own = next((line for line in view.lines if "myself" in line.flags), None)
        by_name = own is not None and own.host == view.address.host
        for line in view.lines:
            if "master" in line.flags:
                host = (by_name and line.host) or line.ip or view.address.host
                named.setdefault(line.id, replace(view.address, host=host, port=line.port))
    others = [place for id_, place in named.items() if id_ not in views and place not in primaries]
    views |= dict(await asyncio.gather(*map(_said, others)))
    return views, named | {id_: view.address for id_, view in views.items()}


async def _said(whom: Address) -> tuple[str, PrimaryView]:
    ((text, refused),) = await asked(whom, ("CLUSTER", "NODES"))
    if text is None:
        return str(whom), PrimaryView(whom, refused)
    return view_of(whom, text.decode(errors="replace"))


def _in_order(count: int) -> str:
    slots = "1 slot is on its" if count == 1 else f"{count} slots are on their"
    return f"{slots} way, and both ends know of it"


def _alone(views: Mapping[str, PrimaryView]) -> list[Move]:
    """Moves that the other primary does not know of."""
    return [move for view in views.values() for move in view.moves if not _is_known(move, views)]


def _is_known(move: Move, views: Mapping[str, PrimaryView]) -> bool:
    other = views.get(move.other)
    return other is not None and Move(move.slot, move.other, not move.leaves, move.by) in other.moves


def _finding(
    move: Move, views: Mapping[str, PrimaryView], places: Mapping[str, Address], shards: Sequence[int]
) -> Finding:
    here, there = places[move.by], places.get(move.other, move.other)
    way = f"goes to {there} ({TO})" if move.leaves else f"comes from {there} ({FROM})"
    says = f"{here} says that slot {move.slot} {way}"
    whose = f"There lie {shards_named(shards)}." if shards else "No shard of this namespace lies there."
    has = [id_ for id_, view in views.items() if view.has(move.slot)]
    silent = next((f"{view.address}: {view.refused}" for view in views.values() if view.refused), "")
    if move.other not in views or (silent and not has):
        return unknown("slot moves", f"{says}; {silent or 'nobody knows that one'}", whose)
    if move.leaves and move.by in has:
        ends, out_of_reach = move.other in has, True
    else:
        ends = out_of_reach = not has
    owner = move.other if move.leaves else move.by
    return Finding(
        "slot moves",
        Severity.PROBLEM if shards and out_of_reach else Severity.ADVICE,
        f"{says}, and that one says nothing of it",
        f"{whose} {OUT_OF_REACH if out_of_reach else SERVED}",
        mend=(f"CLUSTER SETSLOT {move.slot} {f'NODE {owner}' if ends else 'STABLE'}",),
        at=str(here),
        otherwise=CALLED_OFF.format(here) if move.leaves and out_of_reach and not ends else "",
    )


def _standing(move: Move, count: tuple[int, int], places: Mapping[str, Address], shards: Sequence[int]) -> Finding:
    """The finding for a move that both ends know of, and that moved no key in a second."""
    here, there = places[move.by], places[move.other]
    whose = f"There lie {shards_named(shards)}. {HALF_THERE}" if shards else "No shard of this namespace lies there."
    return Finding(
        "slot moves",
        Severity.PROBLEM if shards else Severity.ADVICE,
        f"slot {move.slot} is on its way from {here} ({_keys(count[0])}) to {there} ({_keys(count[1])}), and "
        f"in {AGAIN_S:g} s none has moved",
        whose,
        otherwise=f"where nobody is moving it any more, go on with it: redis-cli --cluster fix {here}",
        at=str(here),
    )


def _keys(count: int) -> str:
    return "1 key" if count == 1 else f"{count} keys"


HALF_THERE: Final = (
    "A call that needs keys of both is refused (TRYAGAIN): of the tenants there little or nothing is stored, their "
    "reads go to the source, their invalidations raise."
)
OUT_OF_REACH: Final = (
    "Each of the two sends clients to the other for what it does not have: of the tenants there nothing is stored, "
    "their reads go to the source, their invalidations raise."
)
SERVED: Final = "Clients are served where the slot is, but no other move of it can be begun or ended in order."
CALLED_OFF: Final = (
    "That calls the move off; what had been moved is void, and loaded again. To go on with it: "
    "redis-cli --cluster fix {}"
)
