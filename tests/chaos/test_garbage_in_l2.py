"""What somebody else wrote under cachebus's own keys is counted and healed; invalidations go on (G1, G9)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.keys.key import bucket_of
from cachebus.resp import Connection, parse_address
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.poll import eventually


@asynccontextmanager
async def closing(connection: Connection) -> AsyncIterator[None]:
    try:
        yield
    finally:
        connection.close()


MARKS = f"{{cachebus:0}}:marks:{bucket_of('acme')}"
SETTINGS = {"staleness_bound_s": 0.6, "probe_interval_s": 0.1}
GARBAGE = {
    "an id from the clock in the log": ("XADD", "{cachebus:0}:log", "*", "x", "y"),
    "a string for the log": ("SET", "{cachebus:0}:log", "x"),
    "a string for the marks": ("SET", MARKS, "x"),
    "a string for the marks of all tenants": ("SET", "{cachebus:0}:marks:**", "x"),
    "a string for the counts of marks": ("SET", "{cachebus:0}:buckets", "x"),
    "a string for the guards": ("SET", "{cachebus:0}:guards", "x"),
    "a string for meta": ("SET", "{cachebus:0}:meta", "x"),
    "a string for the nodes": ("SET", "{cachebus:0}:nodes", "x"),
    "a stray mark": ("ZADD", MARKS, "7", "x"),
    "a stray guard": ("HSET", "{cachebus:0}:guards", "x", "y"),
    "a word for the seq": ("HSET", "{cachebus:0}:meta", "seq", "x"),
}


@pytest.mark.parametrize("command", GARBAGE.values(), ids=GARBAGE.keys())
async def test_an_invalidation_still_reaches_every_node(server_kinds: EmbeddedServer, command: tuple[str, ...]) -> None:
    settings = Settings(url=server_kinds.url, **SETTINGS)
    connection = await Connection.open(parse_address(server_kinds.url), Patience(2, 2, monotonic))
    async with closing(connection), Cache.open(settings) as a, Cache.open(settings) as b:
        await a.set("config", "x", 1, tenant_id="acme")
        await a.invalidate_scope(tenant_id="acme", data_type="other")  # so that there are marks
        async with a.write_guard([("guarded", "x")], tenant_id="acme", db_timeout_s=5):
            pass
        assert await b.get("config", "x", tenant_id="acme") == 1
        if command[0] == "SET":
            await connection.call("DEL", command[1])
        await connection.call(*command)

        await a.invalidate("config", "x", tenant_id="acme")

        async def gone() -> bool:
            return await b.get("config", "x", tenant_id="acme") is None

        await eventually(gone, within_s=0.7)
        await a.set("config", "x", 1, tenant_id="acme")
        await a.invalidate_scope(tenant_id="acme", data_type="config")
        await eventually(gone, within_s=0.7)
        async with a.write_guard([("config", "x")], tenant_id="acme", db_timeout_s=5):
            assert not (await b.set("config", "x", 1, tenant_id="acme")).stored
        await a.set("config", "x", 2, tenant_id="acme")
        await a.invalidate("config", "x", tenant_id="acme")
        await eventually(gone, within_s=0.7)
