"""When a wait for the nodes may end early, and what it says of whom."""

from __future__ import annotations

import asyncio

import pytest

from cachebus import Cache, InvalidationFailed, L2Unavailable
from cachebus.core.membership import (
    Confirmed,
    MembershipView,
    complete_after_s,
    first_bound_s,
    judged,
    keeps_without_l2,
    largest_bound_s,
)
from cachebus.core.ports import SILENT_S, About, Caller, Change, Largest, NodeRow, NodesReply
from cachebus.testing import FakeClock, Fleet
from cachebus.writing.confirm import CROWD_MIN, Confirmer, _SharedQuestions, check_wait
from tests.support.logs import told as lines_told

D_S = 2.0
CHANGE = Change(b"e", 5, True)


def reply(name: bytes = b"first", epoch: bytes = b"e", **applied: int | NodeRow) -> NodesReply:
    rows = {n: row if isinstance(row, NodeRow) else NodeRow(row, epoch, 1) for n, row in applied.items()}
    return NodesReply(epoch, name, 0, rows)


def known(name: bytes = b"first", since_s: float = 0.0) -> MembershipView:
    """A view that has known this set of rows since then."""
    view = MembershipView()
    view.saw(name, since_s)
    return view


def test_it_ends_when_every_row_has_reached_the_change() -> None:
    assert judged(known(), reply(a=5, b=7), CHANGE, D_S, 10.0) == (Confirmed(("a", "b"), ()), True)


def test_it_goes_on_while_one_has_not_however_long_its_row_stands_still() -> None:
    """It may be cut off from L2, and load for itself what the change has replaced."""
    view = known()
    for now_s in (10.0, 12.0, 60.0):
        assert judged(view, reply(a=5, b=4), CHANGE, D_S, now_s) == (Confirmed(("a",), ("b",)), False)


@pytest.mark.parametrize("view", [MembershipView(), known(since_s=8.01), known(b"another")])
def test_a_set_of_rows_must_have_been_known_for_d(view: MembershipView) -> None:
    """Else a node that lives may be missing from it."""
    assert not judged(view, reply(a=5), CHANGE, D_S, 10.0)[1]


def test_where_nodes_keep_what_they_load_alone_it_must_have_been_known_for_a_minute_more() -> None:
    """One whose row was lost may be cut off, and load for itself as long as it counts."""
    assert complete_after_s(D_S, keep_without_l2=True) == D_S + SILENT_S
    assert complete_after_s(D_S, keep_without_l2=False) == D_S


def test_a_set_that_begins_anew_is_not_known() -> None:
    view = known()
    assert judged(view, reply(a=5), CHANGE, D_S, 10.0)[1]
    assert not judged(view, reply(b"second", a=5), CHANGE, D_S, 10.1)[1]
    assert not judged(view, reply(b"first", a=5), CHANGE, D_S, 10.2)[1]
    assert judged(view, reply(b"first", a=5), CHANGE, D_S, 12.2)[1]


@pytest.mark.parametrize("name", [b"", b"first"])
def test_nobody_at_all_proves_nothing(name: bytes) -> None:
    assert not judged(known(name), reply(name), CHANGE, D_S, 10.0)[1]


def test_in_another_epoch_nothing_is_proven_but_who_has_entered_it_has_applied_the_change() -> None:
    found = judged(known(), reply(epoch=b"f", a=3, b=NodeRow(9, b"e", 1)), CHANGE, D_S, 10.0)
    assert found == (Confirmed(("a",), ("b",)), False)


def test_who_stands_in_another_epoch_than_the_present_one_has_applied_nothing() -> None:
    assert judged(known(), reply(a=NodeRow(9, b"d", 1)), CHANGE, D_S, 10.0) == (Confirmed((), ("a",)), False)


def test_the_bound_is_the_largest_that_anybody_has_heard_of() -> None:
    assert first_bound_s(D_S, CHANGE, Caller("", 0, b"")) == D_S
    assert first_bound_s(D_S, CHANGE._replace(bound_ms=7000), Caller("", 0, b"")) == 7.0
    assert first_bound_s(D_S, CHANGE, Caller("n", 0, b"", About(2000), Largest(9000))) == 9.0
    row = NodeRow(5, b"e", 1, About(8000))
    assert largest_bound_s(reply(a=5), D_S) == D_S
    assert largest_bound_s(reply(a=5, b=row), D_S) == 8.0
    assert largest_bound_s(reply(a=5)._replace(bound_ms=9000), D_S) == 9.0


def test_one_that_keeps_what_it_loads_alone_counts_wherever_that_was_heard() -> None:
    nobody = reply(a=NodeRow(5, b"e", 1, About(2000, keeps_without_l2=False)))
    assert not keeps_without_l2(nobody, own=False)
    assert keeps_without_l2(nobody, own=True)
    assert keeps_without_l2(nobody._replace(keeps_without_l2=True), own=False)
    assert keeps_without_l2(reply(a=NodeRow(5, b"e", 1, About(2000))), own=False)


def test_what_may_be_waited_for() -> None:
    check_wait(None)
    check_wait("nodes")
    with pytest.raises(ValueError, match='None or "nodes"'):
        check_wait("all")


# -- caches in memory ------------------------------------------------------------------------------------------


