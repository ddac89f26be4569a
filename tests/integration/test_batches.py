"""Loads of many ids: who shares what, in how many round trips, and what one id's trouble costs the others."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from cachebus import (
    Cache,
    ConfigError,
    Context,
    InvalidKey,
    L2Unavailable,
    LoadTimeout,
    NotSerializable,
    Policy,
    Settings,
    TenantRequired,
)
from cachebus.many import MANY
from cachebus.testing import Fleet
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_cluster import ClusterGroup
from tests.support.aging import aging
from tests.support.caches import asked, deaf, heard, never_poll, nodes, parts, until
from tests.support.logs import told
from tests.support.servers import any_binary

POLICIES = {
    "safe": Policy(ttl_s=10, fail_safe_s=1000, retries=0, fail_safe_throttle_s=10),
    "soft": Policy(ttl_s=1000, soft_ttl_s=10),
    "negative": Policy(negative_ttl_s=60),
    "tried": Policy(retries=2, retry_on=(ConnectionError,), retry_backoff_s=0.01),
    "slow": Policy(load_timeout_s=0.2, retries=0),
    "twice": Policy(copy=True),
}


class Table:
    """A database: rows by id, the calls that were made of it, and a gate."""

    def __init__(self, **rows: Any) -> None:
        self.rows: dict[Any, Any] = rows
        self.calls: list[list[Any]] = []
        self.errors: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.ended = 0

    async def load(self, ids: list[Any]) -> Mapping[Any, Any]:
        """The rows as they are when it is asked, once the gate is open."""
        self.calls.append(list(ids))
        found = {one: self.rows[one] for one in ids if one in self.rows}
        self.asked.set()
        try:
            await self.gate.wait()
        finally:
            self.ended += 1
        if self.errors:
            raise self.errors.pop(0)
        return found

    def hold(self) -> None:
        """Let calls hang until `gate` is set."""
        self.gate.clear()
        self.asked.clear()


def reading(cache: Cache, table: Table, *ids: Any, data_type: str = "row", **how: Any) -> asyncio.Task[dict[Any, Any]]:
    return asyncio.create_task(cache.get_or_load_many(data_type, ids, table.load, "acme", **how))


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[list[Cache]]:
    """Two nodes over a real server."""
    async with nodes(redis_url, policies=POLICIES) as caches:
        yield caches


@contextmanager
def writes(cache: Cache) -> Iterator[list[int]]:
    """How many bytes went to L2 at each write to its socket, but for the heartbeat's."""
    sent: list[int] = []
    connection: Any = parts(cache).store._by_shard[0]  # type: ignore[attr-defined]
    transport = connection._transport

    class Counting:
        def write(self, data: bytes) -> None:
            if b"MGET" in data or b":r:" in data or b"EVAL" in data:
                sent.append(data.count(b"\r\n*") + 1)
            transport.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(transport, name)

    connection._transport = Counting()
    try:
        yield sent
    finally:
        connection._transport = transport


# -- what goes in, and comes out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["memory", "redis"])
async def test_the_loader_gets_what_is_missing_as_given_and_each_id_once(where: str, redis_url: str) -> None:
    url = "memory://" if where == "memory" else redis_url
    async with Cache(Settings(url=url, policies=POLICIES)) as cache:
        one, table = uuid.uuid4(), Table()
        table.rows = {1: "one", "2": "two", one: "u", 4: None}
        await cache.set("row", "2", "two", "acme")
        found = await reading(cache, table, 1, "2", one, 3, 4, 1, "1")
        assert found == {1: "one", "2": "two", one: "u", "1": "one"}
        assert list(found) == [1, "2", one, "1"]
        assert table.calls == [[1, one, 3, 4]]
        assert await reading(cache, table, "1", 1, str(one)) == {"1": "one", 1: "one", str(one): "u"}
        assert await cache.get_many("row", [1, one, 3], "acme") == {1: "one", one: "u"}
        assert len(table.calls) == 1
        assert await cache.get_or_load_many("row", [], table.load, "acme") == {}


async def test_a_loader_is_called_by_the_rules_of_single_ones(pair: list[Cache]) -> None:
    a, _ = pair

    def by_names(resource_ids: list[int], *, ctx: Context | None, tenant_id: str) -> dict[str, Any]:
        return {str(one): [tenant_id, ctx is not None and ctx.agent_id] for one in resource_ids}

    with Context(tenant_id="acme", agent_id="a7"):
        assert await a.get_or_load_many("row", [1], by_names) == {1: ["acme", "a7"]}
    assert await a.get_or_load_many("row", ["2"], lambda ids: dict.fromkeys(ids, 0), "acme") == {"2": 0}


