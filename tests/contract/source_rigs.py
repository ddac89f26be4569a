"""Every source of a worker, behind one face: items are put into it, and it is looked at from outside."""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic import SecretStr

from cachebus.bus.kafka.brokers import Brokers
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.cdc.topics.kafka import KafkaSource, TopicsWorker
from cachebus.consumers.kafka import CommandsWorker, WorkerOptions
from cachebus.consumers.outbox import OutboxRelay, RelayOptions, create_tables
from cachebus.consumers.topics.dead_topic import DeadTopic
from cachebus.consumers.topics.replay import each_letter
from cachebus.consumers.topics.source import TopicSource
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.producers.outbox.table import DEFAULT
from cachebus.settings import Settings
from tests.support.changes import tell
from tests.support.commands import committed, configured, held, made, put
from tests.support.memory_source import MemorySource

TOO_LONG = "x" * 600
"""No cache takes such a name."""
TABLE = (
    "CREATE TABLE configs (id text, tenant text, PRIMARY KEY (id, tenant)); ALTER TABLE configs REPLICA IDENTITY FULL"
)
RULES = """
tenants = ["acme"]
[[rule]]
table = "*.configs"
data_type = "config"
resource_id = "{id}"
tenant_id = "{tenant}"
replica_identity = "full"
on_truncate = "all"
"""


def command(number: str, tenant: str) -> str:
    """The invalidation of a resource of the type "config"."""
    return json.dumps({"op": "invalidate", "tenant_id": tenant, "data_type": "config", "resource_id": number})


class SourceRig(ABC):
    """One source, which lives on while workers come and go."""

    settings: Settings

    async def begin(self, settings: Settings, folder: Path) -> None:
        """Make it."""
        self.settings = settings
        self.folder = folder

    @abstractmethod
    def worker(self) -> SourceWorker:
        """Another worker on it."""

    @abstractmethod
    async def put(self, numbers: Sequence[str], tenant: str = "acme") -> None:
        """Have each of these invalidated, in this order, once it is committed: now."""

    @abstractmethod
    async def left(self) -> int:
        """How many items are not let go of; of a source that is only passed, whether any is."""

    @abstractmethod
    async def refuse(self) -> None:
        """Have the place of the dead take nothing."""

    @abstractmethod
    async def accept(self) -> None:
        """Have it take what comes, again."""

    @abstractmethod
    async def dead(self) -> list[str]:
        """The reasons of the dead letters."""

    @abstractmethod
    async def see_to_the_dead(self) -> None:
        """Somebody has removed the dead letters, or looked through them by `replay-dead`."""


class InMemory(SourceRig):
    """The one that fails in every way elsewhere."""

    async def begin(self, settings: Settings, folder: Path) -> None:
        """See `SourceRig`."""
        await super().begin(settings, folder)
        self.source = MemorySource(hold_s=0.3)
        self.source.is_seen = True

    async def see_to_the_dead(self) -> None:
        """See `SourceRig`."""
        self.source.dead.clear()

    def worker(self) -> SourceWorker:
        """See `SourceRig`."""
        return SourceWorker("memory", self.source, self.settings)

    async def put(self, numbers: Sequence[str], tenant: str = "acme") -> None:
        """See `SourceRig`."""
        self.source.put(*[command(number, tenant) for number in numbers])

    async def left(self) -> int:
        """See `SourceRig`."""
        return len(self.source.rows)

    async def dead(self) -> list[str]:
        """See `SourceRig`."""
        return [letter.reason for letter in self.source.dead]

    async def refuse(self) -> None:
        """See `SourceRig`."""

        def raises(*_: Any) -> None:
            raise RuntimeError("no")

        self.source.faults["set_aside"] = raises

    async def accept(self) -> None:
        """See `SourceRig`."""
        del self.source.faults["set_aside"]