async def test_all_verbs_wait_and_say_for_whom() -> None:
    clock = FakeClock()
    async with Fleet(3, clock=clock, probe_interval_s=0.02, staleness_bound_s=D_S, keep_without_l2=False) as fleet:
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
    async with Fleet(2, clock=clock, probe_interval_s=0.02, staleness_bound_s=D_S, keep_without_l2=False) as fleet:
        waiting = asyncio.create_task(fleet.caches[0].invalidate("config", "x", "acme", wait="nodes"))
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert not waiting.done()
        clock.advance(D_S)
        assert len((await waiting).confirmed) == 2


async def test_l2_may_go_away_meanwhile() -> None:
    clock = FakeClock()
    async with Fleet(2, clock=clock, probe_interval_s=0.02, staleness_bound_s=D_S, keep_without_l2=False) as fleet:
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
    async with Fleet(2, clock=clock, probe_interval_s=0.02, staleness_bound_s=D_S, keep_without_l2=False) as fleet:
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


async def test_a_node_with_a_larger_bound_is_waited_for_by_it() -> None:
    clock = FakeClock()
    async with Fleet(1, clock=clock, probe_interval_s=0.02, staleness_bound_s=D_S, keep_without_l2=False) as fleet:
        slower = fleet.settings.model_copy(update={"staleness_bound_s": 5 * D_S})
        async with Cache(slower, world=fleet.world, clock=clock):
            a = fleet.caches[0]
            await fleet.probe()
            assert a.stats().shards[0].bound_s == 5 * D_S
            waiting = asyncio.create_task(a.invalidate("config", "x", "acme", wait="nodes"))
            await fleet.settle()
            fleet.away = True
            for _ in range(4):
                clock.advance(D_S)
                for _ in range(20):
                    await asyncio.sleep(0.002)
                assert not waiting.done()
            clock.advance(D_S)
            await waiting
            fleet.away = False


async def test_a_node_that_alone_keeps_nothing_is_told_of_one_that_does() -> None:
    """Also once that has left; and who keeps it is told nothing, since waits go by it anyway."""
    clock = FakeClock()
    async with Fleet(1, clock=clock, probe_interval_s=0.02, staleness_bound_s=D_S, keep_without_l2=False) as fleet:
        with lines_told("WARNING") as said:
            await fleet.probe()
            assert said == []
            async with Cache(
                fleet.settings.model_copy(update={"keep_without_l2": True}), world=fleet.world, clock=clock
            ):
                pass
            await fleet.probe()
            (warning,) = said
        assert "keep_without_l2 true, this one has" in warning
        clock.advance(D_S)
        waiting = asyncio.create_task(fleet.caches[0].invalidate("config", "x", "acme", wait="nodes"))
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert not waiting.done()
        clock.advance(D_S)
        await waiting


async def test_however_many_wait_they_ask_together() -> None:
    clock = FakeClock()
    async with Fleet(2, clock=clock, probe_interval_s=0.02, staleness_bound_s=D_S, keep_without_l2=False) as fleet:
        a = fleet.caches[0]
        store = fleet.caches[0]._parts.store  # type: ignore[union-attr]
        looks, nodes = 0, store.nodes

        async def counted(shard: int, caller: Caller) -> NodesReply:
            nonlocal looks
            looks += 1
            await asyncio.sleep(0)
            return await nodes(shard, caller)

        store.nodes = counted  # type: ignore[method-assign]
        waiting = [asyncio.create_task(a.invalidate("config", n, "acme", wait="nodes")) for n in range(300)]
        for _ in range(40):
            await asyncio.sleep(0.002)
        assert not any(task.done() for task in waiting), "they wait for those whom nobody has seen"
        assert 2 <= looks <= 60
        for task in waiting[:100]:
            task.cancel()
        clock.advance(D_S)
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found[:100])
        assert all(len(one.confirmed) == 2 for one in found[100:])  # type: ignore[union-attr]


async def test_the_largest_bound_heard_of_is_not_forgotten_by_a_wait_that_began_before() -> None:
    """1. A wait for shard 0 begins. 2. One for shard 1 hears of a larger bound. 3. Shard 0 answers, and knows of none.
    4. L2 is away: the next wait must last as long as that bound."""
    clock, gate, larger_s = FakeClock(), asyncio.Event(), 5.0

    class Told:
        away = False

        async def nodes(self, shard: int, caller: Caller) -> NodesReply:
            if self.away:
                clock.advance(1.0)
                raise L2Unavailable("away")
            if shard == 0:
                await gate.wait()
            return reply(a=5)._replace(bound_ms=int(larger_s * 1000) if shard else 0)

    store = Told()
    confirmer = Confirmer(store, clock, D_S, [known(), known()], keep_without_l2=False)  # type: ignore[arg-type]

    async def wait_for(shard: int) -> Confirmed:
        return await confirmer.wait(shard, CHANGE, lambda: Caller("a", 5, b"e"))

    earlier = asyncio.create_task(wait_for(0))
    await asyncio.sleep(0)
    await wait_for(1)
    gate.set()
    await earlier
    store.away, began_s = True, clock()
    await wait_for(0)
    assert clock() - began_s >= larger_s


async def test_only_those_who_wait_now_slow_the_questions() -> None:
    questions = _SharedQuestions()

    async def ask() -> NodesReply:
        return reply(a=5)

    for _ in range(CROWD_MIN + 2):
        await questions.ask(ask)
    assert questions._waiting == 0
