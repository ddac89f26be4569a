"""A hit of L1 on the calling thread, while the event loop of another thread changes what is there.

What is read, in this order: the entry under its name, the time, until when the entry and its group may be served, and
the entry under its name once more. Why that is as right as a hit on the loop is argued in `docs/decisions.md`.
"""

from __future__ import annotations

from typing import Any

from cachebus.base.clock import Clock
from cachebus.base.ids import Id
from cachebus.l1 import Entry


def name_of_ids(
    data_type: Any,
    resource_id: Any,
    tenant_id: Id | None,
    agent_id: Id | None,
    conversation_id: Id | None,
    collection_id: Id | None,
) -> str:
    """The L1 name of ids that are exactly str or int; "" for all others, which are looked at elsewhere."""
    # hit: name
    name = ""
    if (
        ((type(tenant_id) is str and tenant_id != "") or type(tenant_id) is int)
        and type(data_type) is str
        and (type(resource_id) is str or type(resource_id) is int)
    ):
        try:
            if agent_id is None and conversation_id is None and collection_id is None:
                name = f"{tenant_id}\x1f{data_type}\x1f{resource_id}\x1e\x1e\x1e"
            elif (
                (agent_id is None or type(agent_id) is str or type(agent_id) is int)
                and (conversation_id is None or type(conversation_id) is str or type(conversation_id) is int)
                and (collection_id is None or type(collection_id) is str or type(collection_id) is int)
            ):
                a = "\x1e" if agent_id is None else f"\x1f{agent_id}"
                c = "\x1e" if conversation_id is None else f"\x1f{conversation_id}"
                o = "\x1e" if collection_id is None else f"\x1f{collection_id}"
                name = f"{tenant_id}\x1f{data_type}\x1f{resource_id}{a}{c}{o}"
        except ValueError:
            name = ""  # an int of more digits than Python writes: no id
    # hit: end
    return name


def served(entries: dict[str, Entry], name: str, clock: Clock) -> Entry | None:
    """The entry that may be served now, counted; None where that takes more than this to tell."""
    entry = entries.get(name)
    if entry is None:
        return None
    now, group = clock(), entry.group
    # The entry is looked up again behind the lease: an event that was applied before the lease was renewed, and after
    # the first look, has taken it away. Else a thread that was held up in between would take the new lease for the old
    # entry's.
    if now < entry.fast_until_s and now < group.valid_until_s and entries.get(name) is entry:
        group.hits += 1.0
        freq = entry.freq
        if freq < 3:
            entry.freq = freq + 1  # not +=, by which two threads would make it 4
        return entry
    return None
