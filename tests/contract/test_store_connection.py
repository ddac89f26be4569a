"""A store that is not connected, and one whose server refuses, has gone, or was laid out by others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from cachebus.base.patience import Patience
from cachebus.core.ports import Caller, FillLeaseOutcome, Store
from cachebus.core.requests import FallbackKind
from cachebus.errors import L2Unavailable, ProtocolMismatch
from cachebus.l2.layout import Layout
from cachebus.l2.redis import RedisStore
from cachebus.resp import Fixed, link
from cachebus.tools.servers.redis import EmbeddedServer
from tests.contract.clients import LONG_MS, NOBODY, Client, body, key, scope
from tests.contract.conftest import program
from tests.contract.rig import RedisRig, StoreRig, until
from tests.support.servers import KINDS, Kind

Operation = Callable[[Client], Awaitable[object]]
WRITES: dict[str, Operation] = {
    "fill_lease": lambda p: p.fill_lease(key("free")),
    "fill": lambda p: p.fill(key(), p.record(b"v")),
    "invalidate": lambda p: p.invalidate(key()),
    "write": lambda p: p.write(key()),
    "counter": lambda p: p.store.counter(key(), p.caller, 1, "", 0),
    "guard": lambda p: p.guard(key("guarded")),
    "forget": lambda p: p.store.forget(0, p.caller, "nobody", lives=True),
    "nodes": lambda p: p.store.nodes(0, p.caller),
    "read": lambda p: p.read(key()),
    "probe": lambda p: p.store.probe(0, p.caller, with_invalidated=True),
}
READS: dict[str, Operation] = {"log": lambda p: p.store.log(0, 0, 10), "get": lambda p: get(p.store)}


async def get(store: Store) -> object:
    """Whatever goes wrong, when it is called or when it is awaited."""
    return await store.get(key())


async def all_refuse(client: Client, operations: dict[str, Operation]) -> None:
    for name, operation in operations.items():
        with pytest.raises(L2Unavailable):
            print(name, await operation(client))


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def own(request: pytest.FixtureRequest) -> Iterator[RedisRig]:
    """A server of the test's own, of each kind, and nobody connected."""
    kind: Kind = request.param
    with EmbeddedServer(program(kind)) as server:
        rig = RedisRig(server.url, 1000, 1000)
        rig.server = server
        yield rig


async def test_a_closed_store_refuses(rig: StoreRig, ann: Client) -> None:
    await ann.loaded(key())
    await ann.store.close()
    await all_refuse(ann, {**WRITES, **READS})
    ann.store.extend(key(), "t", LONG_MS)
    ann.store.release(key(), "t")
    await ann.store.close()
    await ann.store.connect()
    assert await ann.store.get(key()) is not None


async def test_a_store_never_connected_refuses(rig: StoreRig) -> None:
    store = rig.unconnected()
    assert not store.connected
    await all_refuse(Client(store, "ann"), {**WRITES, **READS})
    store.release(key(), "t")


async def test_connecting_twice_is_connecting_once(rig: StoreRig, ann: Client) -> None:
    assert ann.store.checked[0]
    await asyncio.gather(ann.store.connect(), ann.store.connect())
    assert ann.store.checked[0]


async def test_other_facts_are_refused_naming_both_sides(redis: RedisRig) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    record = await ann.loaded(key())
    for shards, bus in ((3, "redis"), (2, "kafka")):
        store = redis.of_facts(shards, bus)
        redis.stores.append(store)
        await store.connect()
        bob = Client(store, "bob")
        for operation in WRITES.values():
            with pytest.raises(ProtocolMismatch) as raised:
                await operation(bob)
            assert "shards=2 bus=redis" in str(raised.value)
            assert f"shards={shards} bus={bus}" in str(raised.value)
        assert not store.checked[0]
        store.release(key(), "t")
    assert await ann.read(key()) == [record.encode(key().l2)], "nothing happened"
    assert await redis.applied() == {"ann": 1}, "who had read before; and nobody else"
    await redis.flush()
    await bob.attach()
    with pytest.raises(ProtocolMismatch):
        await ann.probe()


