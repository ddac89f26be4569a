"""Databases that are not in UTF-8, with rows that can't be told in it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import asyncpg
import pytest
from pydantic import SecretStr

from cachebus import Cache
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.tools.servers.postgres import PostgresServer
from tests.conftest import connected
from tests.support.caches import quick, until
from tests.support.changes import running, tell

RULES = """
tenants = ["acme"]
[[rule]]
table = "public.orders"
data_type = "order"
resource_id = "{id}"
tenant_id = "{tenant}"
on_truncate = "all"
"""
TABLE = "CREATE TABLE orders (id text, tenant text, note text, PRIMARY KEY (id, tenant))"
ODD = {"WIN1252": "chr(129)", "EUC_JP": "E'\\x8f\\xa2\\xa1'", "SQL_ASCII": "E'gr\\xfcn'"}
"""By encoding: a text that UTF-8 has not."""
GREEN = {"WIN1252": "'gr' || chr(252) || 'n'", "EUC_JP": "E'\\xce\\xd0'", "SQL_ASCII": "E'\\xe7\\xb7\\x91'"}
"""And one that it has."""


@pytest.fixture(params=ODD)
async def odd(request: pytest.FixtureRequest, postgres: PostgresServer) -> AsyncIterator[tuple[str, str, str]]:
    """A database in another encoding, and SQL for a text that is odd there, and one that is not."""
    name = f"test_{secrets.token_hex(6)}"
    made = f"CREATE DATABASE {name} ENCODING '{request.param}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    async with connected(postgres.url) as connection:
        await connection.execute(made)
    yield postgres.url_of(name), ODD[request.param], GREEN[request.param]
    async with connected(postgres.url) as connection:
        await connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1", name
        )
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_row_that_is_in_no_encoding_holds_up_nothing(odd: tuple[str, str, str], redis_url: str) -> None:
    database, text, green = odd
    await tell(database, [TABLE])
    one = SlotWorker(quick(redis_url), parse_rules(RULES), SlotSource(SecretStr(database), publication="k\u00fcche"))
    named = "gr\u00fcn" if green.startswith("'") else "\u7dd1"
    async with Cache(quick(redis_url)) as cache, running(one):

        async def gone(resource_id: str) -> bool:
            return await cache.get("order", resource_id, tenant_id="acme") is None

        for name in ("1", "3", named):
            await cache.set("order", name, "old", tenant_id="acme")
        await tell(database, [f"INSERT INTO orders VALUES ('1', 'acme', {text})"])
        await until(lambda: gone("1"))  # no rule looks at that column
        assert not await dead(database)
        await tell(database, [f"INSERT INTO orders VALUES ({text}, 'acme', ''), ({green}, 'acme', {text})"])
        await until(lambda: gone(named))
        await tell(database, ["INSERT INTO orders VALUES ('3', 'acme', '')"])
        await until(lambda: gone("3"))
        (letter,) = await dead(database)
        assert "bytes that the database's encoding has no character for" in letter["reason"]
        assert '"tenant": "acme"' in letter["payload"]


async def dead(database: str) -> list[asyncpg.Record]:
    async with connected(database) as connection:
        return await connection.fetch("SELECT reason, payload FROM cachebus_cdc_dead")