class InPostgres(SourceRig):
    """An outbox."""

    table_of_dead = f"{DEFAULT}_dead"

    def __init__(self, database: str) -> None:
        self._database = database

    async def see_to_the_dead(self) -> None:
        """See `SourceRig`."""
        await tell(self._database, [f"DELETE FROM {self.table_of_dead}"])

    async def begin(self, settings: Settings, folder: Path) -> None:
        """See `SourceRig`."""
        await super().begin(settings, folder)
        await create_tables(self._database)

    def worker(self) -> SourceWorker:
        """See `SourceRig`."""
        return OutboxRelay(self._database, self.settings, options=RelayOptions(poll_interval_s=0.01, hold_s=0.3))

    async def put(self, numbers: Sequence[str], tenant: str = "acme") -> None:
        """See `SourceRig`."""
        await self._asked(
            f"INSERT INTO {DEFAULT} (namespace, command) SELECT $1, * FROM unnest($2::text[])",
            self.settings.namespace,
            [command(number, tenant) for number in numbers],
        )

    async def left(self) -> int:
        """See `SourceRig`."""
        return int((await self._asked(f"SELECT count(*) AS left FROM {DEFAULT}"))[0]["left"])

    async def dead(self) -> list[str]:
        """See `SourceRig`."""
        return [row["reason"] for row in await self._asked(f"SELECT reason FROM {DEFAULT}_dead")]

    async def refuse(self) -> None:
        """See `SourceRig`: by a trigger, which says more than anybody may see."""
        says = "RAISE EXCEPTION 'no, %', NEW; RETURN NULL;"
        await tell(
            self._database,
            [
                f"CREATE OR REPLACE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {says} END $$",
                f"CREATE TRIGGER refuses BEFORE INSERT ON {self.table_of_dead} FOR EACH ROW EXECUTE FUNCTION no()",
            ],
        )

    async def accept(self) -> None:
        """See `SourceRig`."""
        await tell(self._database, [f"DROP TRIGGER refuses ON {self.table_of_dead}"])

    async def _asked(self, sql: str, *given: Any) -> list[Any]:
        connection = await asyncpg.connect(self._database)
        try:
            return list(await connection.fetch(sql, *given))
        finally:
            await connection.close()


class InSqlite(SourceRig):
    """An outbox in a file."""

    async def begin(self, settings: Settings, folder: Path) -> None:
        """See `SourceRig`."""
        await super().begin(settings, folder)
        self._url = f"sqlite:///{folder / 'outbox.db'}"
        await create_tables(self._url)

    def worker(self) -> SourceWorker:
        """See `SourceRig`."""
        return OutboxRelay(self._url, self.settings, options=RelayOptions(poll_interval_s=0.01, hold_s=0.3))

    async def put(self, numbers: Sequence[str], tenant: str = "acme") -> None:
        """See `SourceRig`."""
        rows = [(self.settings.namespace, command(number, tenant)) for number in numbers]
        await asyncio.to_thread(self._written, rows)

    def _written(self, rows: Sequence[tuple[str, str]]) -> None:
        with closing(sqlite3.connect(self.folder / "outbox.db", timeout=10)) as connection, connection:
            connection.executemany(f"INSERT INTO {DEFAULT} (namespace, command) VALUES (?, ?)", rows)

    async def left(self) -> int:
        """See `SourceRig`."""
        return int((await asyncio.to_thread(self._asked, f"SELECT count(*) FROM {DEFAULT}"))[0][0])

    async def dead(self) -> list[str]:
        """See `SourceRig`."""
        return [row[0] for row in await asyncio.to_thread(self._asked, f"SELECT reason FROM {DEFAULT}_dead")]

    async def refuse(self) -> None:
        """See `SourceRig`."""
        await asyncio.to_thread(
            self._asked,
            f"CREATE TRIGGER refuses BEFORE INSERT ON {DEFAULT}_dead BEGIN SELECT RAISE(ABORT, 'no, '); END",
        )

    async def accept(self) -> None:
        """See `SourceRig`."""
        await asyncio.to_thread(self._asked, "DROP TRIGGER refuses")

    async def see_to_the_dead(self) -> None:
        """See `SourceRig`."""
        await asyncio.to_thread(self._asked, f"DELETE FROM {DEFAULT}_dead")

    def _asked(self, sql: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / "outbox.db", timeout=10)) as connection, connection:
            return connection.execute(sql).fetchall()


