"""What a table was called, and inherited from, counts until the slot is behind it."""

from __future__ import annotations

from cachebus.consumers.cdc.slot.catalogue import Table
from cachebus.consumers.cdc.slot.identity import known_as
from cachebus.consumers.cdc.slot.lineage import Lineage, places_of
from cachebus.consumers.cdc.slot.slot import Slot


def slot(confirmed: int, behind_bytes: int) -> Slot:
    return Slot("", "", confirmed, 0, behind_bytes, "", None, "", 0.0)


def table(oid: int, name: str, *ancestors: int) -> Table:
    return Table(oid, "shop", name, "d", {}, frozenset(), identified=True, ancestors=ancestors)


PARENT, CHILD = table(1, "o"), table(2, "o_old", 1)


def test_a_dropped_child_is_forgotten_once_the_slot_is_behind_it() -> None:
    lineage = Lineage()
    first = lineage.seen([PARENT, CHILD], {}, slot(0, 10))
    assert first.kin == {("shop", "o_old"): [("shop", "o")]}
    for confirmed, behind in ((0, 20), (5, 25), (29, 10)):  # by the second of these looks the log had 30
        known = lineage.seen([PARENT], {}, slot(confirmed, behind))
        assert known.kin == first.kin, confirmed
        assert known.names[2] == [("shop", "o_old")]
    known = lineage.seen([PARENT], {}, slot(30, 10))
    assert not known.kin
    assert 2 not in known.names


def test_one_that_is_back_is_not_forgotten() -> None:
    lineage = Lineage()
    first = lineage.seen([PARENT, CHILD], {}, slot(0, 10))
    lineage.seen([PARENT], {}, slot(0, 10))
    for confirmed in (0, 10, 50):
        assert lineage.seen([PARENT, CHILD], {}, slot(confirmed, 0)) == first


def test_what_another_worker_knew_counts_as_seen() -> None:
    known = Lineage().seen([PARENT], {"shop.o_old": {"is": "2/7/8/9", "of": ["shop.o"]}}, slot(0, 10))
    assert known.kin == {("shop", "o_old"): [("shop", "o")]}
    assert known.names == {1: [("shop", "o")], 2: [("shop", "o_old")]}


def test_a_renamed_table_is_known_by_its_present_name_first() -> None:
    lineage = Lineage()
    lineage.seen([table(1, "z")], {}, None)
    assert lineage.seen([PARENT], {}, None).names == {1: [("shop", "o"), ("shop", "z")]}


def test_what_one_table_is_known_by_is_no_other_ones() -> None:
    """A schema "x.y" with "z" shared it with a schema "x" with "y.z"."""
    for place in [("public", "o"), ("x.y", "z"), ("x", "y.z"), ("x.y", "z.a"), ('a"b', '"'), ("a b", "Z")]:
        assert places_of(known_as(*place)) == [place]
    assert places_of("x.y.z") == [("x", "y.z"), ("x.y", "z")], "a rule's"