async def test_protocols_refuse_each_other_by_name(redis: RedisRig) -> None:
    """What the library before this one has left, on the very server that it wrote on; it asks the same field."""
    facts = "protocol=1 shards=2 bus=redis"
    server = (await redis.redis.call("INFO", "replication")).decode().partition("master_replid:")[2][:40]
    meta = {"facts": facts, "server": server, "epoch": "0" * 16, "seq": "7", "floor": "0", "marks": "1"}
    await redis.redis.call("HSET", redis.names.meta, *[part for pair in meta.items() for part in pair])
    await redis.redis.call("ZADD", redis.names.meta[: -len("meta")] + "marks", "7", scope())
    store = redis.of_facts(2, "redis")
    redis.stores.append(store)
    await store.connect()
    ann = Client(store, "ann")
    for operation in WRITES.values():
        with pytest.raises(ProtocolMismatch) as raised:
            await operation(ann)
        assert facts in str(raised.value)
        assert "protocol=2 shards=2 bus=redis" in str(raised.value)
    store.release(key(), "t")
    with pytest.raises(ProtocolMismatch):
        await store.probe(0, NOBODY, with_invalidated=False)
    assert not store.checked[0]
    found = await redis.redis.call("HGETALL", redis.names.meta)
    assert found == [part.encode() for pair in meta.items() for part in pair], "nothing happened"
    assert len(await redis.redis.call("KEYS", "*")) == 2
    await redis.flush()
    await ann.attach()
    assert await redis.redis.call("HGET", redis.names.meta, "facts") == b"protocol=2 shards=2 bus=redis"


async def test_scripts_are_sent_again_when_the_server_forgot_them(redis: RedisRig) -> None:
    ann = await Client(await redis.store(), "ann").attach()

    async def forget() -> None:
        await redis.redis.call("SCRIPT", "FLUSH")

    for operation in WRITES.values():
        await forget()
        await operation(ann)
    await ann.granted(key("held"), "t", LONG_MS)
    await forget()
    ann.store.extend(key("held"), "t", 2 * LONG_MS)
    await ann.probe()
    assert (await ann.fill_lease(key("held"), "other")).wait_ms > LONG_MS
    await forget()
    ann.store.release(key("held"), "t")
    await ann.probe()
    assert not await redis.leased(key("held"))