async def test_what_is_not_found_is_remembered_by_its_policy_alone(pair: list[Cache]) -> None:
    a, b = pair
    table = Table(x=1)
    for data_type, calls in (("negative", 1), ("row", 2)):
        table.calls.clear()
        assert await reading(a, table, "x", "y", data_type=data_type) == {"x": 1}
        assert await reading(b, table, "x", "y", data_type=data_type) == {"x": 1}
        assert len(table.calls) == calls
    assert table.calls[1] == ["y"]


@pytest.mark.parametrize("where", ["memory", "redis"])
async def test_a_stored_none_is_a_value_on_either_level(where: str, redis_url: str) -> None:
    """What the source has not is left out, on either level."""
    async with Cache(Settings(url="memory://" if where == "memory" else redis_url, policies=POLICIES)) as cache:
        table = Table()
        table.rows = {2: None, 3: "x"}
        for data_type in ("row", "negative", "twice"):
            receipt = await cache.set(data_type, 1, None, "acme")
            await reading(cache, table, 2, data_type=data_type)
            table.calls.clear()
            for how in ({}, {"use_memory": False}, {"after": receipt}):
                found = await reading(cache, table, 1, 2, 3, data_type=data_type, **how)
                assert found == {1: None, 3: "x"}, (data_type, how)
                assert await cache.get_many(data_type, [1, 2, 3], "acme") == found
            wider = await reading(cache, table, 1, 2, data_type=data_type, search_hierarchy=True, agent_id=1)
            assert wider == {1: None}
            assert all(1 not in call for call in table.calls)


async def test_more_than_fit_go_in_pieces(pair: list[Cache]) -> None:
    a, b = pair
    table = Table()
    table.rows = {i: i for i in range(2 * MANY + 10)}
    assert await reading(a, table, *table.rows) == table.rows
    assert [len(call) for call in table.calls] == [MANY, MANY, 10]
    assert await b.get_many("row", table.rows, "acme") == table.rows


@pytest.mark.parametrize(
    ("gave", "said"),
    [
        (lambda ids: [1, 2], "gave a list"),
        (lambda ids: {"other": 1}, "was not asked for"),
        (lambda ids: {1.5: 1}, "are no ids"),
        (lambda ids: {ids[0]: iter(())}, "gave an iterator"),
        (lambda ids: iter(()), "gave an iterator"),
    ],
)
async def test_a_loader_that_gives_what_it_may_not_is_told_at_once(gave: Any, said: str, pair: list[Cache]) -> None:
    a, _ = pair
    with pytest.raises(ConfigError, match=said):
        await a.get_or_load_many("tried", ["x", "y"], gave, "acme")
    assert await a.get_or_load_many("tried", ["x"], lambda ids: {"x": 1}, "acme") == {"x": 1}


async def test_bad_ids_are_told_before_anything_is_loaded(pair: list[Cache]) -> None:
    a, _ = pair
    table = Table(x=1)
    for ids in (["x", True], [1, True], ["x", "*"], ["x", None], ["x", 1.5], ["x", "a\x1fb"]):
        with pytest.raises(InvalidKey):
            await reading(a, table, *ids)
    with pytest.raises(TenantRequired):
        await a.get_or_load_many("row", ["x"], table.load)
    with pytest.raises(ConfigError, match="a loader is a function"):
        await a.get_or_load_many("row", ["x"], {"x": 1}, "acme")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="ttl"):
        await reading(a, table, "x", ttl=0)
    assert not table.calls


# -- round trips --------------------------------------------------------------------------------------------------


async def test_a_batch_is_one_round_trip_each_for_reads_leases_and_fills(redis_url: str) -> None:
    async with nodes(redis_url, 1, probe_interval_s=0.25) as (a,):
        table, ids = Table(), [str(i) for i in range(100)]
        table.rows = dict.fromkeys(ids, "v")
        await reading(a, table, "0")  # the scripts are known
        for _ in range(5):  # a heartbeat that falls in between is no round trip of ours: one try of several has none
            await a.invalidate_many("row", ids, "acme")
            with writes(a) as sent, asked(a) as counts:
                assert len(await reading(a, table, *ids)) == 100
            if not counts["probe"]:
                break
        assert (counts["get"], counts["fill_lease"], counts["fill"]) == (100, 100, 100)
        assert len(sent) <= 3 + 1, sent  # one that waits for no company may go ahead of the others


