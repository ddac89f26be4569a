"""Every operation, and something that befalls it at each call to store, bus or source, before it or before its answer.

In memory and virtual time, so that all of it is tried: writes by another node (heard, not heard, or with this node cut
off), losses of the server's data, errors whose outcome is unknown, and stalls. Afterwards nothing that was replaced may
be seen: at once with the write's receipt, D after it on any node, and at rest L1 and L2 agree.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from cachebus import Cache, CacheBusError, ConfigError, InvalidationFailed, L2Unavailable, Receipt, Settings
from cachebus.assembly.world import World
from cachebus.core.ports import Caller
from cachebus.l2.memory import MemoryShard
from tests.support.every_step import D_S, SETTINGS, numbered
from tests.support.operations import LEASE_MS, OLD, OPERATIONS, REPLACING, WHERE, WRITES, Operation, Stage
from tests.support.shard_state import copied, lose_meta, lose_nodes, put_back
from tests.support.simulation import VirtualLoop, live
from tests.support.steps import WHENS, Steps, When

Befall = Callable[["Play"], Awaitable[None]]


class Play:
    """One operation, at one of whose steps one thing happens; and what must hold from then on."""

    def __init__(self, loop: VirtualLoop, shard: MemoryShard, stage: Stage, steps: Steps) -> None:
        self.loop, self.shard, self.stage, self.steps = loop, shard, stage, steps
        self.before: dict[str, Any] = {}
        self.returned_s = float("inf")
        self.receipt: Receipt | None = None
        self.at_once = True
        """Whether a server that lost its history notices that as soon as it is asked."""
        self.may_linger = False
        """Whether leases may be left to their end: nobody could give them back, or they are back from the dead."""
        self.outcome: BaseException | None = None

    def remember(self) -> None:
        """A copy of all that the server has, as a snapshot would."""
        self.before = copied(self.shard)

    async def replace(self, how: str = "key") -> None:
        """B writes, and is told so."""
        self.stage.version += 1
        if how == "set":
            self.stage.version -= 1
            self.receipt = await self.stage.set(self.stage.b)
        elif how == "type":
            self.receipt = await self.stage.b.invalidate_scope("acme", self.stage.data_type)
        elif how in ("key", "contexts"):
            contexts = "all" if how == "contexts" else "exact"
            self.receipt = await self.stage.b.invalidate(self.stage.data_type, "x", **WHERE, contexts=contexts)
        else:
            self.receipt = await REPLACING[how](self.stage.b)
        self.returned_s = self.loop.time()

    async def run(self, operation: Operation) -> None:
        """The operation to its end, which must be a value or an error of ours, in time."""
        started_s = self.loop.time()
        try:
            await self.steps.watch(operation.run(self.stage))
        except (CacheBusError, RuntimeError) as error:
            self.outcome = error
        assert self.loop.time() - started_s < LEASE_MS / 1000 + 2, "it hung"
        for task in self.stage.others:
            with suppress(CacheBusError):
                await task

    async def look(self) -> None:
        """From now until past D: nothing replaced is seen later than D after it, nor ever with the receipt, nor in L2
        at all."""
        for at_s in (0.0, 0.001, 0.1, D_S + 0.001, 1.2 * D_S):
            await asyncio.sleep(self.returned_s + at_s - self.loop.time())
            for cache in (self.stage.a, self.stage.b):
                found = await self._all_reads(cache)
                if (cache is self.stage.b and self.at_once) or self.loop.time() > self.returned_s + D_S:
                    assert OLD not in found, "staler than D" if cache is self.stage.a else "own write not seen"
                if self.at_once or at_s > D_S:
                    with suppress(L2Unavailable, ConfigError):
                        assert await self.stage.read(cache, after=self.receipt) != OLD, "not what the receipt says"
                    assert self._in_l2() != OLD, "L2 has what was replaced"

    async def _all_reads(self, cache: Cache) -> list[Any]:
        found: list[Any] = []
        for how in ({}, {"use_memory": False}, {"search_hierarchy": True}):
            with suppress(L2Unavailable, ConfigError):
                found.append(await self.stage.read(cache, **how))
        with suppress(L2Unavailable, ConfigError):
            found += (await cache.get_many(self.stage.data_type, ["x"], **WHERE)).values()
        return found

    def _in_l2(self) -> Any:
        """The version that L2 itself would give, if it were asked; asking it would make it notice what befell it."""
        shard, key = self.shard, self.stage.key()
        if shard.is_lost(Caller("", 0, b""), key.family.bucket):
            return None
        found = shard.stored(key)
        return None if found is None else found[1].payload[-1]

    async def rest(self) -> None:
        """All faults over: both nodes agree with L2, load the newest, and hear each other's writes."""
        self.steps.away = False
        self.stage.hear()
        stage = self.stage
        if stage.a._parts is None:
            await stage.a.__aenter__()  # it could not be opened while it was cut off
        for cache in (stage.a, stage.b):
            await cache.probe()
        for cache in (stage.a, stage.b):
            assert cache.ready(), "it is not back"
            assert await stage.read(cache) in (None, await stage.read(cache, use_memory=False)), "L1 and L2 differ"
            assert await stage.read(cache) in (None, self._in_l2()), "L1 has what L2 has not"
            assert not cache.stats().flights
        if self.may_linger:
            latest_s = self.shard.clock() - self.loop.time() + self.returned_s + LEASE_MS / 1000
            assert all(lease.until_s <= latest_s for lease in self._leases().values())
            self.loop.stall(LEASE_MS / 1000)
            for cache in (stage.a, stage.b):
                await cache.probe()
        else:
            assert self._leases() == {}, "a lease is left"
        for writer, other in ((stage.a, stage.b), (stage.b, stage.a)):
            await writer.invalidate(stage.data_type, "x", **WHERE)
            await stage.settle()
            assert await stage.get_or_load(other) == stage.version
            receipt = await stage.set(writer)
            assert await stage.read(writer) == stage.version
            assert await stage.read(other, after=receipt) == stage.version

    def _leases(self) -> dict[str, Any]:
        """Those that are held: one that rests, since the source has failed its holder, ends by itself."""
        leases = self.shard.fill_leases.items()
        return {key: lease for key, lease in leases if lease.epoch == self.shard.epoch and not lease.cools_down}


