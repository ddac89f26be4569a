"""A slot that is on its way in a Cluster: only one of the two primaries knows of it, or nothing moves."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator

import pytest

from cachebus import Cache, CacheBusError
from cachebus.l2.names import ShardNames
from cachebus.resp import parse_address, slot_of
from cachebus.settings import Settings
from cachebus.tools.doctor.finding import Finding, Severity
from cachebus.tools.doctor.moves import view_of
from cachebus.tools.doctor.primaries import deployment_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask
from tests.support.caches import quick, until
from tests.support.primaries import Town
from tests.support.servers import any_binary


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    """Three primaries."""
    async with Town(any_binary(), replicas=0) as town:
        yield town


async def found(town: Town) -> list[Finding]:
    return [
        one for one in (await deployment_of(Settings(url=town.url, shards=1))).findings if one.check == "slot moves"
    ]


async def mended(town: Town, finding: Finding) -> None:
    """As the finding says."""
    (server,) = [one for one in town.servers if str(parse_address(one.url)) == finding.at]
    for command in finding.mend:
        await ask(server, *shlex.split(command))

    async def nothing_left() -> bool:
        return not await found(town)

    await until(nothing_left)


async def place(town: Town) -> tuple[int, EmbeddedServer, EmbeddedServer]:
    """The slot of the namespace's only shard, where it is, and another primary."""
    meta = ShardNames("cachebus", 0).meta
    source = await town.primary_of(meta)
    return slot_of(meta), source, next(server for server in town.servers if server is not source)


async def serves(town: Town) -> bool:
    """Whether a cache can do something there."""
    try:
        async with Cache(quick(town.url, shards=1, connect_timeout_s=1.0)) as cache:
            await cache.set("config", "new", 1, tenant_id="acme")
            return bool(await cache.get("config", "new", tenant_id="acme", use_memory=False) == 1)
    except CacheBusError:
        return False


async def begin_move(town: Town, slot: int, source: EmbeddedServer, target: EmbeddedServer) -> None:
    """At both ends, in the order that a move takes."""
    await ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", await town.id_of(source))
    await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", await town.id_of(target))


async def keys_of(town: Town, slot: int, source: EmbeddedServer) -> list[bytes]:
    """What a cache has left in the slot of its only shard."""
    await until(lambda: serves(town))
    keys: list[bytes] = await ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100)
    return keys


async def test_nothing_is_said_of_a_cluster_at_rest_and_a_move_in_order_is_no_problem(town: Town) -> None:
    slot, source, target = await place(town)
    first, *_ = await keys_of(town, slot, source)
    assert not await found(town)
    await begin_move(town, slot, source, target)
    looking = asyncio.create_task(found(town))
    await asyncio.sleep(0.4)
    await town.migrate(source, target, [first])
    (one,) = await looking
    assert one.level is Severity.OK
    assert "1 slot is" in one.says


async def test_one_that_both_know_of_and_that_stands_still(town: Town) -> None:
    slot, source, target = await place(town)
    first, *others = await keys_of(town, slot, source)
    await begin_move(town, slot, source, target)
    await town.migrate(source, target, [first])
    (one,) = await found(town)
    assert not await serves(town), "which is why it is a problem"
    assert one.level is Severity.PROBLEM
    assert f"({len(others)} key" in one.says
    assert "(1 key)" in one.says
    assert "--cluster fix" in one.otherwise
    await town.migrate(source, target, others)
    for server in (target, source):
        await ask(server, "CLUSTER", "SETSLOT", slot, "NODE", await town.id_of(target))

    async def nothing_left() -> bool:
        return not await found(town)

    await until(nothing_left)
    await until(lambda: serves(town))


async def test_one_that_only_leaves(town: Town) -> None:
    slot, source, target = await place(town)
    await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", await town.id_of(target))
    assert not await serves(town), "which is why it is a problem"
    (one,) = await found(town)
    assert one.level is Severity.PROBLEM
    assert f"{parse_address(source.url)} says that slot {slot} goes to {parse_address(target.url)} (->-)" in one.says
    assert one.mend == (f"CLUSTER SETSLOT {slot} STABLE",)
    await mended(town, one)
    await until(lambda: serves(town))