async def test_ids_of_one_tenant_are_one_round_trip_in_a_cluster_too() -> None:
    async with ClusterGroup(any_binary(), replicas=0) as group, nodes(group.url, 1, shards=3) as (a,):
        table = Table()
        table.rows = {i: i for i in range(50)}
        shards = {parts(a).naming.key("row", i, "acme").shard for i in range(50)}
        assert len(shards) == 1
        assert await reading(a, table, *table.rows) == table.rows
        assert await a.set_many("row", dict.fromkeys(range(50), "new"), "acme")
        assert await a.get_many("row", range(50), "acme") == dict.fromkeys(range(50), "new")
        assert table.calls == [list(range(50))]


# -- shared on the node -------------------------------------------------------------------------------------------


async def test_batches_that_overlap_and_single_loads_share_each_id(pair: list[Cache]) -> None:
    a, _ = pair
    table, single = Table(), Table()
    table.rows = single.rows = {one: one for one in "abcde"}
    table.hold()
    first = reading(a, table, "a", "b")
    await table.asked.wait()
    second = reading(a, table, "b", "c", "a")
    alone = asyncio.create_task(a.get_or_load("row", "a", lambda one: f"single {one}", "acme"))
    await until(lambda: len(table.calls) == 2)
    table.gate.set()
    assert await first == {"a": "a", "b": "b"}
    assert await second == {"b": "b", "c": "c", "a": "a"}
    assert await alone == "a"
    assert table.calls == [["a", "b"], ["c"]]


async def test_a_batch_joins_a_single_load(pair: list[Cache]) -> None:
    a, _ = pair
    table, go_on = Table(x="batch", y="batch"), asyncio.Event()

    async def single() -> str:
        await go_on.wait()
        return "single"

    alone = asyncio.create_task(a.get_or_load("row", "x", single, "acme"))
    await until(lambda: a.stats().flights == 1)
    both = reading(a, table, "x", "y")
    await until(lambda: table.calls)
    go_on.set()
    assert await both == {"x": "single", "y": "batch"}
    assert await alone == "single"
    assert table.calls == [["y"]]


async def test_a_caller_that_is_cancelled_ends_nobody_elses_load(pair: list[Cache]) -> None:
    a, b = pair
    table = Table(x=1, y=2)
    table.hold()
    first = reading(a, table, "x", "y")
    await table.asked.wait()
    alone = asyncio.create_task(a.get_or_load("row", "y", lambda: "another", "acme"))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await until(lambda: a.stats().flights == 1)
    assert not table.ended
    table.gate.set()
    assert await alone == 2
    assert table.calls == [["x", "y"]]
    assert await asyncio.wait_for(b.get_or_load("row", "x", lambda: "loaded by b", "acme"), 5) == "loaded by b"


async def test_when_the_last_caller_leaves_the_load_ends_and_its_leases_are_free(pair: list[Cache]) -> None:
    a, b = pair
    table = Table(x=1, y=2)
    table.hold()
    callers = [reading(a, table, "x", "y"), reading(a, table, "y")]
    await table.asked.wait()
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    await until(lambda: not a.stats().flights)
    assert table.ended == 1
    other = Table(x=3, y=4)
    assert await asyncio.wait_for(reading(b, other, "x", "y"), 5) == {"x": 3, "y": 4}


# -- shared over nodes --------------------------------------------------------------------------------------------