def played(name: str, befall: Befall, at: int, when: When, after: Befall | None = None) -> bool:
    """Play it once; whether there was such a step. What breaks is told with where."""
    happened = True

    async def main(loop: VirtualLoop) -> None:
        nonlocal happened
        world = World(Settings(max_invalidated_scopes=1000, log_max_len=1000), loop.time)
        a, b = (Cache(SETTINGS, world=world, clock=loop.time) for _ in range(2))
        async with a, b:
            stage = Stage(a, b, loop.time)
            play = Play(loop, world.shards[0], stage, Steps(at, when, lambda: befall(play)))
            await OPERATIONS[name].prepare(stage)
            play.remember()
            with numbered(stage, play.steps):
                await play.run(OPERATIONS[name])
                happened = play.steps.happened
                if happened:
                    try:
                        if after is not None:
                            await after(play)
                        await play.look()
                        await play.rest()
                    except BaseException as error:
                        error.add_note(f"{name}: {when} step {at} of {play.steps.taken}")
                        raise

    live(main)
    return happened


def at_every_step(name: str, befall: Befall, after: Befall | None = None) -> int:
    """Play it with each of its steps befallen, on either side; how many plays there were."""
    plays = 0
    for when in WHENS:
        at = 0
        while played(name, befall, at, when, after):
            at += 1
        assert at, "it has no steps"
        plays += at
    return plays


# -- another node writes ---------------------------------------------------------------------------------


def hows(name: str, *some: str) -> list[str]:
    """The ways of replacing what the operation is about; all of them, or some."""
    return [how for how in some or (*REPLACING, "set") if how != "tag" or OPERATIONS[name].tagged]


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_write_elsewhere_at_any_step_leaves_nothing_that_it_replaced(name: str) -> None:
    for how in hows(name):
        at_every_step(name, lambda play, how=how: play.replace(how))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_write_elsewhere_at_any_step_that_a_deaf_node_does_not_hear(name: str) -> None:
    async def befall(play: Play, how: str) -> None:
        play.stage.deafen()
        await play.replace(how)

    for how in hows(name, "key", "type", "set"):
        at_every_step(name, lambda play, how=how: befall(play, how))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_write_elsewhere_at_any_step_of_a_node_that_is_cut_off_just_then(name: str) -> None:
    async def befall(play: Play, how: str) -> None:
        play.stage.deafen()
        play.steps.away = play.may_linger = True
        await play.replace(how)

    for how in hows(name, "key", "type"):
        at_every_step(name, lambda play, how=how: befall(play, how))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_event_loop_that_stalls_at_any_step_for_longer_than_d_serves_nothing_old(name: str) -> None:
    """What happened meanwhile lies unread in its socket when it goes on."""

    async def befall(play: Play) -> None:
        play.stage.deafen()
        await play.replace()
        play.loop.stall(1.5 * D_S)
        play.stage.hear()

    at_every_step(name, befall)