class OnKafka(SourceRig):
    """Commands in a topic."""

    def __init__(self, brokers: str) -> None:
        self._brokers = brokers

    async def begin(self, settings: Settings, folder: Path) -> None:
        """See `SourceRig`."""
        name = f"contract-{secrets.token_hex(4)}"
        more = {"kafka_bootstrap_servers": self._brokers, "kafka_commands_topic": name, "kafka_partitions": 1}
        await super().begin(settings.model_copy(update=more), folder)
        self.topic, self.count = name, 0
        await made(self.settings)

    def worker(self) -> SourceWorker:
        """See `SourceRig`."""
        return CommandsWorker(self.settings, options=WorkerOptions(self.topic, session_timeout_s=1.0))

    async def put(self, numbers: Sequence[str], tenant: str = "acme") -> None:
        """See `SourceRig`."""
        self.count += len(numbers)
        await put(self.settings, *[command(number, tenant).encode() for number in numbers])

    async def left(self) -> int:
        """See `SourceRig`."""
        return self.count - await committed(self.settings, self.topic)

    async def dead(self) -> list[str]:
        """See `SourceRig`."""
        worker = self.worker()
        assert isinstance(worker, CommandsWorker)
        letters = await held(self.settings, worker.membership.dead_topic)
        return [dict(letter.headers)["reason"].decode() for letter in letters]

    async def refuse(self) -> None:
        """See `SourceRig`: not even a letter without its value is so short."""
        await self._configured("10")

    async def accept(self) -> None:
        """See `SourceRig`."""
        await self._configured("1000000")

    async def see_to_the_dead(self) -> None:
        """See `SourceRig`: as a replay does."""
        worker = self.worker()
        assert isinstance(worker.source, TopicSource)
        member = worker.source.membership
        brokers = Brokers(member.access)

        async def tried(_: Sequence[Any]) -> None:
            return

        try:
            await each_letter(member, DeadTopic(member, brokers), tried)
        finally:
            await brokers.forget()

    async def _configured(self, most_bytes: str) -> None:
        worker = self.worker()
        assert isinstance(worker.source, TopicSource)
        await configured(self.settings, worker.source.dead.topic, {"max.message.bytes": most_bytes})


class OnTopics(OnKafka):
    """Changes of rows as Debezium writes them."""

    def worker(self) -> SourceWorker:
        """See `SourceRig`."""
        return TopicsWorker(self.settings, parse_rules(RULES), self._given())

    def _given(self) -> KafkaSource:
        return KafkaSource(
            self._brokers, self.topic, self.topic, session_timeout_s=1.0, dead_topic=f"{self.topic}-dead"
        )

    async def put(self, numbers: Sequence[str], tenant: str = "acme") -> None:
        """See `SourceRig`."""
        self.count += len(numbers)
        source = {"schema": "any", "table": "configs"}
        rows = [{"op": "c", "after": {"id": number, "tenant": tenant}, "source": source} for number in numbers]
        await put(self.settings, *[json.dumps(row).encode() for row in rows])

    async def left(self) -> int:
        """See `SourceRig`."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self._brokers, group_id=self.topic, enable_auto_commit=False)
        await consumer.start()
        try:
            part = TopicPartition(self.topic, 0)
            consumer.assign([part])
            return self.count - (await consumer.committed(part) or 0)
        finally:
            await consumer.stop()

    async def dead(self) -> list[str]:
        """See `SourceRig`."""
        letters = await held(self.settings, f"{self.topic}-dead")
        return [dict(letter.headers)["reason"].decode() for letter in letters]


class OnSlot(InPostgres):
    """Changes of rows as PostgreSQL's slot tells them."""

    table_of_dead = "cachebus_cdc_dead"

    async def begin(self, settings: Settings, folder: Path) -> None:
        """See `SourceRig`: the slot is made by the first worker."""
        await SourceRig.begin(self, settings, folder)
        await tell(self._database, [TABLE])

    def worker(self) -> SourceWorker:
        """See `SourceRig`."""
        return SlotWorker(self.settings, parse_rules(RULES), SlotSource(SecretStr(self._database), poll_s=0.005))

    async def put(self, numbers: Sequence[str], tenant: str = "acme") -> None:
        """See `SourceRig`."""
        # The log's end as it was before the commit: behind that it may have, by now, what a worker wrote meanwhile,
        # which is nothing that a slot would be advanced for.
        rows = await self._asked(
            "WITH put AS (INSERT INTO configs SELECT *, $1 FROM unnest($2::text[]) RETURNING 1) "
            "SELECT count(*), pg_current_wal_insert_lsn()::text AS up_to FROM put",
            tenant,
            list(numbers),
        )
        self._up_to = rows[0]["up_to"]

    async def left(self) -> int:
        """See `SourceRig`."""
        rows = await self._asked(
            "SELECT confirmed_flush_lsn <= $1::text::pg_lsn AS left FROM pg_replication_slots "
            "WHERE database = current_database()",
            self._up_to,
        )
        held_rows = await self._asked("SELECT count(*) AS count FROM cachebus_cdc_held")
        return int(rows[0]["left"]) + int(held_rows[0]["count"])

    async def dead(self) -> list[str]:
        """See `SourceRig`."""
        return [row["reason"] for row in await self._asked("SELECT reason FROM cachebus_cdc_dead")]
