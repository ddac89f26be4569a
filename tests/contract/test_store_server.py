"""What becomes of a server beneath a store: restarts, reloads and older copies; and what only a server shows."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from cachebus.core.ports import Caller, FillLeaseOutcome, Invalidated, NodeRow
from cachebus.keys.key import ALL_OF_SHARD, ALL_TENANTS
from cachebus.l2.names import ShardNames
from cachebus.l2.replies import NAME
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.wire import event as events
from tests.contract.clients import BUCKET, NOBODY, Client, body, key, scope, tag
from tests.contract.conftest import program
from tests.contract.rig import NAMESPACE, PATIENCE_S, SHARDS, RedisRig, aged, until
from tests.support.servers import KINDS, Kind

Serve = Callable[..., RedisRig]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Starts a server of the test's own, of each kind."""
    kind: Kind = request.param
    servers: list[EmbeddedServer] = []

    def served(*, appendonly: bool = False) -> RedisRig:
        binary = program(kind)
        # Redis 7 and Valkey refuse DEBUG unless told otherwise, and 6.2 refuses to be told.
        extra = ("--enable-debug-command", "local") if binary.version >= (7,) else ()
        server = EmbeddedServer(binary, appendonly=appendonly, extra=extra).start()
        servers.append(server)
        rig = RedisRig(server.url, 1000, 1000)
        rig.server = server
        return rig

    yield served
    for server in servers:
        server.stop()


async def played(rig: RedisRig) -> Client:
    """A node that has filled `kept`, holds a lease on `loading`, and has seen three events."""
    ann = await Client(await rig.store(), "ann").attach()
    await ann.invalidate(scopes=[scope("other")])
    await ann.invalidate(scopes=[tag("plan")])
    await ann.invalidate(key())
    await ann.probe()
    await ann.loaded(key("kept"))
    await ann.granted(key("loading"), "t")
    return ann


async def connected_again(client: Client) -> None:
    async def noticed() -> bool:
        return not client.store.connected

    await until(noticed)
    await client.store.connect()


async def all_is_void(ann: Client) -> None:
    """Whoever comes first finds another epoch, and nothing of the one before is believed."""
    before = ann.caller
    bob = await Client(ann.store, "bob").attach()
    assert bob.caller.epoch != before.epoch
    assert await ann.read(key("kept")) == [None]
    assert not (await ann.fill(key("loading"), ann.record(b"late"))).done
    assert (await bob.fill_lease(key("kept"))).outcome is FillLeaseOutcome.GRANTED
    assert (await bob.fill_lease(key("loading"), "another")).outcome is FillLeaseOutcome.GRANTED
    assert await bob.store.log(0, 0, 100) == []
    reply = await ann.probe()
    assert (reply.epoch, reply.invalidated) == (bob.caller.epoch, Invalidated({}, {}))
    await ann.store.close()


async def test_a_restart_that_forgets_everything(serve: Serve) -> None:
    rig = serve()
    ann = await played(rig)
    rig.server.restart()
    await connected_again(ann)
    await all_is_void(ann)


async def test_a_restart_that_keeps_everything(serve: Serve) -> None:
    """It may have kept less than it had acknowledged, and nobody can tell: so nothing is believed."""
    rig = serve(appendonly=True)
    ann = await played(rig)
    rig.server.restart()
    await connected_again(ann)
    data = await ann.store.get(key("kept"))
    assert data is not None
    assert data[4:20] == ann.caller.epoch, "the record is there, and of an epoch that is over"
    await all_is_void(ann)


async def test_a_crash_that_loses_the_latest(serve: Serve) -> None:
    rig = serve()
    ann = await played(rig)
    assert rig.server.command("SAVE") == "+OK"
    await ann.invalidate(key("kept"), key("loading"))
    rig.server.kill()
    rig.server.start()
    await connected_again(ann)
    assert await ann.store.get(key("kept")) is not None, "an older copy is back, with what was invalidated since"
    await all_is_void(ann)


