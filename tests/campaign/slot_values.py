"""`python -m tests.campaign.slot_values`: what caches serve, beside what the database has, after each round of faults.

In a round, rows are updated in short, long and prepared transactions and loaded all the while; workers follow the slot
by two versions of their rules, and are killed. Meanwhile rows are rewritten without a word in the log, tables are
swapped, partitions changed while they are detached, the slot is read by others or made anew, and what the worker has
for itself is locked, forgotten or brought back from earlier.

Then writers stop, and one worker lives on. Once it says that all is in order, each value in the cache must be that of
the database: one that stays another is served stale by a worker that is green.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import asyncpg
from pydantic import SecretStr

from cachebus import Cache, CacheBusError
from cachebus.base.clock import monotonic
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.outbox.database import TROUBLE
from cachebus.tools.servers.postgres import PostgresServer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.campaign.command import command
from tests.campaign.slot_faults import DROP, SLOT
from tests.conftest import connected
from tests.support.caches import quick, until
from tests.support.worker_lives import SLOT_RULES, WHENS, Relays, kill

TABLES: Final = {"short": "short", "long": "long", "part": "parts"}
"""By the type of their records."""
ROWS: Final = 40
COLUMNS: Final = (
    "id bigint, tenant_id text NOT NULL DEFAULT 'acme', owner bigint, note text, v bigint, PRIMARY KEY (id)"
)
SCHEMA: Final = f"""
CREATE SCHEMA shop;
CREATE TABLE shop.short ({COLUMNS});
CREATE TABLE shop.long ({COLUMNS});
ALTER TABLE shop.long REPLICA IDENTITY FULL;
CREATE TABLE shop.parts ({COLUMNS}) PARTITION BY HASH (id);
CREATE TABLE shop.part_0 PARTITION OF shop.parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE shop.part_1 PARTITION OF shop.parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
"""
WRITE: Final = """
INSERT INTO shop.{table} AS row (id, note, v) VALUES ($1, 'a', 1)
ON CONFLICT (id) DO UPDATE SET v = row.v + 1, note = (row.v + 1)::text
"""
VALUE: Final = "SELECT coalesce((SELECT v || '/' || note FROM shop.{table} WHERE id = $1), 'none')"
OWN: Final = "public.cachebus_cdc_"
LOCKED: Final = "BEGIN; SET LOCAL lock_timeout = '1s'; {}; SELECT pg_sleep(1.5); COMMIT"
FAULTS: Final = {
    "a session ends": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'cachebus-%'",
    "rows are rewritten": "ALTER TABLE shop.{table} ALTER COLUMN v TYPE bigint USING v + 1000",
    "a table is swapped for another one": """
        BEGIN; LOCK TABLE shop.{plain}; CREATE TABLE shop.new (LIKE shop.{plain} INCLUDING ALL);
        ALTER TABLE shop.new REPLICA IDENTITY FULL; INSERT INTO shop.new SELECT * FROM shop.{plain};
        UPDATE shop.new SET v = v + 1000; DROP TABLE shop.{plain}; ALTER TABLE shop.new RENAME TO {plain}; COMMIT""",
    "a table is truncated": "TRUNCATE shop.{table}",
    "a table leaves the publication": "ALTER PUBLICATION campaign DROP TABLE ONLY shop.{table}",
    "the publication is dropped": "DROP PUBLICATION campaign",
    "a partition changes while it is none": """
        BEGIN; ALTER TABLE shop.parts DETACH PARTITION shop.part_0; UPDATE shop.part_0 SET v = v + 1000;
        ALTER TABLE shop.parts ATTACH PARTITION shop.part_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0); COMMIT""",
    "old rows are told with less": """
        ALTER TABLE shop.long REPLICA IDENTITY DEFAULT; UPDATE shop.long SET v = v + 1, note = v::text WHERE id < 9;
        ALTER TABLE shop.long REPLICA IDENTITY FULL""",
    "the slot is dropped": DROP,
    "the slot is made anew": f"{DROP} SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')",
    "others read from the slot": f"""
        SELECT count(*) FROM pg_logical_slot_get_binary_changes('{SLOT}', NULL, NULL,
          'proto_version', '1', 'publication_names', 'campaign')""",
    "a row of the worker's is locked": LOCKED.format(f"SELECT 1 FROM {OWN}slots FOR UPDATE"),
    "a table of the worker's is locked": LOCKED.format(f"LOCK TABLE {OWN}held IN ACCESS EXCLUSIVE MODE"),
    "the catalogue is locked": LOCKED.format("LOCK TABLE pg_catalog.pg_inherits IN ACCESS EXCLUSIVE MODE"),
    "what is remembered is forgotten": f"DELETE FROM {OWN}slots",
    "what is held is dropped": f"DROP TABLE {OWN}held",
    "what is remembered is saved": f"DROP TABLE IF EXISTS public.saved; CREATE TABLE public.saved AS TABLE {OWN}slots",
    "what is remembered comes back": f"""
        BEGIN; DELETE FROM {OWN}slots; INSERT INTO {OWN}slots SELECT * FROM public.saved; COMMIT""",
}
"""What is done to the database by SQL. {plain}: a table without partitions."""
HIDES: Final = {
    "the slot is dropped": {"what is remembered comes back"},
    "the slot is made anew": {"what is remembered comes back"},
    "what is remembered comes back": {"the slot is dropped", "the slot is made anew"},
}
"""Of which others each leaves no trace, as no worker has looked in between."""
SETTINGS: Final = {"max_prepared_transactions": "20"}
ROUND_S: Final = 6.0
OPEN_S: Final = (0.3, 6.0)
GREEN_WITHIN_S: Final = 90.0
STALE_FOR_S: Final = 5.0


@dataclass
class Tally:
    """What happened, and what should not have."""

    rounds: int = 0
    lives: int = 0
    writes: int = 0
    compared: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def told(self) -> str:
        """In a line."""
        return (
            f"{self.rounds} rounds, {self.lives} workers killed, faults: {dict(self.faults)}, {self.writes} writes, "
            f"{self.compared} values compared, {len(self.broken)} broken promises"
        )


class Rounds:
    """One run, by dice with a seed. `calm`: the database is left alone."""

    def __init__(self, database: str, redis_url: str, seed: int, *, calm: bool) -> None:
        self._database, self._redis_url, self._calm = database, redis_url, calm
        self._dice = random.Random(seed)
        self._prepared = 0
        self.tally = Tally()

    async def run(self, lives: int) -> Tally:
        """All of it: until so many workers are killed."""
        async with connected(self._database) as connection:
            await connection.execute(SCHEMA)
        async with Relays() as workers, Cache(quick(self._redis_url, guard_max_s=0)) as cache:
            await workers.ready()
            while self.tally.lives < lives:
                self.tally.rounds += 1
                await self._round(workers, cache)
        return self.tally

    async def _round(self, workers: Relays, cache: Cache) -> None:
        did = list[str]()
        async with self._goes_on(self._load, cache), self._goes_on(self._hold):
            async with self._goes_on(self._write), self._goes_on(self._write), asyncio.TaskGroup() as group:
                group.create_task(self._kill(workers, monotonic() + ROUND_S))
                if not self._calm:
                    group.create_task(self._break(did, monotonic() + ROUND_S))
            source = SlotSource(SecretStr(self._database), slot=SLOT, publication=SLOT)
            one = SlotWorker(quick(self._redis_url, guard_max_s=0), parse_rules(SLOT_RULES), source)
            working = asyncio.create_task(one.run())
            try:
                self.tally.broken += [
                    f"round {self.tally.rounds} ({did}): {said}" for said in await self._judged(one, cache)
                ]
            finally:
                one.drain()
                await asyncio.wait_for(working, 30)

    # -- what goes on --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _goes_on(self, doing: object, *given: object) -> AsyncIterator[None]:
        """Over and over, with a connection of its own, whatever befalls that."""

        async def over_and_over() -> None:
            while True:
                with suppress(CacheBusError, TimeoutError, *TROUBLE):
                    async with connected(self._database) as connection:
                        await connection.execute("SET lock_timeout = '1s'")
                        while True:
                            await doing(connection, *given)  # type: ignore[operator]
                await asyncio.sleep(0.05)

        task = asyncio.create_task(over_and_over())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def _write(self, connection: asyncpg.Connection) -> None:
        async with connection.transaction():
            for _ in range(self._dice.choice((1, 1, 3))):
                await self._written(connection)
        await asyncio.sleep(self._dice.choice((0.005, 0.02, 0.1)))

    async def _written(self, connection: asyncpg.Connection) -> None:
        table = self._dice.choice(list(TABLES.values()))
        await connection.execute(WRITE.format(table=table), self._dice.randrange(ROWS))
        self.tally.writes += 1

    async def _hold(self, connection: asyncpg.Connection) -> None:
        """A transaction that stays open for long, and may be prepared then."""
        await connection.execute("BEGIN")
        await self._written(connection)
        await asyncio.sleep(self._dice.uniform(*OPEN_S))
        if self._dice.random() < 0.5:
            await connection.execute(self._dice.choice(("COMMIT", "ROLLBACK")))
            return
        self._prepared += 1
        name = f"campaign {self._prepared}"
        await connection.execute(f"PREPARE TRANSACTION '{name}'")
        try:
            await asyncio.sleep(self._dice.uniform(*OPEN_S))
        finally:
            await connection.execute(f"COMMIT PREPARED '{name}'")

    async def _load(self, connection: asyncpg.Connection, cache: Cache) -> None:
        data_type, number = self._dice.choice(list(TABLES)), self._dice.randrange(ROWS)
        await cache.get_or_load(data_type, number, lambda: self._value(connection, data_type, number), tenant_id="acme")
        await asyncio.sleep(0.003)

    async def _value(self, connection: asyncpg.Connection, data_type: str, number: int) -> str:
        return str(await connection.fetchval(VALUE.format(table=TABLES[data_type]), number))

    async def _kill(self, workers: Relays, until_s: float) -> None:
        while monotonic() < until_s:
            self.tally.lives += 1
            last_await = self._dice.choice((None, None, self._dice.randrange(14)))
            of_before = not self._calm and self._dice.random() < 0.3
            given = self._database, self._redis_url, SLOT
            pid = await workers.begin_slot(
                *given, last_await=last_await, when=self._dice.choice(WHENS), of_before=of_before
            )
            await asyncio.sleep(self._dice.uniform(0.1, 2.5))
            kill(pid)

    async def _break(self, did: list[str], until_s: float) -> None:
        while monotonic() < until_s:
            await asyncio.sleep(self._dice.uniform(0.3, 2.0))
            fault = self._dice.choice(list(FAULTS))
            if HIDES.get(fault, set()).intersection(did):
                continue
            did.append(fault)
            self.tally.faults[fault] += 1
            plain, table = self._dice.choice(["short", "long"]), self._dice.choice(list(TABLES.values()))
            with suppress(*TROUBLE):
                async with connected(self._database) as connection:
                    await connection.execute("SET lock_timeout = '1s'")
                    await connection.execute(FAULTS[fault].replace("{plain}", plain).replace("{table}", table))

    # -- what came of it -----------------------------------------------------------------------------------------------

    async def _judged(self, one: SlotWorker, cache: Cache) -> list[str]:
        """What is wrong once the worker says that all is in order."""
        try:
            await until(lambda: all(map(one.health.is_up, one.health.parts)) and one.follows, within_s=GREEN_WITHIN_S)
        except AssertionError:
            return [f"it is never in order: {one.health.as_dict()['parts']}"]
        stale, since_s = await self._stale(cache), monotonic()
        while stale and monotonic() - since_s < STALE_FOR_S:
            await asyncio.sleep(0.2)
            stale &= await self._stale(cache)
        return [f"{data_type} {number} is {has}, and {got} is served" for data_type, number, got, has in sorted(stale)]

    async def _stale(self, cache: Cache) -> set[tuple[str, int, str, str]]:
        found = set[tuple[str, int, str, str]]()
        async with connected(self._database) as connection:
            for data_type in TABLES:
                for number in range(ROWS):
                    got = await cache.get(data_type, number, tenant_id="acme")
                    self.tally.compared += got is not None
                    if got is not None and got != (has := await self._value(connection, data_type, number)):
                        found.add((data_type, number, str(got), has))
        return found


def on_own_servers(lives: int, seed: int, calm: bool) -> Tally:
    """On servers of its own."""
    with PostgresServer(settings=SETTINGS) as postgres, EmbeddedServer() as store:
        return asyncio.run(Rounds(postgres.url, store.url, seed, calm=calm).run(lives))


if __name__ == "__main__":
    sys.exit(command("slot_values", __doc__, "workers", on_own_servers))
