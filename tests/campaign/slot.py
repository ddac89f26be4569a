"""`python -m tests.campaign.slot`: the worker of a slot, killed at hundreds of moments under load, and what came of it.

Writers insert rows into three tables, and update and delete some that are there, in short and long transactions, some
of which are undone, whole or in part, and some stay open while much else happens, and are loaded from meanwhile; two
workers at a time follow the slot, by rules that are changed and rolled back, and are killed over and over: at a random
moment, or at an await of their own while they have changes in hand. Meanwhile the database crashes or ends its
sessions, the shared store hangs, and everything that the worker has looked at is changed beneath it: tables are
swapped, altered, truncated and taken out of the publication, partitions come and go, the publication or the slot itself
is dropped, or made anew by somebody else; others read from the slot for a while, and put older states of the worker's
own tables back; transactions are prepared, and decided later; and some workers are for another store.

At last one worker lives on while all that goes on for a while: once a row has been committed for a while, and that
worker is ready for a second, its old value may not be there. Before each row is written, a value is put into the
cache under its name. In the end none of those whose rows were committed may be there, and all of what no rule names
must be. No write of theirs may be refused for what is published.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, product
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
from tests.campaign.slot_faults import FAULTS, MENDS, SLOT
from tests.conftest import connected
from tests.support.caches import quick, until
from tests.support.command import alive
from tests.support.worker_lives import SLOT_RULES, WHENS, Relays, When, kill

SCHEMA: Final = """
CREATE TABLE public.written (data_type text, id bigint);
CREATE SCHEMA shop;
CREATE TABLE shop.short (id bigint PRIMARY KEY, tenant_id text NOT NULL, note text);
CREATE TABLE shop.long (id bigint PRIMARY KEY, tenant_id text NOT NULL, owner bigint, note text,
                        size int GENERATED ALWAYS AS (length(note)) STORED);
ALTER TABLE shop.long REPLICA IDENTITY FULL;
CREATE TABLE shop.parts (id bigint, tenant_id text NOT NULL, note text, PRIMARY KEY (id)) PARTITION BY HASH (id);
CREATE TABLE shop.part_0 PARTITION OF shop.parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE shop.part_1 PARTITION OF shop.parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO shop.short SELECT -g, 'acme', 'x' FROM generate_series(1, 20000) g;
INSERT INTO shop.long SELECT -g, 'acme', 1, 'x' FROM generate_series(1, 20000) g;
INSERT INTO shop.parts SELECT -g, 'acme', 'x' FROM generate_series(1, 20000) g;
"""
"""With rows that are there before, each of which is updated or deleted at most once."""
TABLES: Final = {"short": "short", "long": "long", "part": "parts"}
"""By the type of their records."""
WRITERS: Final = 4
AT_WORK: Final = 2
AWAITS: Final = 14
LIFE_S: Final = (0.05, 1.2)
OLD_S: Final = 4.0
GONE_WITHIN_S: Final = 120.0
PREPARING: Final = {"max_prepared_transactions": "20"}
SAMPLE: Final = 1000
LAST_S: Final = 50.0
"""How long the last worker is watched while everything goes on."""
KNOWN_WITHIN_S: Final = 12.0
"""What is missed may be unknown for two looks, or wait for open transactions for five seconds before that is told."""
STEADY_S: Final = 1.0
"""How long a worker is ready, and not only between two things that it makes up for."""
ROWS: Final = (1, 1, 1, 3, 40, 400)
INSERT: Final = """
WITH row AS (
  INSERT INTO shop.{table} (id, tenant_id, note) SELECT n, 'acme', 'x' FROM unnest($1::bigint[]) n RETURNING id)
