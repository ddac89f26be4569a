"""`python -m tests.campaign.relay`: the outbox's relay, killed at hundreds of moments under load, and what came of it.

Writers change rows and write into the outbox in one transaction, some of which are undone; two relays at a time carry
that on, and are killed over and over: at a random moment, or at an await of their own. Meanwhile the database crashes
now and then or ends its sessions, and the shared store hangs. In the end each committed write must be in the shared
store's log, and on every node, and none that was undone.

With a seed that is even, some relays are for another store. What these take is in no log, and is made up for: then it
counts what nodes serve.
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
from typing import Any, Final

import asyncpg

from cachebus import Cache, CacheBusError
from cachebus.consumers.outbox import create_tables
from cachebus.consumers.outbox.database import TROUBLE
from cachebus.consumers.worker.source import AGAIN_S
from cachebus.producers import Outbox, OutboxProducer
from cachebus.producers.outbox import OutboxTable
from cachebus.tools.servers.postgres import PostgresServer
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.wire import event as events
from tests.campaign.command import command
from tests.conftest import connected
from tests.support.caches import nodes, parts, until
from tests.support.command import alive
from tests.support.outbox import put, settings, waiting
from tests.support.worker_lives import WHENS, Relays, When, kill

THINGS: Final = 100
WRITERS: Final = 8
AT_WORK: Final = 2
"""Relays at a time."""
AWAITS: Final = 12
"""Awaits with rows in hand within which a relay kills itself: those of some six batches."""
LIFE_S: Final = (0.005, 0.25)
OLD_S: Final = 10.0
"""Within which one that is to end by itself finds enough to do."""
AT_ONCE: Final = 1000
FAULTS: Final = (
    "the database crashes",
    "it ends its sessions",
    "the shared store hangs",
    "a table is swapped",
    "the table of the dead is gone for a while",
)
KEEPS: Final = """
CREATE OR REPLACE FUNCTION keeps() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE OR REPLACE TRIGGER keeps BEFORE {} ON cachebus_outbox FOR EACH ROW EXECUTE FUNCTION keeps()"""
KEEPS_NO_MORE: Final = "DROP TRIGGER IF EXISTS keeps ON cachebus_outbox"
HIDES_NO_MORE: Final = "ALTER TABLE cachebus_outbox DISABLE ROW LEVEL SECURITY"
FOR_A_WHILE: Final = {
    "a trigger keeps rows from being removed": (KEEPS.format("DELETE"), KEEPS_NO_MORE),
    "a trigger keeps rows from being put off": (KEEPS.format("UPDATE"), KEEPS_NO_MORE),
    "rows may be hidden": ("ALTER TABLE cachebus_outbox ENABLE ROW LEVEL SECURITY", HIDES_NO_MORE),
    "rows are locked": ("BEGIN; SELECT FROM cachebus_outbox ORDER BY id LIMIT 5 FOR UPDATE", "COMMIT"),
    "the table is locked": ("BEGIN; LOCK TABLE cachebus_outbox", "COMMIT"),
    "the table of relays is locked": ("BEGIN; LOCK TABLE cachebus_outbox_relays", "COMMIT"),
}
"""What is done by SQL for a while, and what ends it."""
END_SESSIONS: Final = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
Servers = tuple[PostgresServer, EmbeddedServer]


@dataclass
class Tally:
    """What happened, and what should not have."""

    lives: int = 0
    self_killed: int = 0
    committed: set[int] = field(default_factory=set)
    undone: set[int] = field(default_factory=set)
    faults: Counter[str] = field(default_factory=Counter)
    doubled: int = 0
    """Committed writes whose invalidation came more than once, as it may."""
    broken: list[str] = field(default_factory=list)

    def told(self) -> str:
        """In a line."""
        return (
            f"{self.lives} relays killed ({self.self_killed} at an await of their own), faults: {dict(self.faults)}, "
            f"{len(self.committed)} writes "
            f"committed, {len(self.undone)} undone, {self.doubled} invalidations came more than once, "
            f"{len(self.broken)} broken promises"
        )


class Campaign:
    """One run: `lives` relays are killed, by dice with a seed; `servers`: those to break meanwhile."""

    def __init__(self, database: str, redis_url: str, lives: int, seed: int, servers: Servers | None) -> None:
        self._database, self._redis_url = database, redis_url
        self._servers = servers
        self._has_others = servers is not None and seed % 2 == 0
        self._other_url = redis_url
        self._dice = random.Random(seed)
        self._fates = islice(self._drawn(), lives)
        """How each relay ends; drawn by whoever needs the next."""
        self._outbox = Outbox(settings(redis_url))
        self._number = 0
        self._over = asyncio.Event()
        self.tally = Tally()

    async def run(self) -> Tally:
        """All of it."""
        if not self._has_others:
            return await self._run()
        with EmbeddedServer() as other:
            self._other_url = other.url
            return await self._run()

    async def _run(self) -> Tally:
        async with (
            Relays() as relays,
            # Without write guards what is stored in the store's first minute does not expire when that is over.
            nodes(self._redis_url, 3, guard_max_s=0) as caches,
            connected(self._database) as connection,
            asyncpg.create_pool(self._database, min_size=0, max_size=WRITERS + 3) as pool,
        ):
            await create_tables(self._database)
            await connection.execute("CREATE TABLE thing (id int PRIMARY KEY, version int NOT NULL)")
            await connection.execute("INSERT INTO thing SELECT n, 0 FROM generate_series(0, $1 - 1) n", THINGS)
            await connection.execute("CREATE TABLE write (number int)")
            untouched = await self._held_by_all(caches)
            await relays.ready()
            await self._live(relays, caches, pool)
            for statement in (KEEPS_NO_MORE, HIDES_NO_MORE):  # what a crash has kept from being ended
                await pool.execute(statement)
            await relays.begin(self._database, self._redis_url)  # the last one lives
            await until(self._nothing_waits, within_s=60 + AGAIN_S)
            await self._judge(caches, pool, untouched)
        return self.tally

    async def _live(self, relays: Relays, caches: list[Cache], pool: asyncpg.Pool) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._write(pool))
            for cache in caches:
                group.create_task(self._read(cache, pool))
            breaking = group.create_task(self._break()) if self._servers is not None else None
            async with asyncio.TaskGroup() as killing:
                for _ in range(AT_WORK):
                    killing.create_task(self._kill(relays))
            self._over.set()
            if breaking is not None:
                await breaking

    async def _break(self) -> None:
        """One server at a time, never for long."""
        postgres, store = self._servers or ()
        while not self._over.is_set():
            await asyncio.sleep(self._dice.uniform(0.3, 1.5))
            fault = self._dice.choice([*FAULTS, *FOR_A_WHILE])
            self.tally.faults[fault] += 1
            if fault == "the database crashes":
                await asyncio.to_thread(postgres.kill)
                await asyncio.to_thread(postgres.start)
            elif fault == "it ends its sessions":
                with suppress(*TROUBLE):
                    async with connected(self._database) as connection:
                        await connection.execute(END_SESSIONS)
            elif fault in FOR_A_WHILE:
                with suppress(*TROUBLE):
                    async with connected(self._database) as connection:
                        for statement in FOR_A_WHILE[fault]:
                            await connection.execute(statement)
                            await asyncio.sleep(self._dice.uniform(0.1, 1.5))
            elif fault == "a table is swapped":
                with suppress(*TROUBLE):
                    await self._swap()
            elif fault == "the table of the dead is gone for a while":
                with suppress(*TROUBLE):
                    async with connected(self._database) as connection:
                        await connection.execute("DROP TABLE IF EXISTS cachebus_outbox_dead")
                        await put(connection, "nonsense")
                        await asyncio.sleep(self._dice.uniform(0.1, 0.5))
                    await create_tables(self._database)
            else:
                store.pause()
                await asyncio.sleep(self._dice.uniform(0.1, 1.5))
                store.resume()

    async def _swap(self) -> None:
        """Another table is put in the place of the outbox's, with its rows, as a migration does."""
        async with connected(self._database) as connection, connection.transaction():
            await connection.execute("LOCK TABLE cachebus_outbox; ALTER TABLE cachebus_outbox RENAME TO before")
            await connection.execute("ALTER TABLE before RENAME CONSTRAINT cachebus_outbox_pkey TO before_pkey")
            for statement in OutboxTable.of("cachebus_outbox").statements():
                await connection.execute(statement)
            await connection.execute(
                "INSERT INTO cachebus_outbox (namespace, command, created_at, due_at, attempts) "
                "SELECT namespace, command, created_at, due_at, attempts FROM before; DROP TABLE before"
            )

    def _drawn(self) -> Iterator[tuple[When, int | None]]:
        """First between the shared store and the commit, and each way to end at an await of either."""
        yield from product(WHENS, (0, 1))
        while True:
            yield self._dice.choice(WHENS), self._dice.choice((None, self._dice.randrange(AWAITS)))

    # -- what goes on ------------------------------------------------------------------------------------------

    async def _write(self, pool: asyncpg.Pool) -> None:
        """Transactions of all kinds: short and long ones, so that they commit in another order than they began."""
        while not self._over.is_set():
            self._number += 1
            number, undone = self._number, self._dice.random() < 0.2
            with suppress(*TROUBLE):  # whether it has committed is asked in the end
                async with pool.acquire() as connection:
                    transaction = connection.transaction()
                    await transaction.start()
                    await self._change(connection, number, undone=undone)
                    await asyncio.sleep(self._dice.choice((0.0, 0.0, 0.002, 0.03)))
                    await (transaction.rollback() if undone else transaction.commit())
            await asyncio.sleep(0)

    async def _change(self, connection: Any, number: int, *, undone: bool) -> None:
        thing = f"never {number}" if undone else str(self._dice.randrange(THINGS))
        if not undone:
            # The row is locked until the transaction ends, so its versions and its invalidations are of one order.
            await connection.execute("UPDATE thing SET version = version + 1 WHERE id = $1", int(thing))
        await connection.execute("INSERT INTO write VALUES ($1)", number)
        marker = {"data_type": "marker", "resource_id": number}
        await OutboxProducer(connection, self._outbox).invalidate_coordinated("acme", "thing", thing, [marker])

    async def _read(self, cache: Cache, pool: asyncpg.Pool) -> None:
        while not self._over.is_set():
            with suppress(CacheBusError, *TROUBLE):
                await self._thing(cache, pool, self._dice.randrange(THINGS))
            await asyncio.sleep(0.002)

    async def _thing(self, cache: Cache, pool: asyncpg.Pool, thing: int) -> int:
        async def load() -> int:
            found: int = await pool.fetchval("SELECT version FROM thing WHERE id = $1", thing)
            return found

        found: int = await cache.get_or_load("thing", str(thing), load, tenant_id="acme")
        return found

    async def _kill(self, relays: Relays) -> None:
        for when, last_await in self._fates:
            self.tally.lives += 1
            url = self._other_url if self._dice.random() < 0.15 else self._redis_url
            pid = await relays.begin(self._database, url, last_await=last_await, when=when)
            if last_await is None:
                await asyncio.sleep(self._dice.uniform(*LIFE_S))
            else:
                with suppress(AssertionError):  # it has found too little to do
                    await until(lambda p=pid: not alive(p), within_s=OLD_S)  # type: ignore[misc]
                self.tally.self_killed += not alive(pid)
            kill(pid)

    # -- what came of it ---------------------------------------------------------------------------------------

    async def _held_by_all(self, caches: list[Cache]) -> list[str]:
        """Values that nobody writes: each node holds them in memory, and nothing may take them away, but another table
        in the place of the outbox's."""
        names = [f"untouched {number}" for number in range(10)]
        for name in names:
            await caches[0].set("thing", name, name, "acme")
            for cache in caches:
                await cache.get("thing", name, "acme")
        return names

    async def _nothing_waits(self) -> bool:
        return await waiting(self._database) == 0

    async def _judge(self, caches: list[Cache], pool: asyncpg.Pool, untouched: list[str]) -> None:
        written = {row["number"] for row in await pool.fetch("SELECT number FROM write")}
        self.tally.committed, self.tally.undone = written, set(range(1, self._number + 1)) - written
        said = await self._said(caches[0])
        broken = self.tally.broken
        untold = set() if self._has_others else self.tally.committed - set(said)
        broken += [f"write {number} was committed, and nobody was told" for number in untold]
        broken += [f"write {number} was undone, and told" for number in self.tally.undone & set(said)]
        self.tally.doubled = sum(1 for number in self.tally.committed if said[number] > 1)
        for cache in caches:
            await until(lambda c=cache: c.ready())  # type: ignore[misc]
        head = (await parts(caches[0]).store.probe(0, parts(caches[0]).node.caller(0), with_invalidated=False)).seq
        for which, cache in enumerate(caches):
            await until(lambda c=cache: c.stats().shards[0].applied >= head)  # type: ignore[misc]
            for thing in range(THINGS):
                seen = await self._thing(cache, pool, thing)
                is_ = await pool.fetchval("SELECT version FROM thing WHERE id = $1", thing)
                if seen != is_:
                    broken.append(f"node {which} has version {seen} of thing {thing}, which is at {is_}")
            if (
                self._has_others or self.tally.faults["a table is swapped"]
            ):  # nobody knows whether all rows came with it
                continue
            for name in untouched:
                if await cache.get("thing", name, "acme") != name:
                    broken.append(f"node {which} has lost {name}, which nobody wrote")

    async def _said(self, cache: Cache) -> Counter[int]:
        """How often each write's invalidation is in the shared store's log."""
        store, said, after = parts(cache).store, Counter[int](), 0
        while entries := await store.log(0, after, AT_ONCE):
            for entry in entries:
                for key in events.decode(entry.message).keys:
                    _, data_type, resource_id = key.split("\x1e")[0].split("\x1f")[:3]
                    if data_type == "marker":
                        said[int(resource_id)] += 1
            after = entries[-1].seq
        return said


async def campaign(database: str, redis_url: str, *, lives: int, seed: int, servers: Servers | None = None) -> Tally:
    """Kill so many relays, and judge; `servers` are broken meanwhile."""
    return await Campaign(database, redis_url, lives, seed, servers).run()


def on_own_servers(lives: int, seed: int, calm: bool) -> Tally:
    """On servers of its own, which are left alone if it is `calm`."""
    with PostgresServer() as postgres, EmbeddedServer() as store:
        servers = None if calm else (postgres, store)
        return asyncio.run(campaign(postgres.url, store.url, lives=lives, seed=seed, servers=servers))


if __name__ == "__main__":
    sys.exit(command("relay", __doc__, "relays", on_own_servers))
