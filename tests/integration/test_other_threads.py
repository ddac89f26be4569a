"""What may be asked of a cache from another thread than that of its event loop, and what may not."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import httpx2 as httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, make_asgi_app, start_http_server
from prometheus_client.exposition import generate_latest

from cachebus import Cache, ConfigError, current_cache, lifespan
from cachebus.observe.prometheus import CacheCollector
from cachebus.tools.servers.daemon import free_port
from tests.support.caches import nodes, quick


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """One that has loaded something."""
    async with nodes(redis_url, 1) as (cache,):
        await cache.get_or_load("config", "x", lambda: 1, "acme")
        yield cache


async def test_its_figures_and_whether_it_is_ready(cache: Cache) -> None:
    assert await asyncio.to_thread(cache.ready)
    assert (await asyncio.to_thread(cache.stats)).loads == 1


async def test_figures_that_change_while_they_are_counted(cache: Cache) -> None:
    """New data types come all the time; the other thread counts a hundred times."""
    seen = 0

    def count() -> int:
        return sum(cache.stats().loads for _ in range(100)) and cache.stats().loads

    counting = asyncio.ensure_future(asyncio.to_thread(count))
    while not counting.done():
        seen += 1
        await cache.get_or_load(f"type-{seen}", "x", lambda: 1, "acme")
    assert 1 <= await counting <= seen + 1


def lines_of(text: str) -> int:
    """How many of them are ours."""
    return text.count("\ncachebus_")


async def test_the_metrics_server_of_a_thread(cache: Cache) -> None:
    registry = CollectorRegistry()
    registry.register(CacheCollector(cache.stats))
    port = free_port()
    server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    try:
        with closing(await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/metrics")) as answer:
            assert lines_of(answer.read().decode()) > 50
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()


async def test_the_metrics_application(cache: Cache) -> None:
    registry = CollectorRegistry()
    registry.register(CacheCollector(cache.stats))
    transport = httpx.ASGITransport(app=make_asgi_app(registry))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        assert lines_of((await client.get("/metrics/")).text) > 50


def test_an_endpoint_that_runs_in_a_thread(redis_url: str) -> None:
    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(quick(redis_url)):
            yield

    app, registry = FastAPI(lifespan=opened), CollectorRegistry()
    registry.register(CacheCollector(lambda: current_cache().stats()))

    @app.get("/metrics")
    def metrics() -> str:
        assert current_cache().ready()
        return generate_latest(registry).decode()

    with TestClient(app) as client:
        assert lines_of(client.get("/metrics").json()) > 50


async def test_what_reads_or_writes_does_not_run_there(cache: Cache) -> None:
    def read() -> None:
        with pytest.raises(ConfigError, match="belongs to another event loop"):
            asyncio.run(cache.get("config", "y", "acme"))
        with pytest.raises(ConfigError, match="belongs to another event loop"):
            cache.write_guard([("config", "x")], "acme")

    await asyncio.to_thread(read)
