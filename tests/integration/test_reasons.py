"""Who invalidated, and why: each event says it, and `cachebus log` shows it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cachebus import Cache, ConfigError, Settings, invalidate_coordinated, invalidate_resource_cache, lifespan
from cachebus.consumers.outbox import OutboxRelay, create_tables
from cachebus.producers import DirectProducer, Outbox, OutboxProducer
from cachebus.wire import event as events
from tests.conftest import connected
from tests.support.caches import QUICK, parts, until
from tests.support.cdc_slot import worker
from tests.support.changes import SCHEMA, running, tell
from tests.support.command import ran
from tests.support.outbox import running as relaying
from tests.support.outbox import settings

WHY = "price import 17"


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    async with lifespan(Settings(url=redis_url, node_name="web-3", **QUICK)) as opened:
        yield opened


async def told(cache: Cache) -> list[tuple[str, str]]:
    """Origin and reason of all that the log has, oldest first."""
    store, found = parts(cache).store, []
    for shard in range(cache.settings.shards):
        for entry in await store.log(shard, 0, 1000):
            found += [(part.origin, part.reason) for part in events.decode(entry.message).parts]
    return found


async def guarded(cache: Any, why: str) -> None:
    async with cache.write_guard([("price", "1")], "acme", db_timeout_s=1, reason=why):
        pass


VERBS: dict[str, Callable[[Any, str], Awaitable[Any]]] = {
    "invalidate": lambda c, why: c.invalidate("price", "1", "acme", reason=why),
    "invalidate_scope": lambda c, why: c.invalidate_scope("acme", "price", reason=why),
    "invalidate_tags": lambda c, why: c.invalidate_tags(["t"], "acme", reason=why),
    "invalidate_type": lambda c, why: c.invalidate_type("price", reason=why),
    "clear": lambda c, why: c.clear(reason=why),
}
CACHES: dict[str, Callable[[Any, str], Awaitable[Any]]] = VERBS | {
    "guard": guarded,
    "invalidate_coordinated": lambda _, why: invalidate_coordinated("acme", "price", "1", reason=why),
    "invalidate_resource_cache": lambda _, why: invalidate_resource_cache("price", "1", "acme", reason=why),
}
PRODUCERS: dict[str, Callable[[Any, str], Awaitable[Any]]] = VERBS | {
    "invalidate_coordinated": lambda p, why: p.invalidate_coordinated("acme", "price", "1", reason=why)
}


@pytest.mark.parametrize("verb", CACHES)
async def test_a_node_says_that_it_was_and_why(cache: Cache, verb: str) -> None:
    await CACHES[verb](cache, WHY)
    said = await told(cache)
    assert said and {why for _, why in said} == {WHY}
    assert all(who.startswith("web-3") for who, _ in said)


@pytest.mark.parametrize("verb", PRODUCERS)
async def test_a_producer_says_that_it_was_and_why(cache: Cache, redis_url: str, verb: str) -> None:
    given = Settings(url=redis_url, node_name="import", **QUICK)
    async with DirectProducer.open(given) as producer:
        await PRODUCERS[verb](producer, WHY)
    assert set(await told(cache)) == {("producer import", WHY)}


@pytest.mark.parametrize("reason", ["", 201 * "x", 7, "\udcff"])
async def test_what_is_no_reason_is_refused_before_anything_is_done(
    cache: Cache, redis_url: str, database: str, reason: Any
) -> None:
    why = "^reason must be a text of 1 to 200 characters$"
    if reason == "\udcff":
        why = "^reason is not valid Unicode: it has a lone surrogate$"
    for verb in CACHES.values():
        with pytest.raises(ValueError, match=why):
            await verb(cache, reason)
    given = Settings(url=redis_url, **QUICK)
    async with DirectProducer.open(given) as producer:
        for verb in PRODUCERS.values():
            with pytest.raises(ValueError, match=why):
                await verb(producer, reason)
    await create_tables(database)
    async with connected(database) as connection, connection.transaction():
        for verb in (PRODUCERS[name] for name in PRODUCERS if hasattr(OutboxProducer, name)):
            with pytest.raises(ValueError, match=why):
                await verb(OutboxProducer(connection, Outbox(given)), reason)
    assert await told(cache) == []


def test_a_producers_name_has_bytes() -> None:
    with pytest.raises(ConfigError, match="lone surrogate"):
        DirectProducer("redis://127.0.0.1:1/0", name="\udcff")


async def test_of_a_row_the_relay_says_which_it_was_and_why(cache: Cache, database: str, redis_url: str) -> None:
    await create_tables(database)
    given = settings(redis_url, node_name="relay-1")
    async with connected(database) as connection, connection.transaction():
        producer = OutboxProducer(connection, Outbox(given))
        await producer.invalidate("price", "1", "acme", reason=WHY)
        await producer.invalidate("price", "2", "acme", reason="by hand")
        await producer.invalidate_coordinated("acme", "price", "3", [{"data_type": "list"}])
    async with relaying(OutboxRelay(database, given)):
        await until(lambda: told(cache))
    assert await told(cache) == [("worker outbox relay-1 row 1 to row 3", f"{WHY}; by hand")]


async def test_of_changes_the_worker_says_where_in_the_log_they_were(
    cache: Cache, database: str, redis_url: str
) -> None:
    await tell(database, [SCHEMA])
    async with running(worker(database, redis_url)):
        await tell(database, ["INSERT INTO shop.settings VALUES ('a', 'x')"])
        await until(lambda: told(cache))
    ((who, why),) = await told(cache)
    assert re.fullmatch(r"worker cdc \S+ [0-9A-F]+/[0-9A-F]+", who)
    assert why == ""


async def test_an_operator_says_why_and_the_log_shows_it(cache: Cache, redis_url: str, tmp_path: Path) -> None:
    async def command(*arguments: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(ran, *arguments, "--url", redis_url, folder=tmp_path)

    asked = ("invalidate", "price", "1", "--tenant", "acme", "--reason")
    assert (await command(*asked, "wrong since noon"))[0] == 0
    _, out, _ = await command("log", "price", "1", "--tenant", "acme")
    assert "cachebus invalidate " in out and out.endswith("acme | price | 1 (wrong since noon)\n")
    status, _, errors = await command(*asked, 201 * "x")
    assert (status, "--reason must be a text of 1 to 200 characters" in errors) == (2, True)
    status, _, errors = await command(*asked, "\udcff")
    assert (status, errors) == (2, "cachebus: --reason is not valid Unicode: it has a lone surrogate\n")