async def test_one_that_only_comes(town: Town) -> None:
    slot, source, target = await place(town)
    await ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", await town.id_of(source))
    await until(lambda: serves(town))
    (one,) = await found(town)
    assert one.level is Severity.ADVICE
    assert f"{parse_address(target.url)} says that slot {slot} comes from {parse_address(source.url)} (-<-)" in one.says
    assert one.mend == (f"CLUSTER SETSLOT {slot} STABLE",)
    await mended(town, one)
    await until(lambda: serves(town))


async def test_one_that_was_given_away_and_not_taken(town: Town) -> None:
    slot, source, target = await place(town)
    target_id = await town.id_of(target)
    await ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", await town.id_of(source))
    await ask(source, "CLUSTER", "SETSLOT", slot, "NODE", target_id)
    (one,) = await found(town)
    assert one.level is Severity.PROBLEM
    assert one.mend == (f"CLUSTER SETSLOT {slot} NODE {target_id}",)
    assert one.at == str(parse_address(target.url))
    await mended(town, one)
    await until(lambda: serves(town))


async def test_one_of_nobody_here_is_an_advice_and_a_node_without_slots_is_asked_too(town: Town) -> None:
    ours, source, target = await place(town)
    (other,) = [server for server in town.servers if server not in (source, target)]
    slots = await ask(source, "CLUSTER", "SLOTS")
    (lies,) = [(first, last) for first, last, *_ in slots if first <= ours <= last]
    slot = lies[0] if ours != lies[0] else lies[1]
    await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", await town.id_of(other))
    (one,) = await found(town)
    assert one.level is Severity.ADVICE
    assert "No shard of this namespace" in one.means
    await ask(other, "CLUSTER", "SETSLOT", slot, "IMPORTING", await town.id_of(source))
    (one,) = await found(town)
    assert "in 1 s none has moved" in one.says, "the one that it goes to has none of our shards"
    assert one.level is Severity.ADVICE


async def test_what_is_seen_once_may_be_under_way(town: Town) -> None:
    slot, source, target = await place(town)
    await ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", await town.id_of(source))
    looking = asyncio.create_task(found(town))
    await asyncio.sleep(0.4)
    await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", await town.id_of(target))
    (one,) = await looking  # nor is it said to stand still: it was not seen to
    assert one.level is Severity.OK


async def test_one_that_does_not_answer_is_said_not_to(town: Town) -> None:
    slot, source, target = await place(town)
    await ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", await town.id_of(target))
    target.pause()
    try:
        (one,) = await found(town)
        assert one.level is Severity.UNKNOWN
        assert str(parse_address(target.url)) in one.says
    finally:
        target.resume()


def test_lines_of_a_primary_are_read_for_what_moves() -> None:
    text = (
        "aa 10.0.0.1:1@2 myself,master - 0 0 1 connected 0-5 9 [7->-bb] [8-<-bb] [odd] [9->-]\n"
        "bb 10.0.0.2:1@2 master - 0 0 2 connected 10-20 [11->-cc]\n"
    )
    own, view = view_of(parse_address("redis://10.0.0.1:1"), text)
    assert own == "aa"
    assert {tuple(move) for move in view.moves} == {(7, "aa", True, "bb"), (8, "aa", False, "bb"), (9, "aa", True, "")}
    assert view.has(9) and view.has(3) and not view.has(7)


async def test_a_slot_that_no_server_has_is_named_though_nobody_of_ours_lies_there(town: Town) -> None:
    """One such slot, and every server refuses everything."""
    settings = Settings(url=town.url)
    ours = {slot_of(ShardNames(settings.namespace, shard).meta) for shard in range(settings.shards)}
    slot = next(slot for slot in range(100) if slot not in ours)
    for server in town.servers:
        await ask(server, "CLUSTER", "DELSLOTS", slot)

    async def named() -> Finding | None:
        told = (await deployment_of(settings)).findings
        return next((each for each in told if f"no server has slot {slot}" in each.says), None)

    assert (await until(named)).level is Severity.PROBLEM
    await ask(town.servers[0], "CLUSTER", "ADDSLOTS", slot)

    async def has_one() -> bool:
        return await named() is None

    await until(has_one)