async def test_a_server_that_may_not_write_is_lost(own: RedisRig) -> None:
    """A master cut off from its replicas, one full: even reads are refused, since they leave a line."""
    ann = await Client(await own.store(), "ann").attach()
    await ann.granted(key())
    await ann.store.probe(0, Caller("bob", 5, b""), with_invalidated=False)
    # A full one takes invalidations that have something to remove: see below.
    when_full = {name: operation for name, operation in WRITES.items() if name not in ("forget", "guard")}
    when_full["invalidate"] = lambda p: p.invalidate(scopes=[scope()])
    for deny, allow, writes in (
        (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0"), WRITES),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), when_full),
    ):
        assert own.server.command(*deny).startswith("+OK")
        await all_refuse(ann, {name: operation for name, operation in writes.items() if name != "probe"})
        assert ann.store.checked[0]
        opened = ann.store.opened
        await all_refuse(ann, {"probe": WRITES["probe"]})
        assert not ann.store.checked[0], "a probe that is refused: nothing is believed by plain gets"
        assert ann.store.reaches(0), "but a server that answers is not left"
        await all_refuse(ann, writes)
        assert own.server.command("HEXISTS", own.names.nodes, "bob") == ":1", "and nothing was changed"
        assert own.server.command("EXISTS", own.names.fill_lease(key())) == ":1"
        assert own.server.command(*allow).startswith("+OK")
        await ann.probe()
        assert await ann.read(key()) == [None]
        assert ann.store.opened == opened
    await ann.store.close()


async def test_a_replica_is_left_for_whoever_is_there_by_now(own: RedisRig) -> None:
    """A fixed name or address may lead elsewhere by now, which only a new connection does."""
    ann = await Client(await own.store(), "ann").attach()
    await ann.granted(key())
    assert own.server.command("REPLICAOF", "127.0.0.1", "1").startswith("+OK")
    for name, operation in WRITES.items():
        opened = ann.store.opened
        with pytest.raises(L2Unavailable, match="READONLY"):
            print(name, await operation(ann))
        assert not ann.store.connected
        assert not ann.store.checked[0]
        await ann.store.connect()  # paces itself
        assert ann.store.opened == opened + 1
    assert own.server.command("EXISTS", own.names.fill_lease(key())) == ":1", "nothing was changed"
    assert own.server.command("REPLICAOF", "NO", "ONE").startswith("+OK")
    await ann.probe()
    assert ann.store.connected
    await ann.store.close()


async def test_a_full_server_takes_invalidations_and_stores_nothing(own: RedisRig) -> None:
    await own.begin()
    ann = await Client(await own.store(), "ann").attach()
    await ann.loaded(key())
    await ann.invalidate(scopes=[scope("other")])
    lease = await ann.granted(key("leased"))
    assert own.server.command("CONFIG", "SET", "maxmemory", "1") == "+OK"
    for refused in (
        ann.write(key()),
        ann.write(key("added"), if_absent=True),
        ann.fill(key("leased"), ann.record(b"v", lease)),
    ):
        with pytest.raises(L2Unavailable):
            await refused
    assert await own.leased(key("leased")), "nothing at all was done"
    assert await ann.store.get(key()) is not None
    assert (await ann.guard(key("guarded"))).done
    change = await ann.invalidate(key(), scopes=[scope("doc")])
    assert await ann.store.get(key()) is None
    assert own.server.command("CONFIG", "SET", "maxmemory", "0") == "+OK"
    assert [entry.seq for entry in await ann.store.log(0, 0, 10)] == [2, 3, change.seq] == [2, 3, 4]
    assert await ann.invalidated() == {scope("other"): 2, scope("doc"): change.seq}
    await own.end()


async def test_a_producer_too_is_refused_by_a_server_that_may_not_write(own: RedisRig) -> None:
    ann = await Client(await own.store(), "ann").attach()
    assert own.server.command("CONFIG", "SET", "min-replicas-to-write", "1") == "+OK"
    with pytest.raises(L2Unavailable):
        await ann.store.invalidate(0, NOBODY, [key()], [], body([key()]))
    await ann.store.close()


async def connected(own: RedisRig, *, timeout_s: float) -> RedisStore:
    """A store of one shard on this server."""
    store = RedisStore(
        Fixed(own.address, 1),
        Layout("n", 1, "redis", max_invalidated_scopes=10, log_max=10),
        Patience(timeout_s, 10.0, asyncio.get_running_loop().time),
    )
    await store.connect()
    return store


async def test_a_probe_that_is_not_answered_closes_its_connection(own: RedisRig) -> None:
    store = await connected(own, timeout_s=0.3)
    ann = await Client(store, "ann").attach()
    own.server.pause()
    with pytest.raises(L2Unavailable):
        await ann.probe()
    assert not store.connected
    assert not store.checked[0]
    own.server.resume()
    await store.connect()
    assert not store.checked[0], "another connection, perhaps to another server"
    assert (await ann.probe()).epoch == ann.caller.epoch
    await store.close()


async def test_a_probe_that_its_own_full_queue_refuses_costs_nobody_the_connection(
    own: RedisRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. the server is busy; 2. the queue fills up; 3. a probe is refused; 4. the server goes on: all are answered."""
    monkeypatch.setattr(link, "PENDING_MAX", 20)
    store = await connected(own, timeout_s=10.0)
    ann = await Client(store, "ann").attach()
    own.server.pause()
    waiting = [asyncio.ensure_future(ann.read(key())) for _ in range(20)]
    await asyncio.sleep(0)
    with pytest.raises(L2Unavailable, match="is behind"):
        await ann.probe()
    assert store.connected
    assert store.checked[0], "nothing was asked, so nothing was learnt"
    own.server.resume()
    assert await asyncio.gather(*waiting) == [[None]] * 20
    assert (await ann.probe()).epoch == ann.caller.epoch
    await store.close()


async def test_a_connection_that_is_lost_is_not_trusted_again(own: RedisRig) -> None:
    store = await own.store()
    ann = await Client(store, "ann").attach()
    own.server.restart()

    async def lost() -> bool:
        return not store.connected

    await until(lost)
    assert not store.checked[0]
    await all_refuse(ann, {**WRITES, **READS})
    await store.connect()
    assert not store.checked[0]
    await ann.probe()
    assert store.checked[0]
    await store.close()


async def test_no_server_is_told_by_its_address(own: RedisRig) -> None:
    store = own.unconnected()
    own.server.kill()
    with pytest.raises(L2Unavailable, match=rf"127\.0\.0\.1:{own.server.port}"):
        await store.connect()
    assert not store.connected


@pytest.mark.parametrize("when", ["before it is known", "while there is none"])
@pytest.mark.parametrize("how", ["given back", "let rest"])
async def test_a_lease_that_ends_while_the_connection_is_lost_ends_once_there_is_another(
    own: RedisRig, how: str, when: str
) -> None:
    """Its holder lives: nobody should wait for it."""
    store = await connected(own, timeout_s=10.0)
    ann = await Client(store, "ann").attach()
    await ann.granted(key(), "a")

    def end() -> None:
        if how == "given back":
            store.release(key(), "a")
        else:
            store.cool_down(key(), "a", LONG_MS)

    connection = store._by_shard[0]
    assert connection is not None
    if when == "before it is known":
        end()
    connection.close()
    if when == "while there is none":
        end()
    await asyncio.sleep(0)
    await store.connect()
    await ann.probe()
    await ann.probe()  # behind what is owed
    expected = FillLeaseOutcome.GRANTED if how == "given back" else FillLeaseOutcome.COOLING_DOWN
    assert (await ann.fill_lease(key(), "b", fallback=FallbackKind.OWN)).outcome is expected
    await store.close()