async def test_seq_goes_on_beyond_what_any_node_has_applied(serve: Serve) -> None:
    rig = serve()
    ann = await played(rig)
    applied = ann.caller.applied
    rig.server.restart()
    await connected_again(ann)
    assert (await ann.probe()).seq == applied + 1
    await ann.store.close()


async def test_a_reload_keeps_the_incarnation_and_all_data(serve: Serve) -> None:
    """DEBUG RELOAD saves, empties and loads: replid stays, nothing is lost, and the epoch rightly goes on."""
    rig = serve()
    ann = await played(rig)
    record = await ann.store.get(key("kept"))
    assert rig.server.command("DEBUG", "RELOAD") == "+OK"
    bob = await Client(ann.store, "bob").attach()
    assert bob.caller == ann.caller._replace(node="bob")
    assert await bob.read(key("kept")) == [record]
    assert (await ann.fill_lease(key("loading"), "t")).outcome is FillLeaseOutcome.GRANTED
    await ann.store.close()


async def test_an_older_copy_under_the_same_incarnation_is_found_by_who_has_seen_more(serve: Serve) -> None:
    """DEBUG RELOAD NOSAVE brings back an older file and keeps replid; the nodes' own applied seq tells."""
    rig = serve()
    ann = await played(rig)
    assert rig.server.command("SAVE") == "+OK"
    await ann.invalidate(key("kept"), key("loading"))
    await ann.probe()
    assert rig.server.command("DEBUG", "RELOAD", "NOSAVE") == "+OK"
    assert await ann.store.get(key("kept")) is not None
    before = ann.caller
    after = await ann.probe()
    assert after.epoch != before.epoch
    assert after.seq == before.applied + 1
    await all_is_void_in(ann, before)


async def all_is_void_in(ann: Client, before: Caller) -> None:
    assert await ann.read(key("kept")) == [None]
    late = ann.record(b"late")
    late.epoch = before.epoch
    assert not (await ann.fill(key("loading"), late)).done
    assert (await ann.fill_lease(key("loading"), "another")).outcome is FillLeaseOutcome.GRANTED
    await ann.store.close()


async def test_a_promoted_replica_is_another_server(serve: Serve) -> None:
    master, replica = serve(), serve()
    ann = await played(master)
    assert master.server.command("CONFIG", "SET", "repl-diskless-sync-delay", "0") == "+OK"
    assert replica.server.command("REPLICAOF", "127.0.0.1", str(master.server.port)) == "+OK"

    async def copied() -> bool:
        return replica.server.command("EXISTS", replica.names.fill_lease(key("loading"))) == ":1"

    await until(copied)
    master.server.stop()
    assert replica.server.command("REPLICAOF", "NO", "ONE") == "+OK"
    other = Client(await replica.store(), "ann")
    other.caller = ann.caller
    assert await other.store.get(key("kept")) is not None
    await ann.store.close()
    await all_is_void(other)


async def test_the_event_is_logged_before_it_is_published(redis: RedisRig) -> None:
    """Else a replica, or a copy taken in between, could lack the entry of an event that nodes have heard."""
    ann = await Client(await redis.store(), "ann").attach()
    with closing(socket.create_connection((redis.address.host, redis.address.port), PATIENCE_S)) as watch:
        watch.sendall(b"MONITOR\r\n")
        said = watch.makefile("rb")
        assert said.readline() == b"+OK\r\n"
        await ann.write(key("a"), others=[key("b")], scopes=[scope("doc")])
        await ann.invalidate(key("b"), scopes=[scope("doc")])
        await redis.redis.call("ECHO", "the end")
        commands = []
        while b'"the end"' not in (line := said.readline()):
            if b" lua]" in line:
                commands.append(line.split(b'"')[1].upper().decode())
    order = [command for command in commands if command in ("DEL", "ZADD", "XADD", "PUBLISH", "SET")]
    assert order == ["DEL", "ZADD", "XADD", "PUBLISH", "SET", "DEL", "ZADD", "XADD", "PUBLISH"]