INSERT INTO public.written SELECT '{data_type}', id FROM row
"""
UPDATE: Final = INSERT.replace(
    "INSERT INTO shop.{table} (id, tenant_id, note) SELECT n, 'acme', 'x' FROM unnest($1::bigint[]) n",
    "UPDATE shop.{table} SET note = 'yy' WHERE id = ANY ($1::bigint[])",
)
DELETE: Final = UPDATE.replace("UPDATE shop.{table} SET note = 'yy'", "DELETE FROM shop.{table}")
REFUSED: Final = (asyncpg.InvalidColumnReferenceError, asyncpg.ObjectNotInPrerequisiteStateError)
"""What a write raises that PostgreSQL refuses, as its table is published and not identified as it must be."""
CRASH, HANG = "the database crashes", "the shared store hangs"
Servers = tuple[PostgresServer, EmbeddedServer]


@dataclass
class Tally:
    """What happened, and what should not have."""

    lives: int = 0
    self_killed: int = 0
    committed: set[tuple[str, int]] = field(default_factory=set)
    undone: int = 0
    prepared: int = 0
    judged: int = 0
    """Old values that were looked for once the last worker was ready for a second."""
    faults: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def told(self) -> str:
        """In a line."""
        return (
            f"{self.lives} workers killed ({self.self_killed} at an await of their own), faults: {dict(self.faults)}, "
            f"{len(self.committed)} rows committed, {self.undone} undone, {self.prepared} prepared, "
            f"{self.judged} judged while a worker was ready, {len(self.broken)} broken promises"
        )


class Campaign:
    """One run, by dice with a seed; `servers`: what is broken meanwhile, with all that the worker looks at."""

    def __init__(self, database: str, redis_url: str, seed: int, servers: Servers | None) -> None:
        self._database, self._redis_url, self._servers = database, redis_url, servers
        self._dice = random.Random(seed)
        self._other_url, self._pause_s, self._is_mended = redis_url, (0.2, 1.2), False
        self._number = self._there = 0
        self._written: set[tuple[str, int]] = set()
        self._over = asyncio.Event()
        self.tally = Tally()

    async def run(self, lives: int) -> Tally:
        """All of it: so many workers are killed."""
        if self._servers is None:
            return await self._run(lives)
        with EmbeddedServer() as other:
            self._other_url = other.url
            return await self._run(lives)

    async def _run(self, lives: int) -> Tally:
        fates = islice(self._fates(), lives)
        async with connected(self._database) as connection:
            await connection.execute(SCHEMA)
        # Without write guards what is stored in the store's first minute does not expire when that is over.
        async with Relays() as workers, Cache(quick(self._redis_url, guard_max_s=0)) as cache:
            await workers.ready()
            kept = [f"untouched {number}" for number in range(10)]
            for name in kept:
                await cache.set("unnamed", name, name, "acme")
            kill(await self._first(workers))
            async with asyncio.TaskGroup() as group:
                writing = [group.create_task(self._write(cache)) for _ in range(WRITERS)]
                if self._servers is not None:
                    writing += [group.create_task(self._break()), group.create_task(self._prepare(cache))]
                async with asyncio.TaskGroup() as killing:
                    for _ in range(AT_WORK):
                        killing.create_task(self._kill(workers, fates))
                last = group.create_task(self._last(cache))
                if self._servers is not None:
                    await asyncio.wait((last,), timeout=LAST_S)
                self._over.set()
                await asyncio.gather(*writing)
                await self._judge(cache)
                last.cancel()
            self.tally.broken += [f"{name}: lost" for name in kept if await cache.get("unnamed", name, "acme") != name]
        return self.tally

    async def _first(self, workers: Relays) -> int:
        """What was written before there was a slot is nobody's."""
        pid = await workers.begin_slot(self._database, self._redis_url, SLOT)
        async with connected(self._database) as connection:
            sql = f"SELECT EXISTS (SELECT FROM public.cachebus_cdc_slots WHERE slot = '{SLOT}')"

            async def made() -> bool:
                with suppress(asyncpg.UndefinedTableError):
                    return bool(await connection.fetchval(sql))
                return False

            await until(made, within_s=60)
        return pid

    def _fates(self) -> Iterator[tuple[When, int | None]]:
        """First each way to end at the first awaits that matter."""
        yield from product(WHENS, (0, 1))
        while True:
            yield self._dice.choice(WHENS), self._dice.choice((None, self._dice.randrange(AWAITS)))

    # -- what goes on ------------------------------------------------------------------------------------------

    async def _write(self, cache: Cache) -> None:
        while not self._over.is_set():
            with suppress(CacheBusError, *TROUBLE):
                async with connected(self._database) as connection:
                    while not self._over.is_set():
                        try:
                            await self._transaction(cache, connection)
                        except REFUSED as error:
                            self.tally.broken.append(f"a write is refused: {error}")
                            raise
                        await asyncio.sleep(self._dice.choice((0.0, 0.002, 0.02)) + (0.1 if self._is_mended else 0.0))
            await asyncio.sleep(0.01)

    async def _transaction(self, cache: Cache, connection: asyncpg.Connection) -> None:
        """Whether a row has committed is asked of itself in the end."""
        undone = self._dice.random() < 0.1
        transaction, names = connection.transaction(), list[tuple[str, int]]()
        await transaction.start()
        for _ in range(self._dice.choice((1, 1, 3))):
            savepoint = connection.transaction() if self._dice.random() < 0.3 else None
            if savepoint is not None:
                await savepoint.start()
            names += await self._rows(cache, connection)
            if savepoint is not None:
                await (savepoint.rollback() if self._dice.random() < 0.3 else savepoint.commit())
        await asyncio.sleep(self._dice.choice((0.0, 0.0, 0.01)))
        if self._servers is not None and self._dice.random() < 0.05:
            await asyncio.sleep(self._dice.uniform(0.5, 6.0))
            await self._load(cache, names)  # the row is not to be seen yet
        await (transaction.rollback() if undone else transaction.commit())

    async def _rows(self, cache: Cache, connection: asyncpg.Connection) -> list[tuple[str, int]]:
        data_type, table = self._dice.choice(list(TABLES.items()))
        count = self._dice.choice(ROWS)
        numbers, sql = range(self._number, self._number + count), INSERT
        if self._dice.random() < 0.3:  # of rows that are there; without a whole old row a delete says too little
            sql = DELETE if table == "long" and self._dice.random() < 0.5 else UPDATE
            numbers = range(-self._there - min(count, 10), -self._there)
            self._there += len(numbers)
        else:
            self._number += count
        names = [(data_type, number) for number in numbers]
        await self._load(cache, names)
        self._written.update(names)
        await connection.execute(sql.format(data_type=data_type, table=table), list(numbers))
        return names

    async def _load(self, cache: Cache, names: list[tuple[str, int]]) -> None:
        await asyncio.gather(*(cache.set(*name, "old", "acme") for name in names))

    async def _prepare(self, cache: Cache) -> None:
        """Transactions that are prepared, and decided a while later."""
        number = 0
        while not self._over.is_set():
            await asyncio.sleep(self._dice.uniform(0.5, 3.0))
            number += 1
            gid, ends = f"campaign {number}", self._dice.choice(("COMMIT", "COMMIT", "ROLLBACK"))
            with suppress(*TROUBLE):
                async with connected(self._database) as connection:
                    if await connection.fetchval("SHOW max_prepared_transactions") == "0":
                        return
                    await connection.execute("BEGIN")
                    await self._rows(cache, connection)
                    await connection.execute(f"PREPARE TRANSACTION '{gid}'")
                    self.tally.prepared += 1
            await asyncio.sleep(self._dice.uniform(0.1, 4.0))
            await until(lambda gid=gid, ends=ends: self._decided(gid, ends), within_s=60)  # type: ignore[misc]

    async def _decided(self, gid: str, ends: str) -> bool:
        with suppress(*TROUBLE):
            async with connected(self._database) as connection:
                if await connection.fetchval("SELECT true FROM pg_prepared_xacts WHERE gid = $1", gid):
                    await connection.execute(f"{ends} PREPARED '{gid}'")
                return True
        return False

    async def _last(self, cache: Cache) -> None:
        """The last one lives. What was committed a while before is not served once it is ready for a second."""
        self._pause_s, self._is_mended = (4.0, 12.0), True
        for statement in MENDS.values() if self._servers is not None else ():
            await self._spoil(statement)
        source = SlotSource(SecretStr(self._database), slot=SLOT, publication=SLOT)
        worker = SlotWorker(quick(self._redis_url, guard_max_s=0), parse_rules(SLOT_RULES), source)

        def is_ready() -> bool:
            return all(map(worker.health.is_up, worker.health.parts))  # the beat is of a worker's own process

        async with asyncio.TaskGroup() as group:
            group.create_task(worker.run())
            while not self._over.is_set():
                before = await self._committed()
                with suppress(AssertionError):
                    await until(self._over.is_set, within_s=KNOWN_WITHIN_S)
                is_steady = False
                while not is_steady and not self._over.is_set():
                    await until(lambda: self._over.is_set() or is_ready(), within_s=GONE_WITHIN_S)
                    try:
                        await until(lambda: not is_ready(), within_s=STEADY_S)
                    except AssertionError:
                        is_steady = True
                if is_steady:
                    some = self._dice.sample(sorted(before), min(SAMPLE, len(before)))
                    old = [one for one in some if await cache.get(*one, "acme") is not None]
                    self.tally.judged += len(some)
                    self.tally.broken += [f"{of} {number}: served while the worker is ready" for of, number in old[:5]]

    async def _committed(self) -> set[tuple[str, int]]:
        with suppress(*TROUBLE):
            async with connected(self._database) as connection:
                rows = await connection.fetch("SELECT data_type, id FROM public.written")
                return {(row["data_type"], row["id"]) for row in rows}
        return set()

    async def _break(self) -> None:
        """One thing at a time."""
        postgres, store = self._servers or ()
        while not self._over.is_set():
            await asyncio.sleep(self._dice.uniform(*self._pause_s))
            fault = self._dice.choice([*FAULTS, CRASH, HANG])
            self.tally.faults[fault] += 1
            if fault == CRASH:
                await asyncio.to_thread(postgres.kill)
                await asyncio.to_thread(postgres.start)
            elif fault == HANG:
                store.pause()
                await asyncio.sleep(self._dice.uniform(0.1, 1.5))
                store.resume()
            else:
                await self._spoil(FAULTS[fault])
            if self._is_mended and fault in MENDS:
                await self._spoil(MENDS[fault])

    async def _spoil(self, sql: str) -> None:
        plain, table = self._dice.choice(["short", "long"]), self._dice.choice(list(TABLES.values()))
        sql = sql.replace("{plain}", plain).replace("{table}", table)
        with suppress(*TROUBLE):
            async with connected(self._database) as connection:
                await connection.execute(sql)

    async def _kill(self, workers: Relays, fates: Iterator[tuple[When, int | None]]) -> None:
        for when, last_await in fates:
            self.tally.lives += 1
            of_before = self._servers is not None and self._dice.random() < 0.2
            is_elsewhere = self._servers is not None and self._dice.random() < 0.15
            given = self._database, self._other_url if is_elsewhere else self._redis_url, SLOT
            pid = await workers.begin_slot(*given, last_await=last_await, when=when, of_before=of_before)
            if last_await is None:
                await asyncio.sleep(self._dice.uniform(*LIFE_S))
            else:
                with suppress(AssertionError):  # it stood by, or has found too little to do
                    await until(lambda p=pid: not alive(p), within_s=OLD_S)  # type: ignore[misc]
                self.tally.self_killed += not alive(pid)
            kill(pid)

    # -- what came of it ---------------------------------------------------------------------------------------

    async def _judge(self, cache: Cache) -> None:
        self.tally.committed = await self._committed()
        undone = self._written - self.tally.committed
        self.tally.undone = len(undone)
        left = sorted(self.tally.committed)
        deadline_s = monotonic() + GONE_WITHIN_S
        while left and monotonic() < deadline_s:
            left = [one for one in left if await cache.get(*one, "acme") is not None]
            await asyncio.sleep(0.05)
        broken = self.tally.broken
        broken += [f"{data_type} {number} was committed, and its old value is served" for data_type, number in left]
        if self._servers is None:  # else whole scopes are let go of now and then
            lost = [one for one in sorted(undone) if await cache.get(*one, "acme") is None]
            broken += [f"{data_type} {number} was undone, and is gone" for data_type, number in lost]


async def campaign(database: str, redis_url: str, *, lives: int, seed: int, servers: Servers | None = None) -> Tally:
    """Kill so many workers, and judge; all else is broken meanwhile where `servers` are given."""
    return await Campaign(database, redis_url, seed, servers).run(lives)


def on_own_servers(lives: int, seed: int, calm: bool) -> Tally:
    """On servers of its own, which are left alone if it is `calm`."""
    with PostgresServer(settings=PREPARING) as postgres, EmbeddedServer() as store:
        servers = None if calm else (postgres, store)
        return asyncio.run(campaign(postgres.url, store.url, lives=lives, seed=seed, servers=servers))


if __name__ == "__main__":
    sys.exit(command("slot", __doc__, "workers", on_own_servers))