# -- the server loses what it had -------------------------------------------------------------------------


def _older(play: Play) -> None:
    put_back(play.shard, play.before)
    play.may_linger = True


def _same_server_older(play: Play) -> None:
    _older(play)
    play.at_once = False  # nobody notices but a node that has seen more, when it next asks: within D


def _restarted(play: Play) -> None:
    play.shard.server += "'"
    play.stage.lose_connections()


def _restarted_older(play: Play) -> None:
    _older(play)
    _restarted(play)


LOSSES: dict[str, Callable[[Play], None]] = {
    "restart with all data": _restarted,
    "restart with an older copy": _restarted_older,
    "FLUSHALL": lambda play: play.shard.wipe(),
    "meta evicted": lambda play: lose_meta(play.shard),
    "marks evicted": lambda play: play.shard.invalidated.lose(),
    "counts of marks evicted": lambda play: play.shard.invalidated.lose_counts(),
    "log evicted": lambda play: play.shard.messages.clear(),
    "leases evicted": lambda play: play.shard.fill_leases.clear(),
    "records evicted": lambda play: play.shard.records.clear(),
    "nodes evicted": lambda play: lose_nodes(play.shard),
}


SOME = (
    "get",
    "get past memory",
    "get_or_load",
    "a refresh ahead",
    "set",
    "invalidate by key",
    "invalidate by type",
    "a probe",
    "catching up",
    "a flush",
    "close and open",
)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_at_any_step_brings_back_nothing_that_was_replaced_before_it(loss: str) -> None:
    async def befall(play: Play, how: str) -> None:
        play.stage.deafen()
        await play.replace(how)
        LOSSES[loss](play)

    for name in SOME:
        at_every_step(name, lambda play: befall(play, "type" if "marks" in loss or "log" in loss else "key"))


@pytest.mark.parametrize("name", ["get", "get past memory", "get_or_load", "a refresh ahead", "a probe", "catching up"])
def test_an_older_copy_under_the_same_server_at_any_step_is_noticed_by_who_has_seen_more_within_d(name: str) -> None:
    """No restart does that, as each makes another incarnation; a DEBUG command can."""

    async def befall(play: Play) -> None:
        play.stage.deafen()
        await play.replace()
        _same_server_older(play)

    at_every_step(name, befall)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_node_that_missed_a_write_before_a_loss_is_not_led_past_it_by_the_next_event(loss: str) -> None:
    """An event of another epoch says nothing of what was replaced before: only a probe moves a node there."""

    async def befall(play: Play) -> None:
        play.stage.deafen()
        await play.replace("type" if "marks" in loss or "log" in loss else "key")
        await play.stage.settle()  # what was sent while it was deaf is lost
        LOSSES[loss](play)
        play.stage.hear()
        await play.stage.b.invalidate_scope("acme", "other")
        await play.stage.settle()

    for name in ("get past memory", "get_or_load after a write", "a refresh ahead", "a probe", "catching up"):
        at_every_step(name, befall)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_write_right_after_a_loss_at_any_step_holds(loss: str) -> None:
    """The first invalidation after it is the one that begins a new epoch."""

    async def befall(play: Play) -> None:
        LOSSES[loss](play)
        await play.replace("type")

    for name in SOME:
        at_every_step(name, befall)


# -- a call fails -----------------------------------------------------------------------------------------


async def _fails(play: Play) -> None:
    raise L2Unavailable("planted")


async def _again(play: Play) -> None:
    """What a caller does who was told that a write failed: until then nothing is sure, but own memory believes L2."""
    stage = play.stage
    if isinstance(play.outcome, InvalidationFailed | L2Unavailable) and stage.a._parts is not None:
        found = await stage.read(stage.a)
        assert found is None or found == await stage.read(stage.a, use_memory=False), "it believes what is not sure"
    await play.replace()


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_call_that_fails_or_whose_outcome_is_unknown_at_any_step_is_told_and_leaves_nothing_wrong(name: str) -> None:
    at_every_step(name, _fails, _again)


@pytest.mark.parametrize("name", [name for name in WRITES if name not in ("set", "set_many", "add")])
def test_an_invalidation_of_unknown_outcome_at_any_step_raises_and_none_that_returned_is_undone(name: str) -> None:
    async def told(play: Play) -> None:
        assert isinstance(play.outcome, InvalidationFailed)
        await _again(play)

    at_every_step(name, _fails, told)
