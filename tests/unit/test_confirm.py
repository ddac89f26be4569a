"""When a wait for the nodes may end early, and what it says of whom."""

from __future__ import annotations

import asyncio

import pytest

from cachebus import InvalidationFailed
from cachebus.confirm import Confirmed, Watch, check_wait, judged
from cachebus.ports import Place, Register
from cachebus.testing import FakeClock, Fleet

D_S = 2.0
PLACE = Place(b"e", 5)


def register(name: bytes = b"first", epoch: bytes = b"e", **lines: tuple[int, int]) -> Register:
    return Register(epoch, name, lines)


def known(name: bytes = b"first", since_s: float = 0.0) -> Watch:
    """A watch that has known this register since then."""
    watch = Watch()
    watch.saw(name, since_s)
    return watch


def test_it_ends_when_every_line_has_reached_the_change() -> None:
    found = judged(known(), register(a=(5, 1), b=(7, 1)), PLACE, D_S, 10.0)
    assert found == (Confirmed(("a", "b"), ()), True)


def test_it_goes_on_while_one_has_not() -> None:
    found = judged(known(), register(a=(5, 1), b=(4, 1)), PLACE, D_S, 10.0)
    assert found == (Confirmed(("a",), ("b",)), False)


def test_a_line_that_stands_still_for_d_is_of_no_live_node() -> None:
    watch = known()
    assert not judged(watch, register(a=(5, 1), b=(4, 1)), PLACE, D_S, 10.0)[1]
    assert not judged(watch, register(a=(6, 2), b=(4, 1)), PLACE, D_S, 11.99)[1]
    assert judged(watch, register(a=(6, 2), b=(4, 1)), PLACE, D_S, 12.0) == (Confirmed(("a",), ("b",)), True)
    assert not judged(watch, register(a=(6, 2), b=(4, 2)), PLACE, D_S, 12.1)[1], "it has asked something: it lives"


@pytest.mark.parametrize("watch", [Watch(), known(since_s=8.01), known(b"another")])
def test_a_register_must_have_been_known_for_d(watch: Watch) -> None:
    """Else a node that lives may be missing from it."""
    assert not judged(watch, register(a=(5, 1)), PLACE, D_S, 10.0)[1]


def test_a_register_that_begins_anew_is_not_known() -> None:
    watch = known()
    assert judged(watch, register(a=(5, 1)), PLACE, D_S, 10.0)[1]
    assert not judged(watch, register(b"second", a=(5, 1)), PLACE, D_S, 10.1)[1]
    assert not judged(watch, register(b"first", a=(5, 1)), PLACE, D_S, 10.2)[1]
    assert judged(watch, register(b"first", a=(5, 1)), PLACE, D_S, 12.2)[1]


@pytest.mark.parametrize("name", [b"", b"first"])
def test_nobody_at_all_proves_nothing(name: bytes) -> None:
    assert not judged(known(name), register(name), PLACE, D_S, 10.0)[1]


def test_in_another_epoch_nothing_is_proven_but_who_has_entered_it_has_applied_the_change() -> None:
    found = judged(known(), register(epoch=b"f", a=(3, 1), b=(0, 1)), PLACE, D_S, 10.0)
    assert found == (Confirmed(("a",), ("b",)), False)


def test_what_may_be_waited_for() -> None:
    check_wait(None)
    check_wait("nodes")
    with pytest.raises(ValueError, match='None or "nodes"'):
        check_wait("all")


# -- caches in memory ------------------------------------------------------------------------------------------


async def test_all_verbs_wait_and_say_for_whom() -> None:
    clock = FakeClock()
    async with Fleet(3, clock=clock, probe_interval_s=0.02, staleness_bound_s=D_S) as fleet:
        a = fleet.caches[0]
        ids = {cache.stats().node for cache in fleet.caches}
        clock.advance(D_S)
        await fleet.probe()
        for receipt in (
            await a.invalidate("config", "x", "acme", wait="nodes"),
            await a.delete("config", "x", "acme", wait="nodes"),
            await a.invalidate("config", "x", "acme", contexts="all", wait="nodes"),
            await a.invalidate_scope("acme", wait="nodes"),
            await a.invalidate_tags(["t"], "acme", wait="nodes"),
            await a.set("config", "x", 1, "acme", wait="nodes"),
        ):
            assert set(receipt.confirmed) == ids
            assert receipt.lapsed == ()
        assert [await cache.get("config", "x", "acme") for cache in fleet.caches] == [1, 1, 1]
        assert (await a.invalidate("config", "x", "acme")).confirmed == (), "nobody was asked"
        for write in (a.invalidate("config", "x", "acme", wait="all"), a.set("config", "x", 1, "acme", wait="yes")):
            with pytest.raises(ValueError, match="wait"):
                await write


async def test_within_d_of_the_start_it_waits_for_those_whom_nobody_has_seen() -> None:
    clock = FakeClock()
    async with Fleet(2, clock=clock, probe_interval_s=0.02, staleness_bound_s=D_S) as fleet:
        waiting = asyncio.create_task(fleet.caches[0].invalidate("config", "x", "acme", wait="nodes"))
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert not waiting.done()
        clock.advance(D_S)
        assert len((await waiting).confirmed) == 2


async def test_l2_may_go_away_meanwhile() -> None:
    clock = FakeClock()
    async with Fleet(2, clock=clock, probe_interval_s=0.02, staleness_bound_s=D_S) as fleet:
        a = fleet.caches[0]
        waiting = asyncio.create_task(a.invalidate("config", "x", "acme", wait="nodes"))
        await fleet.settle()
        fleet.away = True
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert not waiting.done()
        clock.advance(D_S)
        await waiting
        with pytest.raises(InvalidationFailed):
            await a.invalidate("config", "x", "acme", wait="nodes")


async def test_who_is_cancelled_while_waiting_has_invalidated_and_leaves_nothing_behind() -> None:
    clock = FakeClock()
    async with Fleet(2, clock=clock, probe_interval_s=0.02, staleness_bound_s=D_S) as fleet:
        a, b = fleet.caches
        await a.set("config", "x", 1, "acme")
        waiting = asyncio.create_task(a.invalidate("config", "x", "acme", wait="nodes"))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [await cache.get("config", "x", "acme") for cache in (a, b)] == [None, None]


async def test_a_disabled_cache_waits_for_nobody() -> None:
    async with Fleet(1, enabled=False) as fleet:
        assert (await fleet.caches[0].invalidate("config", "x", "acme", wait="nodes")).confirmed == ()