async def test_batches_of_two_nodes_in_opposite_orders_do_not_wait_for_each_other_without_loading(
    pair: list[Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each loads at once what it may, and is given the rest by the other: the histories say who loaded what."""
    a, b = pair
    never_poll(monkeypatch)  # only the end of a load wakes who waits for it
    ids = [str(i) for i in range(40)]
    for turn in range(5):
        tables = [Table(), Table()]
        for name, table in zip("ab", tables, strict=True):
            table.rows = dict.fromkeys(ids, f"{name}{turn}")
        await a.invalidate_many("row", ids, "acme", wait="nodes")
        both = [reading(a, tables[0], *ids), reading(b, tables[1], *reversed(ids))]
        found = await asyncio.wait_for(asyncio.gather(*both), 20)
        loaded = [one for table in tables for call in table.calls for one in call]
        assert sorted(loaded) == sorted(ids), "an id was loaded twice, or not at all"
        assert found[0] == found[1]


async def test_what_others_load_holds_nobody_up(pair: list[Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    """B holds the lease of y. A loads x at once, though y is far from there: nobody holds a lease without loading."""
    a, b = pair
    never_poll(monkeypatch)
    mine, theirs = Table(x="a", y="a", z="a"), Table(y="b")
    theirs.hold()
    other = reading(b, theirs, "y")
    await theirs.asked.wait()
    both = reading(a, mine, "y", "x", "z")
    await until(lambda: mine.calls)
    assert mine.calls == [["x", "z"]]
    await until(lambda: a.stats().fills == 2)  # else B may miss the hint, and never polls
    assert await asyncio.wait_for(b.get_or_load("row", "x", lambda: "b", "acme"), 5) == "a"  # it is there by now
    assert not both.done()
    theirs.gate.set()
    assert await both == {"y": "b", "x": "a", "z": "a"}
    await other
    assert mine.calls == [["x", "z"]]


async def test_what_another_node_gives_up_is_loaded_by_who_waits(pair: list[Cache]) -> None:
    a, b = pair
    mine, theirs = Table(x="a", y="a", z="a"), Table()
    theirs.hold()
    other = reading(b, theirs, "y", "z")
    await theirs.asked.wait()
    all_three = reading(a, mine, "x", "y", "z")
    await until(lambda: mine.calls)
    other.cancel()
    assert await asyncio.wait_for(all_three, 5) == {"x": "a", "y": "a", "z": "a"}
    assert sorted(one for call in mine.calls for one in call) == ["x", "y", "z"]


# -- coherence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hears", [True, False], ids=["hearing", "deaf"])
@pytest.mark.parametrize("how", ["key", "tag", "several"])
async def test_what_is_invalidated_during_a_batch_is_not_kept_and_the_others_are(
    how: str, hears: bool, pair: list[Cache]
) -> None:
    a, b = pair
    table, other = Table(x="old", y="old"), Table(z="old")
    table.hold()
    first = reading(a, table, "x", "y", tags=["t"] if how == "tag" else [])
    await table.asked.wait()
    table.rows = {"x": "new", "y": "new"}
    ended = [] if hears else [deaf(a)]
    for block in ended:
        block.__enter__()
    if how == "key":
        receipt = await b.invalidate("row", "x", "acme")
    elif how == "several":
        receipt = await b.invalidate_many("row", ["x", "other"], "acme")
    else:
        receipt = await b.invalidate_tags(["t"], "acme")
    if hears:
        await heard([a], receipt)
        second = reading(a, table, "x")  # it does not join what began before
        await until(lambda: how == "tag" or len(table.calls) == 2)  # a tag ends no fill lease: it waits for that
    table.gate.set()
    assert await first == {"x": "old", "y": "old"}
    if hears:
        assert await second == {"x": "new"}
    kept = "old" if how != "tag" else None
    assert (await b.get("row", "x", "acme"), await b.get("row", "y", "acme")) in (("new", kept), (None, kept))
    for block in ended:
        block.__exit__(None, None, None)
    assert await a.get("row", "x", "acme", after=receipt) in ("new", None)
    assert await reading(b, other, "z") == {"z": "old"}


async def test_a_write_guard_keeps_its_ids_out_of_every_level(pair: list[Cache]) -> None:
    a, b = pair
    table = Table(x=1, y=2)
    async with b.write_guard([("row", "x")], "acme", db_timeout_s=5):
        assert await reading(a, table, "x", "y") == {"x": 1, "y": 2}
        assert await a.get_many("row", ["x", "y"], "acme") == {"y": 2}


async def test_past_their_soft_expiry_ids_are_given_and_refreshed_by_one_call() -> None:
    async with aging(1, **POLICIES) as fleet:
        (a,) = fleet.nodes
        table = Table(x=1, y=1, z=1)
        assert await reading(a, table, "x", "y", data_type="soft") == {"x": 1, "y": 1}
        await fleet.pass_s(20)
        table.rows = {"x": 2, "y": 2, "z": 2}
        assert await reading(a, table, "x", "y", "z", data_type="soft") == {"x": 1, "y": 1, "z": 2}
        await until(lambda: not a.stats().flights)
        assert sorted(map(sorted, table.calls[1:])) == [["x", "y"], ["z"]]
        assert await reading(a, table, "x", "y", data_type="soft") == {"x": 2, "y": 2}


# -- failures -----------------------------------------------------------------------------------------------------


async def test_a_failing_loader_fails_all_its_ids_is_told_once_and_loaded_anew(pair: list[Cache]) -> None:
    a, b = pair
    table = Table(x=1, y=2)
    table.errors = [RuntimeError("down")]
    with told() as lines, pytest.raises(RuntimeError, match="down"):
        await reading(a, table, "x", "y", "z")
    assert len([line for line in lines if "loading row failed" in line]) == 1
    assert not a.stats().flights
    assert await asyncio.wait_for(reading(b, table, "x", "y"), 5) == {"x": 1, "y": 2}
    table.errors = [ConnectionError(), ConnectionError()]
    table.calls.clear()
    assert await reading(a, table, "x", "y", data_type="tried") == {"x": 1, "y": 2}
    assert table.calls == [["x", "y"]] * 3


async def test_a_further_attempt_gets_a_list_of_its_own(pair: list[Cache]) -> None:
    calls = []

    async def using_up(ids: list[str]) -> dict[str, int]:
        calls.append(sorted(ids))
        found = {}
        while ids:
            found[ids.pop()] = 1
        if len(calls) == 1:
            raise ConnectionError
        return found

    assert await pair[0].get_or_load_many("tried", ["x", "y"], using_up, "acme") == {"x": 1, "y": 1}
    assert calls == [["x", "y"]] * 2


async def test_one_that_takes_too_long_is_ended(pair: list[Cache]) -> None:
    a, _ = pair
    table = Table(x=1)
    table.hold()
    with pytest.raises(LoadTimeout):
        await reading(a, table, "x", "y", data_type="slow")
    assert table.ended == 1
    await until(lambda: not a.stats().flights)


async def test_expired_values_are_given_by_id_while_the_source_is_down() -> None:
    async with aging(1, **POLICIES) as fleet:
        (a,) = fleet.nodes
        table = Table(x=1, y=2)
        assert await reading(a, table, "x", "y", data_type="safe") == {"x": 1, "y": 2}
        await fleet.pass_s(20)
        table.errors = [RuntimeError("down"), RuntimeError("down")]
        assert await reading(a, table, "x", "y", data_type="safe") == {"x": 1, "y": 2}
        assert len(table.calls) == 2
        assert await reading(a, table, "x", "y", data_type="safe") == {"x": 1, "y": 2}
        assert len(table.calls) == 2  # the keys cool down
        with pytest.raises(RuntimeError, match="down"):
            await reading(a, table, "x", "z", data_type="safe")
        assert table.calls[2:] == [["z"]]


async def test_without_l2_and_in_a_disabled_cache_one_call_loads_all(redis_url: str) -> None:
    async with Fleet(1) as fleet:
        (a,) = fleet.caches
        table = Table(x=1, y=2)
        fleet.away = True
        assert await reading(a, table, "x", "y") == {"x": 1, "y": 2}
        assert table.calls == [["x", "y"]]
        both = await asyncio.gather(reading(a, table, "v", "w"), reading(a, table, "w", "v", "u"))
        assert both == [{}, {}]
        assert sorted(one for call in table.calls[1:] for one in call) == ["u", "v", "w"]
    async with Cache(Settings(url=redis_url, enabled=False)) as off:
        table.calls.clear()
        assert await reading(off, table, "x", "y", "z") == {"x": 1, "y": 2}
        assert await reading(off, table, "x") == {"x": 1}
        assert table.calls == [["x", "y", "z"], ["x"]]
        assert (await off.set_many("row", {"x": 1}, "acme")).status == "disabled"


@pytest.mark.parametrize("at", ["get", "fill_lease", "fill"])
async def test_l2_that_dies_between_read_lease_and_fill_costs_no_answer(at: str, own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, policies=POLICIES) as (a,):
        table, store = Table(x=1, y=2, z=3), parts(a).store
        real, seen = getattr(store, at), []

        def dying(*args: Any) -> Any:
            if not seen:
                own_server.kill()
            seen.append(args)
            return real(*args)

        setattr(store, at, dying)
        assert await asyncio.wait_for(reading(a, table, "x", "y", "z"), 20) == {"x": 1, "y": 2, "z": 3}
        assert len(seen) == 3
        assert table.calls == [["x", "y", "z"]]
        delattr(store, at)
        own_server.start()
        await until(a.ready)
        assert await reading(a, table, "x", "y", "z") == {"x": 1, "y": 2, "z": 3}


async def test_a_loader_that_waits_for_itself_is_told(pair: list[Cache]) -> None:
    a, _ = pair

    async def itself(ids: list[str]) -> dict[str, Any]:
        return await a.get_or_load_many("row", ["y", "x"], itself, "acme")

    async def single(ids: list[str]) -> dict[str, Any]:
        return {"x": await a.get_or_load("row", "y", lambda: other(["z"]), "acme")}

    async def other(ids: list[str]) -> Any:
        return (await a.get_or_load_many("row", ["x"], single, "acme"))["x"]

    with pytest.raises(ConfigError, match="waits for itself: acme:row:y -> acme:row:y"):
        await asyncio.wait_for(a.get_or_load_many("row", ["x", "y"], itself, "acme"), 5)
    with pytest.raises(ConfigError, match="acme:row:x -> acme:row:y -> acme:row:x"):
        await asyncio.wait_for(a.get_or_load_many("row", ["x"], single, "acme"), 5)
    assert not a.stats().flights

    async def others(ids: list[str]) -> dict[str, Any]:
        found = await a.get_or_load_many("row", ["p", "q"], Table(p=1, q=2).load, "acme")
        return dict(zip(ids, found.values(), strict=True))

    assert await a.get_or_load_many("row", ["m", "n"], others, "acme") == {"m": 1, "n": 2}


async def test_wider_contexts_are_searched(pair: list[Cache]) -> None:
    a, b = pair
    await b.set("row", "x", "tenant's", "acme")
    table = Table(x="loaded", y="loaded")
    found = await reading(a, table, "x", "y", agent_id="a7", search_hierarchy=True)
    assert found == {"x": "tenant's", "y": "loaded"}
    assert table.calls == [["y"]]


async def test_callers_may_change_what_they_are_given_where_the_policy_says_so(pair: list[Cache]) -> None:
    a, _ = pair
    table = Table(x=[1])
    found = await asyncio.gather(*(reading(a, table, "x", data_type="twice") for _ in range(3)))
    found += [await reading(a, table, "x", data_type="twice")]
    assert len({id(one["x"]) for one in found}) == 4


# -- calls of one tick --------------------------------------------------------------------------------------------


async def test_calls_of_one_tick_are_one_call_of_the_batch(pair: list[Cache]) -> None:
    a, _ = pair
    table = Table()
    table.rows = {i: i * 10 for i in range(20)}
    one = [a.get_or_load("row", i, tenant_id="acme", batch=table.load) for i in range(21)]
    assert await asyncio.gather(*one) == [*(i * 10 for i in range(20)), None]
    assert table.calls == [list(range(21))]
    table.calls.clear()
    await a.invalidate_scope("acme", "row")
    one = [a.get_or_load("row", i, tenant_id="acme", batch=table.load, batch_max=8) for i in range(20)]
    assert await asyncio.gather(*one) == [i * 10 for i in range(20)]
    assert table.calls == [list(range(8)), list(range(8, 16)), list(range(16, 20))]
    assert await a.get_or_load("row", 5, tenant_id="acme", batch=table.load) == 50


async def test_calls_share_a_batch_only_where_they_differ_in_their_ids_alone(pair: list[Cache]) -> None:
    a, _ = pair
    table, other = Table(x=1), Table(x=2)
    calls = [
        a.get_or_load("row", "x", tenant_id="acme", batch=table.load),
        a.get_or_load("more", "x", tenant_id="acme", batch=table.load),
        a.get_or_load("row", "x", tenant_id="other", batch=table.load),
        a.get_or_load("row", "x", tenant_id="acme", agent_id="a", batch=table.load),
        a.get_or_load("row", "y", tenant_id="acme", batch=other.load),
        a.get_or_load("row", "z", tenant_id="acme", batch=table.load),
    ]
    assert await asyncio.gather(*calls) == [1, 1, 1, 1, None, None]
    assert sorted(table.calls) == [["x"], ["x"], ["x"], ["x", "z"]]
    assert other.calls == [["y"]]


async def test_a_batch_that_fails_fails_each_of_its_callers(pair: list[Cache]) -> None:
    a, _ = pair
    table = Table()
    table.errors = [RuntimeError("down")]
    calls = [a.get_or_load("row", i, tenant_id="acme", batch=table.load) for i in range(3)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [repr(one) for one in found] == ["RuntimeError('down')"] * 3
    assert len({id(one) for one in found}) == 3  # each has one of its own


@pytest.mark.parametrize("data_type", ["row", "safe"])
async def test_callers_of_one_call_go_on_together_so_that_what_they_load_next_is_one_call(
    data_type: str, pair: list[Cache]
) -> None:
    """However many pieces their fills are sent in."""
    a, _ = pair
    users, companies = Table(), Table()
    users.rows = {i: {"company": i, "bio": "x" * 20_000} for i in range(100)}
    companies.rows = dict.fromkeys(range(100), "inc")

    async def resolve(i: int) -> Any:
        user = await a.get_or_load(data_type, i, tenant_id="acme", batch=users.load)
        assert user is not None
        return await a.get_or_load("company", user["company"], tenant_id="acme", batch=companies.load)

    assert await asyncio.gather(*map(resolve, range(100))) == ["inc"] * 100
    assert [sorted(call) for call in companies.calls] == [list(range(100))]
    assert len(users.calls) == 1


@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_fill_that_hangs_holds_up_the_others_no_longer_than_l2_may_take(is_cut: bool, redis_url: str) -> None:
    async with nodes(redis_url, 1, l2_timeout_s=0.3) as (a,):
        store: Any = parts(a).store
        fill, never, table = store.fill, asyncio.Event(), Table(x=1, y=2)

        async def hanging(key: Any, *rest: Any) -> Any:
            if key.resource_id == "x":
                await never.wait()
                raise L2Unavailable("hung")
            return await fill(key, *rest)

        store.fill = hanging
        calls = [asyncio.create_task(a.get_or_load("row", i, tenant_id="acme", batch=table.load)) for i in ("x", "y")]
        await table.asked.wait()
        if is_cut:  # who waits for the others is cancelled: that costs them nothing
            await until(lambda: a.stats().fills == 1)
            calls[1].cancel()
            await asyncio.wait(calls[1:])
        else:
            async with asyncio.timeout(5.0):
                assert await calls[1] == 2
        never.set()
        assert await calls[0] == 1
        assert await a.get("row", "y", "acme") == 2


async def test_one_id_fails_alone_by_an_error_in_its_place() -> None:
    async with aging(1, **POLICIES) as world:
        (a,) = world.nodes
        await a.set_many("safe", {1: "old", 2: "old"}, "acme")
        await world.pass_s(11)
        table = Table()
        table.rows = {1: KeyError("gone"), 2: "new", 3: ValueError("bad"), 4: "four", 5: KeyError("gone")}
        assert await reading(a, table, 1, 2, data_type="safe") == {1: "old", 2: "new"}, "the first falls back"
        with pytest.raises(ValueError, match="bad"):
            await reading(a, table, 4, 3, 5, data_type="tried")
        assert await a.get_many("tried", [3, 4, 5], "acme") == {4: "four"}
        calls = [a.get_or_load("row", i, tenant_id="acme", batch=table.load) for i in (3, 4, 5, 5)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [repr(one) for one in found] == ["ValueError('bad')", "'four'", *["KeyError('gone')"] * 2]
        assert found[2] is not found[3]
        assert table.calls == [[1, 2], [4, 3, 5], [3, 4, 5]], "none is tried again"
        assert a.stats().types["row"].load_errors == 2


async def test_one_caller_of_a_tick_that_is_cancelled_costs_the_others_nothing(pair: list[Cache]) -> None:
    a, _ = pair
    table = Table(x=1, y=2)
    table.hold()
    calls = [asyncio.create_task(a.get_or_load("row", i, tenant_id="acme", batch=table.load)) for i in ("x", "y")]
    await table.asked.wait()
    calls[0].cancel()
    await asyncio.wait(calls[:1])
    assert not table.ended
    table.gate.set()
    assert await calls[1] == 2
    assert table.calls == [["x", "y"]]


async def test_what_a_single_load_is_told_of_a_batch(pair: list[Cache]) -> None:
    a, _ = pair
    table: Any = Table()
    with pytest.raises(ConfigError, match="not both"):
        await a.get_or_load("row", 1, lambda: 1, "acme", batch=table.load)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="needs a loader, or batch="):
        await a.get_or_load("row", 1, tenant_id="acme")  # type: ignore[call-overload]
    for most in (0, True, 1.5, MANY + 1):
        with pytest.raises(ValueError, match="batch_max"):
            await a.get_or_load("row", 1, tenant_id="acme", batch=table.load, batch_max=most)


# -- writes -------------------------------------------------------------------------------------------------------


async def test_many_are_set_and_invalidated_with_one_receipt(pair: list[Cache]) -> None:
    a, b = pair
    values = {i: f"v{i}" for i in range(MANY + 20)}
    receipt = await a.set_many("row", values, "acme", tags=["t"], ttl=60)
    assert (receipt.stored, receipt.targets) == (True, {"row": len(values)})
    assert await b.get_many("row", values, "acme", after=receipt) == values
    assert await a.get_many("row", values, "acme") == values
    gone = await b.invalidate_many("row", range(10), "acme", wait="nodes", reason="a test")
    assert gone.seq == receipt.seq + 1  # one step
    assert gone.targets == {"row": 10}
    assert len(gone.confirmed) == 2
    assert list(await a.get_many("row", values, "acme")) == list(range(10, len(values)))
    waited = await b.set_many("row", {1: "x", 2: "y"}, "acme", wait="nodes")
    assert len(waited.confirmed) == 2
    assert await a.get_many("row", [1, 2], "acme") == {1: "x", 2: "y"}
    await b.invalidate_tags(["t"], "acme", wait="nodes")
    assert await a.get_many("row", values, "acme") == {1: "x", 2: "y"}


async def test_what_cant_be_set_is_told_before_anything_is_written(pair: list[Cache]) -> None:
    a, b = pair
    for values, error in (({"x": 1, "y": object()}, NotSerializable), ({"x": 1, True: 2}, InvalidKey)):
        with pytest.raises(error):
            await a.set_many("row", values, "acme")
        assert await b.get("row", "x", "acme") is None
    for call in (a.set_many("row", {}, "acme"), a.invalidate_many("row", [], "acme")):
        with pytest.raises(ValueError, match="nothing to"):
            await call
    with pytest.raises(InvalidKey):
        await a.invalidate_many("row", ["x", None], "acme")  # type: ignore[list-item]


async def test_a_set_of_many_that_l2_does_not_answer_raises_and_nothing_old_is_served() -> None:
    async with Fleet(1) as fleet:
        (a,) = fleet.caches
        await a.set_many("row", {"x": 1, "y": 1}, "acme")
        fleet.away = True
        with pytest.raises(L2Unavailable):
            await a.set_many("row", {"x": 2, "y": 2}, "acme")
        fleet.away = False
        assert await a.get_many("row", ["x", "y"], "acme") == {"x": 1, "y": 1}
        assert parts(a).node.counters.of("row").l2_hits == 2  # neither from memory


async def test_large_values_of_a_batch_reach_l2(redis_url: str) -> None:
    """More than may wait for a socket at once, however busy this machine is."""
    async with nodes(redis_url, l2_timeout_s=10.0) as (a, b):
        table = Table()
        table.rows = {i: bytes(600_000) for i in range(150)}
        assert len(await reading(a, table, *table.rows)) == 150
        assert a.stats().types["row"].loads == 150
        assert len(await b.get_many("row", table.rows, "acme")) == 150
        await a.set_many("row", table.rows, "acme")


async def test_values_of_several_types_are_read_at_once(pair: list[Cache]) -> None:
    a, b = pair
    await a.set("row", 1, "row", "acme")
    await a.set("page", 1, "page", "acme", agent_id="a7")
    targets = [("row", 1), ("page", 1, "a7"), ("page", 1), ("row", 2)]
    with asked(b) as counts:
        assert await b.get_targets(targets, "acme") == {("row", 1): "row", ("page", 1, "a7"): "page"}
    assert counts["get"] + counts["read"] in (1, 4)
    receipt = await b.invalidate_targets(targets, "acme")
    assert receipt.targets == {"row": 2, "page": 2}
    assert await a.get_targets(targets, "acme", after=receipt) == {}
    for wrong in ("row", ("row",), 5):
        with pytest.raises(ValueError, match="a target is"):
            await a.get_targets([wrong], "acme")  # type: ignore[list-item]


async def test_a_text_is_not_taken_apart(pair: list[Cache]) -> None:
    """A single id in the place of several would be its characters: each a wrong id, and nobody would be told."""
    a, _ = pair
    await a.set("row", "7", 1, "acme")
    rows: Any = a.of("row")
    cache: Any = a
    for text in ("77", b"77", bytearray(b"77")):
        for call in (
            lambda text=text: cache.get_many("row", text, "acme"),
            lambda text=text: cache.get_or_load_many("row", text, lambda ids: {}, "acme"),
            lambda text=text: cache.invalidate_many("row", text, "acme"),
            lambda text=text: rows.get_many(text, "acme"),
            lambda text=text: rows.get_or_load_many(text, lambda ids: {}, "acme"),
            lambda text=text: rows.invalidate_many(text, "acme"),
        ):
            with pytest.raises(ValueError, match="resource_ids must be several, as a list, not a single"):
                await call()
        for targets in (text, [text]):
            with pytest.raises(ValueError, match=r"targets must be several|a target is"):
                await cache.get_targets(targets, "acme")
            with pytest.raises(ValueError, match=r"targets must be several|a target is"):
                await cache.invalidate_targets(targets, "acme")
            with pytest.raises(ValueError, match=r"targets must be several|a target is"):
                cache.write_guard(targets, "acme")
    for wrong in ("t", b"t"):
        with pytest.raises(ValueError, match="tags"):
            await cache.set("row", "7", 1, "acme", tags=wrong)
        with pytest.raises(ValueError, match="tags"):
            await cache.invalidate_tags(wrong, "acme")
        with pytest.raises(ValueError, match="tags"):
            cache.write_guard(tenant_id="acme", tags=wrong)
        with pytest.raises(ConfigError, match="tags"):
            cache.of("row", tags=wrong)
    assert await a.get("row", "7", "acme") == 1


async def test_targets_are_hashable_where_values_come_by_them(pair: list[Cache]) -> None:
    a, _ = pair
    lists: Any = [["row", "77"]]
    with pytest.raises(ValueError, match="take tuples, not a list"):
        await a.get_targets(lists, "acme")
    assert (await a.invalidate_targets(lists, "acme")).targets == {"row": 1}
