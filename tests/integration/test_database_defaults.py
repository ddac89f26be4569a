"""What a database gives to all its sessions, by ALTER DATABASE ... SET, takes nothing from a worker's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from cachebus import Cache
from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.slot.postgres import PostgresSource, SlotSource, SlotWorker
from cachebus.consumers.cdc.slot.replay import replay as replay_changes
from cachebus.consumers.outbox import OutboxRelay, create_tables, replay
from cachebus.consumers.outbox.database import connected
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.apply import Applier
from cachebus.consumers.worker.preflight import preflight
from cachebus.consumers.worker.source_worker import SourceWorker
from tests.contract.source_rigs import RULES, TOO_LONG, InPostgres, OnSlot, command
from tests.support.caches import quick, until
from tests.support.changes import tell

DEFAULTS = {
    "read only": ("default_transaction_read_only = on",),
    "repeatable read": ("default_transaction_isolation = 'repeatable read'",),
    "serializable": ("default_transaction_isolation = serializable",),
    "all": ("default_transaction_read_only = on", "default_transaction_isolation = serializable"),
}
RIGS = {"outbox": InPostgres, "slot": OnSlot}


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.2)


@pytest.fixture(params=DEFAULTS)
def defaults(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What the database gives to its sessions."""
    return DEFAULTS[request.param]


def writable(database: str) -> str:
    """The URL of sessions that are as ours, for what the test itself writes."""
    return f"{database}?default_transaction_read_only=off"


async def give(database: str, defaults: tuple[str, ...]) -> None:
    name = database.rpartition("/")[2]
    await tell(writable(database), [f"ALTER DATABASE {name} SET {default}" for default in defaults])


async def absent(cache: Cache, number: str) -> bool:
    return await cache.get("config", number, tenant_id="acme") is None


@pytest.mark.parametrize("kind", RIGS)
async def test_a_worker_works_as_anywhere(
    kind: str, database: str, redis_url: str, defaults: tuple[str, ...], tmp_path: Path
) -> None:
    rig = RIGS[kind](database)
    await rig.begin(quick(redis_url), tmp_path)
    await give(database, defaults)
    one = rig.worker()
    rig._database = writable(database)
    async with Cache(quick(redis_url)) as cache:
        task = asyncio.create_task(one.run())
        try:
            await until(lambda: task.done() or one.health.ready)
            for number in ("1", "2"):
                await cache.set("config", number, "old", tenant_id="acme")
            await rig.put(["1", TOO_LONG, "2"])
            for number in ("1", "2"):
                await until(lambda number=number: absent(cache, number))
            await until(lambda: _none_left(rig))
            assert len(await rig.dead()) == 1
            assert one.health.ready, one.health.as_dict()
            wrong = [seen for seen in await preflight(rig.worker()) if seen.findings or not seen.looked_at]
            assert not wrong
        finally:
            one.drain()
            await asyncio.wait_for(task, 20)


async def _none_left(rig: InPostgres) -> bool:
    return not await rig.left()


async def test_dead_letters_are_brought_back(database: str, redis_url: str, defaults: tuple[str, ...]) -> None:
    await give(database, defaults)
    await create_tables(database)
    rows = "(namespace, row_id, command, reason, attempts, created_at)"
    put = f"INSERT INTO cachebus_outbox_dead {rows} VALUES ('cachebus', 1, '{{}}', 'odd', 1, now())"
    await tell(writable(database), [put])
    assert await replay(database, "cachebus") == 1


async def test_changes_that_were_set_aside_are_brought_back(
    database: str, redis_url: str, defaults: tuple[str, ...], tmp_path: Path
) -> None:
    rig = OnSlot(database)
    await rig.begin(quick(redis_url), tmp_path)
    rules = parse_rules(RULES)
    one = SlotWorker(quick(redis_url), rules, SlotSource(SecretStr(database)))
    task = asyncio.create_task(one.run())
    try:
        await until(lambda: task.done() or one.health.ready)
        await give(database, defaults)
        columns = "(slot, source, payload, digest, reason, attempts)"
        values = f"('cachebus_cdc', '0/1', '{command('1', 'acme')}', 'd', 'odd', 1)"
        await tell(writable(database), [f"INSERT INTO cachebus_cdc_dead {columns} VALUES {values}"])
        applier: Applier = one._applier
        assert (await replay_changes(SecretStr(database), "cachebus_cdc", Router(rules), applier)).applied == 1
    finally:
        one.drain()
        await asyncio.wait_for(task, 20)


@pytest.mark.parametrize("kind", RIGS)
async def test_each_session_of_ours_begins_ordinary_transactions(
    kind: str, database: str, redis_url: str, defaults: tuple[str, ...], tmp_path: Path
) -> None:
    """One that keeps its snapshot would wait in vain for a commit to be seen."""
    await give(database, defaults)
    sessions: list[Any] = []
    worker: SourceWorker
    if kind == "slot":
        worker = SlotWorker(quick(redis_url), parse_rules(RULES), SlotSource(SecretStr(database)))
        source = worker.source
        assert isinstance(source, PostgresSource)
        sessions += [source._connected("0"), source._connected("1000")]
    else:
        worker = OutboxRelay(database, quick(redis_url))
        sessions += [connected(database)]
    for session in sessions:
        async with session as connection:
            assert await _said(connection, "transaction_isolation") == "read committed"
            assert await _said(connection, "transaction_read_only") == "off"


async def _said(connection: asyncpg.Connection, name: str) -> str:
    return str(await connection.fetchval(f"SHOW {name}"))