async def test_rows_of_silent_nodes_are_pruned(redis: RedisRig) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    await ann.store.probe(0, ann.caller, with_invalidated=False)
    now_us = (await ann.store.probe(1, Caller("ann", 0, b""), with_invalidated=False)).server_us
    for shard in range(SHARDS):
        nodes = ShardNames(NAMESPACE, shard).nodes
        row = await redis.redis.call("HGET", nodes, "ann")
        odd = {"silent": aged(row, 61), "quiet": aged(row, 30), "garbage": b"\x86", "old": b"7:%d" % now_us}
        await redis.redis.call("HSET", nodes, *[part for pair in odd.items() for part in pair])
    await ann.store.probe(0, ann.caller, with_invalidated=False)
    assert set(await redis.rows()) == {"ann", "silent", "quiet", "garbage", "old"}, "not by every probe"
    assert (await ann.store.nodes(0, NOBODY)).rows["garbage"] == NodeRow(0, b"", 0), "it has applied nothing"
    bob = await Client(await redis.store(), "bob").attach()
    for shard in range(SHARDS):
        await bob.store.probe(shard, Caller("bob", 0, b""), with_invalidated=False)
    assert set(await redis.rows()) == {"ann", "quiet", "bob"}
    flat = await redis.redis.call("HKEYS", ShardNames(NAMESPACE, 1).nodes)
    assert set(flat) - {NAME} == {b"ann", b"quiet", b"bob"}, "in every shard"


async def test_events_go_to_the_channel_of_their_shard(redis: RedisRig) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    await ann.store.invalidate(1, Caller("ann", 0, b""), [], [], body(scopes=["elsewhere"]))
    await ann.invalidate(key())
    assert events.decode((await redis.heard(1))[0]).keys == [key().l1]
    await ann.probe()
    assert len(redis.messages) == 1


async def test_every_key_of_a_shard_bears_its_hash_tag(redis: RedisRig) -> None:
    """So that a Cluster puts them in one slot, where one script may touch them."""
    ann = await Client(await redis.store(), "ann").attach()
    await ann.loaded(key("r"))
    await ann.granted(key("l"))
    await ann.store.counter(key("c"), ann.caller, 1, "request", 0)
    await ann.invalidate(scopes=[scope()])
    await ann.invalidate(scopes=[ALL_OF_SHARD])
    await ann.guard(key("g"))
    await ann.store.identity()
    found = {name.decode() for name in await redis.redis.call("KEYS", "*")}
    one = {f"{{{NAMESPACE}:0}}:{kind}" for kind in ("c:acme:doc:c", "l:acme:doc:l", "r:acme:doc:r")}
    assert found == one | {name for name in redis.names.own if name not in redis.names.all_marks} | {
        redis.names.marks(BUCKET),
        redis.names.marks(ALL_TENANTS),
    }
    assert {name.partition("}:")[0] for name in redis.names.own} == {f"{{{NAMESPACE}:0"}


async def test_only_leases_and_what_was_told_to_expires(redis: RedisRig) -> None:
    """What must not be evicted has no time to live, so that a `volatile-` policy of the server spares it."""
    ann = await Client(await redis.store(), "ann").attach()
    await ann.write(key("kept"))
    await ann.write(key("mortal"), px_ms=50_000)
    await ann.granted(key("l"))
    await ann.store.counter(key("c"), ann.caller, 1, "request", 0)
    await ann.guard(key("g"), scopes=[scope()])
    mortal = set()
    for name in await redis.redis.call("KEYS", "*"):
        if await redis.redis.call("PTTL", name) >= 0:
            mortal.add(name.decode().split("}:")[1])
    assert mortal == {"r:acme:doc:mortal", "l:acme:doc:l"}
