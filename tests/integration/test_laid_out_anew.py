"""Another node has laid the namespace out for other settings than the fleet's: who says so, and the way back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cachebus import Cache, Health, ProtocolMismatch
from cachebus.tools.doctor.finding import Severity
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes, parts, quick, until
from tests.support.command import ran
from tests.support.doctor import findings, of, type_in
from tests.support.logs import told

WELL = Health(serving=True, coherent=True)


async def lay_out_anew(server: EmbeddedServer, cache: Cache, shards: int) -> None:
    """Redis comes back empty while the node stands, and one with another count of shards is there first."""
    heartbeat = parts(cache).listening.heartbeat
    await heartbeat.stop()
    server.command("FLUSHALL")
    async with Cache(quick(server.url, shards=shards)):
        pass
    heartbeat.start()


async def test_who_is_refused_says_so_and_the_doctor_how_it_is_taken_back(own_server: EmbeddedServer) -> None:
    with told("ERROR") as lines:
        async with nodes(own_server.url, 1) as (cache,):
            await cache.set("config", "x", 1, "acme")
            assert cache.health() == WELL
            await lay_out_anew(own_server, cache, shards=4)
            await until(lambda: not cache.health().serving)
            health = cache.health()
            assert not health.coherent
            assert not cache.ready()
            (why,) = health.degraded
            assert why.startswith("all shards refuse this node: the namespace is laid out as 'protocol=2 shards=4 bus")
            assert why.endswith(
                "`cachebus doctor` says how a layout is taken back: what memory can't answer raises ProtocolMismatch"
            )
            assert cache.stats().shards_refused == 1
            with pytest.raises(ProtocolMismatch):
                await cache.get_or_load("config", "x", lambda: 1, "acme")
            assert lines == [f"L2: {why}"], "once a minute"

            found = of(await findings(own_server.url), "namespace")
            assert found is not None
            assert found.level is Severity.PROBLEM
            assert "1 more listen to its events than its nodes are" in found.says
            type_in(own_server, found.mend)
            await until(lambda: cache.health() == WELL)
            assert cache.stats().shards_refused == 0
            assert await cache.get_or_load("config", "x", lambda: 2, "acme") == 2
            assert of(await findings(own_server.url), "namespace") is None


async def test_shards_that_are_not_the_others_go_on(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, shards=4) as (cache,):
        await lay_out_anew(own_server, cache, shards=1)

        def said() -> bool:
            degraded = cache.health().degraded
            return len(degraded) == 1 and degraded[0].startswith("1 of 4 shards refuse this node: ")

        await until(lambda: said() and cache.stats().shards[0].lease_left_s == 0)
        assert cache.health().serving
        assert not cache.health().coherent
        assert not cache.ready()


async def test_a_layout_in_which_nodes_live_is_not_to_be_removed(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, shards=4):
        found = of(await findings(own_server.url, shards=2), "namespace")
        assert found is not None
        assert (found.level, found.mend) == (Severity.PROBLEM, ())
        found = of(await findings(own_server.url), "namespace")
        assert found is not None
        assert (found.level, found.mend) == (Severity.ADVICE, ())


async def test_a_layout_is_not_to_be_removed_by_who_may_not_read_who_lives_in_it(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, shards=4):
        own_server.command("ACL", "SETUSER", "looks", "on", ">pw", "~*", "&*", "+@all", "-hscan")
        url = own_server.url.replace("redis://", "redis://looks:pw@")
        found = of(await findings(url, shards=2), "namespace")
        assert found is not None
        assert (found.level, found.mend) == (Severity.PROBLEM, ())
        assert "in which no node lives" not in found.otherwise
        assert "whether a node lives in the layout is not known: " in found.otherwise
        found = of(await findings(url), "namespace")
        assert found is not None
        assert (found.level, found.mend) == (Severity.ADVICE, ()), "who listens may have rows"


async def test_a_layout_of_another_protocol_is_not_to_be_removed(own_server: EmbeddedServer) -> None:
    own_server.command("HSET", "{cachebus:0}:meta", "facts", "protocol=1 shards=1 bus=redis", "epoch", "a", "seq", "1")
    for rows in range(2):
        found = of(await findings(own_server.url), "namespace")
        assert found is not None
        assert (found.level, found.mend) == (Severity.PROBLEM, ()), rows
        assert found.otherwise.startswith("run the version of cachebus that has protocol 1, or ")
        assert found.otherwise.endswith("only the doctor of a version that has it can read them")
        own_server.command("HSET", "{cachebus:0}:nodes", "web-1", "a row as protocol 1 has it")


async def test_who_can_not_be_read_may_live_and_listen(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, shards=4) as (cache,):
        await parts(cache).listening.heartbeat.stop()
        for shard in range(4):
            own_server.command("HSET", f"{{cachebus:{shard}}}:nodes", cache.stats().node, "no row")
        found = of(await findings(own_server.url), "namespace")
        assert found is not None
        assert (found.level, found.mend) == (Severity.ADVICE, ())
        found = of(await findings(own_server.url, shards=2), "namespace")
        assert found is not None
        assert (found.level, found.mend) == (Severity.PROBLEM, ())
        assert "rows can't be read" in found.otherwise


async def test_the_doctor_ends_as_for_a_problem(own_server: EmbeddedServer, tmp_path: Path) -> None:
    async with nodes(own_server.url, 1) as (cache,):
        await lay_out_anew(own_server, cache, shards=2)
        await until(lambda: not cache.health().serving)
        status, out, _ = await asyncio.to_thread(ran, "doctor", own_server.url, "--json", folder=tmp_path)
    assert status == 1
    (found,) = [
        f for f in json.loads(out)["servers"][0]["findings"] if (f["check"], f["level"]) == ("namespace", "problem")
    ]
    assert found["mend"] == ["DEL {cachebus:0}:meta", "DEL {cachebus:1}:meta"]
