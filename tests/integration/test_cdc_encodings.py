"""Databases that are not in UTF-8, with rows that can't be told in it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import asyncpg
import pytest
from pydantic import SecretStr

from cachebus import Cache
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.slot.encodings import _PYTHONS, decoded, python_name
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
GREEN = {
    "WIN1252": "'gr' || chr(252) || 'n'",
    "EUC_JP": "E'\\xce\\xd0\\xa1\\xc1'",
    "SQL_ASCII": "E'\\xe7\\xb7\\x91\\xef\\xbd\\x9e'",
}
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
    named = "gr\u00fcn" if green.startswith("'") else "\u7dd1\uff5e"
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


# What the server can't convert is null. One byte, two, and three behind a 0x8f are all that there is of characters.
TRIED = """
CREATE FUNCTION pg_temp.tried(one bytea, encoding text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN RETURN convert_from(one, encoding); EXCEPTION WHEN OTHERS THEN RETURN NULL; END $$
"""
ONE = "SELECT set_byte('\\x00', 0, a) AS data FROM generate_series(128, 255) a"
TWO = """
SELECT set_byte(set_byte('\\x0000', 0, a), 1, b) FROM generate_series(128, 255) a, generate_series(161, 254) b
"""
THREE = """
SELECT set_byte(set_byte('\\x8f0000', 1, a), 2, b) FROM generate_series(161, 254) a, generate_series(161, 254) b
"""
OF_SEVERAL_BYTES = {"EUC_JP": (TWO, THREE), "EUC_JIS_2004": (TWO, THREE), "EUC_KR": (TWO,), "EUC_CN": (TWO,)}


@pytest.mark.parametrize("encoding", sorted(set(_PYTHONS) - {"UTF8", "SQL_ASCII"}))
async def test_text_that_the_server_does_not_convert_is_read_as_it_would_be(
    postgres: PostgresServer, encoding: str
) -> None:
    characters = " UNION ALL ".join((ONE, *OF_SEVERAL_BYTES.get(encoding, ())))
    async with connected(postgres.url) as connection:
        await connection.execute(TRIED)
        rows = await connection.fetch(
            f"SELECT data, pg_temp.tried(data, $1) AS text FROM ({characters}) AS characters", encoding
        )
    read = {row["data"]: decoded(row["data"], python_name(encoding)) for row in rows if row["text"] is not None}
    assert len(read) > 40
    other = [row["data"] for row in rows if row["data"] in read and read[row["data"]] != row["text"]]
    assert not [data for data in other if "\\x" not in read[data]]


async def dead(database: str) -> list[asyncpg.Record]:
    async with connected(database) as connection:
        return await connection.fetch("SELECT reason, payload FROM cachebus_cdc_dead")
