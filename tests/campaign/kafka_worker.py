"""`python -m tests.campaign.kafka_worker`: the worker of commands, killed at hundreds of moments under load.

Writers send commands, each with a number; two workers at a time apply them, and are killed over and over: at a random
moment, or at an await of their own while they have some in hand. Poison is among them. Meanwhile the broker crashes or
hangs now and then, and the shared store hangs. In the end each acknowledged command must be in the shared store's log,
every node must serve what is, and all poison must be among the dead letters.

With a seed that is even, the topic is deleted and made anew as well, with all that is unread in it, partitions are
added, and some workers are for another store. Then it counts what nodes serve.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any, Final

from aiokafka.admin import NewPartitions, NewTopic
from aiokafka.errors import KafkaError

from cachebus import Cache, CacheBusError, InvalidationFailed
from cachebus.producers import KafkaProducer
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.wire import event as events
from tests.campaign.command import command
from tests.support.caches import nodes, parts, until
from tests.support.command import alive
from tests.support.commands import dead, held, put, setup
from tests.support.topics import admin_of
from tests.support.worker_lives import WHENS, Relays, When, kill

THINGS: Final = 100
WRITERS: Final = 6
AT_WORK: Final = 2
"""Workers at a time."""
AWAITS: Final = 8
LIFE_S: Final = (0.0, 0.3)
"""How long one lives on that has begun to apply."""
OLD_S: Final = 10.0
CRASH, HANG, HANG_STORE = "the broker crashes", "it hangs", "the shared store hangs"
ANEW, MORE = "the topic is made anew", "partitions are added"
AT_ONCE: Final = 1000
MOST_PARTITIONS: Final = 6
Servers = tuple[KafkaServer, EmbeddedServer]


@dataclass
class Tally:
    """What happened, and what should not have."""

    lives: int = 0
    at_work: int = 0
    """Of those killed, how many had applied something."""
    self_killed: int = 0
    sent: int = 0
    refused: int = 0
    """Commands of which the producer was not sure."""
    poison: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    doubled: int = 0
    """Commands that were applied more than once, as they may be."""
    buried: int = 0
    """Dead letters, of which some may be doubled."""
    broken: list[str] = field(default_factory=list)

    def told(self) -> str:
        """In a line."""
        return (
            f"{self.lives} workers killed ({self.at_work} while at work, {self.self_killed} at an await of their own), "
            f"faults: {dict(self.faults)}, {self.sent} commands acknowledged, {self.refused} not sure, "
            f"{self.doubled} applied more than once, {self.poison} of poison, {self.buried} dead letters, "
            f"{len(self.broken)} broken promises"
        )


class Campaign:
    """One run: `lives` workers are killed, by dice with a seed; `servers`: those to break meanwhile."""

    def __init__(self, kafka: str, redis_url: str, lives: int, seed: int, servers: Servers | None) -> None:
        self._kafka, self._redis_url = kafka, redis_url
        self._servers = servers
        self._loses = servers is not None and seed % 2 == 0
        """Whether commands are lost before they are applied: who knows that lets go of all."""
        self._other_url = redis_url
        self._dice = random.Random(seed)
        self._fates = islice(self._drawn(), lives)
        self._name = f"campaign-{secrets.token_hex(4)}"
        self._settings = setup(redis_url, kafka, namespace=self._name, kafka_commands_topic=self._name)
        self._number = 0
        self._over = asyncio.Event()
        self._versions = [0] * THINGS
        self._acknowledged: set[int] = set()
        self._log_s: Counter[int] = Counter()
        self._seen_seq = 0
        self.tally = Tally()

    async def run(self) -> Tally:
        """All of it."""
        if not self._loses:
            return await self._run()
        with EmbeddedServer() as other:
            self._other_url = other.url
            return await self._run()

    async def _run(self) -> Tally:
        async with (
            Relays() as workers,
            nodes(self._redis_url, 3, namespace=self._name) as caches,
            KafkaProducer.open(self._settings) as producer,
        ):
            await workers.ready()
            await self._live(workers, caches, producer)
            await workers.begin_commands(self._kafka, self._redis_url, self._name)  # the last one lives
            with suppress(AssertionError):
                await until(lambda: self._all_fresh(caches) if self._loses else self._all_said(caches[0]), within_s=90)
            await self._judge(caches)
        return self.tally

    async def _live(self, workers: Relays, caches: list[Cache], producer: KafkaProducer) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._write(producer))
            for cache in caches:
                group.create_task(self._read(cache))
            breaking = group.create_task(self._break()) if self._servers is not None else None
            async with asyncio.TaskGroup() as killing:
                for _ in range(AT_WORK):
                    killing.create_task(self._kill(workers, caches[0]))
            self._over.set()
            if breaking is not None:
                await breaking

    def _drawn(self) -> Iterator[tuple[When, int | None]]:
        """First each way to end at the two awaits that matter most, of the shared store and of the commit."""
        yield from product(WHENS, (0, 1))
        while True:
            yield self._dice.choice(WHENS), self._dice.choice((None, self._dice.randrange(AWAITS)))

    async def _break(self) -> None:
        """One server at a time, never for long."""
        kafka, store = self._servers or ()
        while not self._over.is_set():
            await asyncio.sleep(self._dice.uniform(*((0.5, 4) if self._loses else (3, 12))))
            fault = self._dice.choice((CRASH, HANG, HANG_STORE, *((ANEW, ANEW, MORE) if self._loses else ())))
            self.tally.faults[fault] += 1
            if fault == CRASH:
                await asyncio.to_thread(kafka.kill)
                await asyncio.to_thread(kafka.start)
            elif fault in (ANEW, MORE):
                await self._alter(fault)
            else:
                server: Any = kafka if fault == HANG else store
                server.pause()
                await asyncio.sleep(self._dice.uniform(0.1, 1.5))
                server.resume()

    async def _alter(self, fault: str) -> None:
        """Writers, or workers, may be the first to make it anew."""
        with suppress(KafkaError):
            async with admin_of(self._settings) as admin:
                if fault == ANEW:
                    await admin.delete_topics([self._name])
                    await asyncio.sleep(self._dice.choice((0.0, 0.5, 3.0)))
                    await admin.create_topics([NewTopic(self._name, self._dice.choice((1, 2, 3)), 1)])
                else:
                    (topic,) = await admin.describe_topics([self._name])
                    count = len(topic["partitions"])
                    if count < MOST_PARTITIONS:
                        await admin.create_partitions({self._name: NewPartitions(count + 1)})

    # -- what goes on ------------------------------------------------------------------------------------------

    async def _write(self, producer: KafkaProducer) -> None:
        while not self._over.is_set():
            self._number += 1
            number, thing = self._number, self._dice.randrange(THINGS)
            self._versions[thing] = number  # the source, before it is told
            marker = {"data_type": "marker", "resource_id": number}
            try:
                while True:
                    try:
                        await producer.invalidate_coordinated(f"t{thing}", "thing", thing, [marker])
                    except InvalidationFailed:
                        self.tally.refused += 1
                        if self._over.is_set():
                            return
                    else:
                        break
            finally:
                await asyncio.sleep(self._dice.choice((0.0, 0.002, 0.01)))
            self._acknowledged.add(number)
            if number % 100 == 0 and self._servers is None:
                self.tally.poison += 1
                await put(self._settings, b"poison %d" % number)

    async def _read(self, cache: Cache) -> None:
        while not self._over.is_set():
            with suppress(CacheBusError):
                await self._thing(cache, self._dice.randrange(THINGS))
            await asyncio.sleep(0.005)

    async def _thing(self, cache: Cache, thing: int) -> int:
        async def load() -> int:
            return self._versions[thing]

        found: int = await cache.get_or_load("thing", thing, load, tenant_id=f"t{thing}")
        return found

    async def _kill(self, workers: Relays, cache: Cache) -> None:
        for when, last_await in self._fates:
            self.tally.lives += 1
            before = self._seen_seq
            url = self._other_url if self._dice.random() < 0.15 else self._redis_url
            pid = await workers.begin_commands(self._kafka, url, self._name, last_await=last_await, when=when)
            with suppress(AssertionError):
                await until(lambda p=pid, b=before: not alive(p) or self._works(cache, b), within_s=OLD_S)  # type: ignore[misc]
            if last_await is None:
                await asyncio.sleep(self._dice.uniform(*LIFE_S))
            else:
                with suppress(AssertionError):
                    await until(lambda p=pid: not alive(p), within_s=OLD_S)  # type: ignore[misc]
                self.tally.self_killed += not alive(pid)
            self.tally.at_work += self._works(cache, before) or not alive(pid)
            kill(pid)

    def _works(self, cache: Cache, before: int) -> bool:
        self._seen_seq = max(self._seen_seq, cache.stats().shards[0].applied)
        return self._seen_seq > before

    # -- what came of it ---------------------------------------------------------------------------------------

    async def _all_said(self, cache: Cache) -> bool:
        await self._said(cache)
        return all(self._log_s[number] for number in self._acknowledged) and (
            not self.tally.poison or len({one.value for one in await dead(self._settings)}) >= self.tally.poison
        )

    async def _all_fresh(self, caches: list[Cache]) -> bool:
        """Whether every node serves what is."""
        for cache in caches:
            for thing, is_ in enumerate(self._versions):
                if is_ in self._acknowledged and await self._thing(cache, thing) != is_:
                    return False
        return True

    async def _judge(self, caches: list[Cache]) -> None:
        await self._said(caches[0])
        tally = self.tally
        tally.sent = len(self._acknowledged)
        missing = sorted(number for number in self._acknowledged if not self._log_s[number] and not self._loses)
        tally.broken += [f"command {number} was acknowledged, and nobody was told" for number in missing]
        copies = await self._copies()
        tally.doubled = sum(1 for number, count in self._log_s.items() if count > copies[number])
        if tally.poison:
            letters = [one.value for one in await dead(self._settings)]
            tally.buried = len(letters)
            if len(set(letters)) != tally.poison:
                tally.broken.append(f"{tally.poison} of poison, but {len(set(letters))} among the dead letters")
        for cache in caches:
            await until(lambda c=cache: c.ready(), within_s=30)  # type: ignore[misc]
        head = (await parts(caches[0]).store.probe(0, parts(caches[0]).node.caller(0), with_invalidated=False)).seq
        for which, cache in enumerate(caches):
            await until(lambda c=cache: c.stats().shards[0].applied >= head)  # type: ignore[misc]
            for thing, is_ in enumerate(self._versions):
                if is_ not in self._acknowledged:
                    continue  # its writer was ended before anybody took the command
                seen = await self._thing(cache, thing)
                if seen != is_:
                    tally.broken.append(f"node {which} has version {seen} of thing {thing}, which is at {is_}")

    async def _copies(self) -> Counter[int]:
        """How often each command is in the topic: one that nobody was sure of was sent again."""
        found: Counter[int] = Counter()
        for record in await held(self._settings):
            with suppress(ValueError):
                found[int(json.loads(record.value)["related"][0]["resource_id"])] += 1
        return found

    async def _said(self, cache: Cache) -> None:
        """How often each command's invalidation is in the shared store's log."""
        store, after = parts(cache).store, self._after
        while entries := await store.log(0, after, AT_ONCE):
            for entry in entries:
                for key in events.decode(entry.message).keys:
                    _, data_type, resource_id = key.split("\x1e")[0].split("\x1f")[:3]
                    if data_type == "marker":
                        self._log_s[int(resource_id)] += 1
            after = self._after = entries[-1].seq

    _after = 0


async def campaign(kafka: str, redis_url: str, *, lives: int, seed: int, servers: Servers | None = None) -> Tally:
    """Kill so many workers, and judge; `servers` are broken meanwhile."""
    return await Campaign(kafka, redis_url, lives, seed, servers).run()


def on_own_servers(lives: int, seed: int, calm: bool) -> Tally:
    """On servers of its own, which are left alone if it is `calm`."""
    with KafkaServer() as kafka, EmbeddedServer() as store:
        servers = None if calm else (kafka, store)
        return asyncio.run(campaign(kafka.address, store.url, lives=lives, seed=seed, servers=servers))


if __name__ == "__main__":
    sys.exit(command("kafka_worker", __doc__, "workers", on_own_servers))
