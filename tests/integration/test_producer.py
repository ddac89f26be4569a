"""Invalidations from write paths that hold no cache: the same promises as a cache's own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cachebus import (
    Cache,
    Cascade,
    ConfigError,
    Context,
    InvalidationFailed,
    InvalidKey,
    L2Unavailable,
    ProtocolMismatch,
    Receipt,
    TenantRequired,
)
from cachebus.producers import DirectProducer
from cachebus.tools.servers.redis import EmbeddedServer, free_port
from tests.support.caches import deaf, heard, nodes, quick, until

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """A node that reads."""
    async with nodes(redis_url, 1) as (opened,):
        yield opened


@pytest.fixture
async def producer(redis_url: str) -> AsyncIterator[DirectProducer]:
    """A write path."""
    async with DirectProducer.open(redis_url) as opened:
        yield opened


CALLS: dict[str, Callable[[DirectProducer], Awaitable[Receipt]]] = {
    "key": lambda p: p.invalidate("config", "x", "acme", "a"),
    "contexts": lambda p: p.invalidate("config", "x", "acme", contexts="all"),
    "tenant": lambda p: p.invalidate_scope("acme"),
    "type": lambda p: p.invalidate_scope("acme", "config"),
    "agent": lambda p: p.invalidate_scope("acme", "config", agent_id="a"),
    "tags": lambda p: p.invalidate_tags(["t"], "acme"),
    "coordinated": lambda p: p.invalidate_coordinated("acme", "config", "x"),
    "related": lambda p: p.invalidate_coordinated("acme", "page", "p", [{"data_type": "config", "resource_id": "*"}]),
}


@pytest.mark.parametrize("call", CALLS)
async def test_every_verb_reaches_the_caches(cache: Cache, producer: DirectProducer, call: str) -> None:
    await cache.set("config", "x", 1, "acme", "a", tags=["t"])
    await cache.set("config", "x", 1, "other", "a", tags=["t"])
    receipt = await CALLS[call](producer)
    assert receipt.status == "applied"
    assert sum(receipt.targets.values()) >= 1
    await heard([cache], receipt)
    assert await cache.get("config", "x", "acme", "a") is None
    assert await cache.get("config", "x", "other", "a") == 1


@pytest.mark.parametrize("call", CALLS)
async def test_a_read_with_its_receipt_sees_it_on_a_deaf_node(
    cache: Cache, producer: DirectProducer, call: str
) -> None:
    await cache.set("config", "x", 1, "acme", "a", tags=["t"])
    with deaf(cache):
        receipt = await CALLS[call](producer)
        assert await cache.get("config", "x", "acme", "a", after=str(receipt)) is None


async def test_counts_and_cascades(cache: Cache, redis_url: str) -> None:
    cascade = Cascade("document", to=[("embedding", "doc:{resource_id}"), ("query_result", "*")])
    async with DirectProducer.open(redis_url, [cascade]) as producer:
        await cache.set("embedding", "doc:7", 1, "acme")
        receipt = await producer.invalidate("document", 7, "acme")
        assert dict(receipt.targets) == {"document": 1, "embedding": 1, "query_result": 1}
        assert await cache.get("embedding", "doc:7", "acme", after=receipt) is None
        receipt = await producer.invalidate_coordinated(
            "acme", "document", "7", [{"data_type": "page", "resource_id": "1"}]
        )
        assert dict(receipt.targets) == {"document": 1, "page": 1, "embedding": 1, "query_result": 1}


async def test_an_invalidation_keeps_out_a_load_that_began_before(cache: Cache, producer: DirectProducer) -> None:
    async def load() -> str:
        await producer.invalidate("config", "x", "acme")
        return "old"

    assert await cache.get_or_load("config", "x", load, tenant_id="acme") == "old"
    assert await cache.get("config", "x", tenant_id="acme") is None
    assert cache.stats().fills_rejected == 1


async def test_bad_input_is_refused(producer: DirectProducer) -> None:
    with pytest.raises(TenantRequired):
        await producer.invalidate("config", "x")
    with pytest.raises(TenantRequired):
        await producer.invalidate_scope()
    with pytest.raises(InvalidKey):
        await producer.invalidate("config", "", "acme")
    with pytest.raises(ValueError, match="contexts"):
        await producer.invalidate("config", "x", "acme", contexts="some")
    with pytest.raises(InvalidKey, match="contexts"):
        await producer.invalidate("config", "x", "acme", "a", contexts="all")
    with pytest.raises(ValueError, match="tags"):
        await producer.invalidate_tags("t", "acme")
    with pytest.raises(ValueError, match="data_type"):
        await producer.invalidate_coordinated("acme", "config", "x", [{}])


async def test_the_tenant_may_be_ambient(cache: Cache, producer: DirectProducer) -> None:
    await cache.set("config", "x", 1, "acme", tags=["t"])
    with Context(tenant_id="acme"):
        for call in (
            lambda: producer.invalidate("config", "x"),
            lambda: producer.invalidate_scope(data_type="config"),
            lambda: producer.invalidate_tags(["t"]),
        ):
            await cache.set("config", "x", 1, "acme", tags=["t"])
            receipt = await call()
            assert await cache.get("config", "x", "acme", after=receipt) is None


async def test_it_may_be_the_first_to_touch_a_store(redis_server: EmbeddedServer) -> None:
    async with DirectProducer.open(redis_server.url) as producer:
        first = await producer.invalidate("config", "x", "acme")
        second = await producer.invalidate("config", "x", "acme")
        assert (second.epoch, second.seq) == (first.epoch, first.seq + 1)
    async with nodes(redis_server.url, 1) as (cache,):
        assert cache.stats().shards[0].applied == second.seq
        await cache.set("config", "x", 1, "acme")
        assert await cache.get("config", "x", "acme", after=second) == 1


async def test_it_leaves_no_line_among_the_nodes(redis_server: EmbeddedServer, producer: DirectProducer) -> None:
    await producer.invalidate("config", "x", "acme")
    assert redis_server.command("HLEN", "{cachebus:0}:nodes") == ":0"


async def test_a_store_that_is_laid_out_otherwise_is_refused(redis_url: str) -> None:
    async with nodes(redis_url, 1, shards=3):
        with pytest.raises(ProtocolMismatch, match="shards=3"):
            async with DirectProducer.open(redis_url):
                pass


async def test_a_lost_connection_is_told_and_reopened(own_server: EmbeddedServer) -> None:
    async with DirectProducer.open(quick(own_server.url)) as producer:
        await producer.invalidate("config", "x", "acme")
        own_server.kill()

        async def refused() -> bool:
            try:
                await producer.invalidate("config", "x", "acme")
            except InvalidationFailed:
                return True
            return False

        await until(refused)
        await asyncio.to_thread(own_server.start)
        assert (await producer.invalidate("config", "x", "acme")).seq > 0
        own_server.command("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: _succeeds(producer))


async def _succeeds(producer: DirectProducer) -> bool:
    try:
        await producer.invalidate("config", "x", "acme")
    except InvalidationFailed:
        return False
    return True


async def test_a_server_that_hangs_fails_it_in_time(own_server: EmbeddedServer) -> None:
    async with DirectProducer.open(quick(own_server.url, l2_timeout_s=0.2, connect_timeout_s=0.3)) as producer:
        own_server.pause()
        for _ in range(3):
            with pytest.raises(InvalidationFailed):
                await asyncio.wait_for(producer.invalidate("config", "x", "acme"), 2)
        own_server.resume()
        await until(lambda: _succeeds(producer))


async def test_opening_and_closing(redis_url: str) -> None:
    producer = DirectProducer.open(redis_url)
    with pytest.raises(ConfigError, match="async with"):
        await producer.invalidate("config", "x", "acme")
    async with producer:
        await producer.invalidate("config", "x", "acme")
    await producer.aclose()
    with pytest.raises(ConfigError, match="async with"):
        await producer.invalidate("config", "x", "acme")
    with pytest.raises(ConfigError, match="memory"):
        DirectProducer.open("memory://")
    with pytest.raises(L2Unavailable, match=r"127\.0\.0\.1"):
        async with DirectProducer.open(f"redis://:hunter2@127.0.0.1:{free_port()}/0"):
            pass


async def test_from_another_process(cache: Cache, redis_url: str) -> None:
    code = """
import asyncio, sys
from cachebus.producers import DirectProducer
async def main():
    async with DirectProducer.open(sys.argv[1]) as producer:
        print(await producer.invalidate("config", "x", tenant_id="acme"))
asyncio.run(main())
"""
    await cache.set("config", "x", 1, "acme")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, redis_url],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert await cache.get("config", "x", "acme", after=done.stdout.strip()) is None


@pytest.mark.parametrize("tenant", [f"tenant-{at}" for at in range(6)])
async def test_another_number_of_shards_is_refused_whatever_the_tenant(redis_url: str, tenant: str) -> None:
    """Else what is said of a tenant may go to a shard that no cache reads."""
    async with nodes(redis_url, 1):
        with pytest.raises(ProtocolMismatch, match="shards=1"):
            async with DirectProducer.open(quick(redis_url, shards=4)) as producer:
                await producer.invalidate("config", "x", tenant)
