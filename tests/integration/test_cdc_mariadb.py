"""MariaDB's changes by real Debezium: the same rules, the same invalidations, and what is MariaDB's own."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from cachebus import ConfigError
from cachebus.consumers.cdc.rules.rules import RuleFile, parse_rules
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.cdc.topics.kafka import KafkaSource, TopicsWorker
from cachebus.tools.servers.debezium import DebeziumServer
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.mariadb import MariaDBServer
from tests.support import changes
from tests.support.caches import quick, until
from tests.support.changes import CODE, END, STORY, Heard, keys, running, tell
from tests.support.logs import told as lines_told
from tests.support.mariadb import CONNECTOR, IN_MARIADB, SCHEMA, followed, tell_mariadb
from tests.support.servers import to_be_had

DOCUMENT = Path(__file__).parents[2] / "docs" / "cdc.md"
LARGEST = 2**64 - 1
RULES = """
[[rule]]
table = "shop.lines"
data_type = "line"
resource_id = "{bill}:{at}"
tenant_id = "{tenant}"
related = [{ data_type = "kind", resource_id = "{kind}" }, { data_type = "name", resource_id = "{name}" }]
on_truncate = "ignore"

[[rule]]
table = "shop.tokens"
data_type = "token"
resource_id = "{token}"
tenant_id = "{tenant}"
scopes = [{ data_type = "token_list" }]
on_truncate = "ignore"

[[rule]]
table = "shop.parts"
data_type = "part"
resource_id = "{id}"
tenant_id = "acme"
on_truncate = "ignore"
"""
TABLES = """
CREATE DATABASE shop;
CREATE TABLE shop.lines (
  bill bigint unsigned, at smallint, tenant varchar(20), kind enum('new', 'old'), name varchar(700),
  price decimal(8, 2), PRIMARY KEY (bill, at));
CREATE TABLE shop.tokens (token binary(4) PRIMARY KEY, tenant varchar(20) NOT NULL);
CREATE TABLE shop.wholes (id int PRIMARY KEY);
CREATE TABLE shop.parts (
  id int PRIMARY KEY, whole int, FOREIGN KEY (whole) REFERENCES shop.wholes (id) ON DELETE CASCADE);
"""


@pytest.fixture
def mariadb() -> Iterator[MariaDBServer]:
    """One of the test's own: all of its databases are followed."""
    with to_be_had(MariaDBServer, "MariaDB") as server:
        yield server


@pytest.fixture
def prefix() -> str:
    """Of the test's own topics."""
    return f"cdc{secrets.token_hex(4)}"


@pytest.fixture
async def debezium(kafka: KafkaServer, mariadb: MariaDBServer, prefix: str) -> AsyncIterator[DebeziumServer]:
    """It follows the tables of this file, with the rights that the documentation gives it."""
    rights = re.search(r"```sql\n(CREATE USER.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert rights is not None
    await tell_mariadb(mariadb.url, [TABLES, rights[1]])
    async with followed(kafka, mariadb.url.replace("root@", "debezium:secret@"), prefix) as server:
        yield server


def topics_worker(kafka: KafkaServer, redis_url: str, prefix: str, rules: RuleFile) -> TopicsWorker:
    """Of all that Debezium writes: changes of rows and of schemas, transactions, heartbeats."""
    topics = rf"{prefix}(\..*)?|__debezium-heartbeat\.{prefix}"
    source = KafkaSource(kafka.address, topics, prefix, dead_topic=f"dead-{prefix}")
    return TopicsWorker(quick(redis_url, namespace=prefix), rules, source)


async def test_the_same_changes_are_the_same_invalidations_as_of_postgresql(
    kafka: KafkaServer, mariadb: MariaDBServer, prefix: str, database: str, redis_url: str
) -> None:
    await tell(database, [changes.SCHEMA])
    await tell_mariadb(mariadb.url, [SCHEMA])
    slot = SlotWorker(quick(redis_url, namespace="slot"), changes.rules(), SlotSource(SecretStr(database)))
    by_slot = Heard(slot)
    async with running(slot):
        await tell(database, STORY)
        await until(lambda: by_slot.has(*END))
    topics = topics_worker(kafka, redis_url, prefix, changes.rules())
    by_topics = Heard(topics)
    async with followed(kafka, mariadb.url, prefix) as debezium, running(topics):
        *before, last = IN_MARIADB
        await tell_mariadb(mariadb.url, before)
        end = {"K acme:order:99", "K acme:embedding:order%3A99"}
        await until(lambda: by_topics.asked.keys() == by_slot.asked.keys() - end, within_s=60)
        await asyncio.to_thread(debezium.kill)
        await tell_mariadb(mariadb.url, [last])
        await asyncio.to_thread(debezium.start)  # it goes on where it stood
        await until(lambda: by_topics.has(*END), within_s=60)
    assert keys(by_topics).keys() == keys(by_slot).keys()
    assert all(count >= keys(by_slot)[name] for name, count in keys(by_topics).items())
    assert topics.meters.count("dead") == slot.meters.count("dead") == 0
    assert by_topics.asked[f"K acme:note:coll:7:{CODE}01"] >= 3
    assert not by_topics.has("order", "90"), "it was rolled back"


async def test_what_mariadb_alone_has(
    kafka: KafkaServer, mariadb: MariaDBServer, debezium: DebeziumServer, prefix: str, redis_url: str
) -> None:
    """Keys of several columns, numbers above 2**63, null to value and back, names that no cache takes; and of old rows
    all is known, though no rule says so."""
    worker = topics_worker(kafka, redis_url, prefix, parse_rules(RULES))
    heard = Heard(worker)
    story = (
        f"INSERT INTO shop.lines VALUES ({LARGEST}, 1, 'acme', 'new', NULL, 1.50)",
        "UPDATE shop.lines SET tenant = NULL",
        "UPDATE shop.lines SET tenant = 'globex'",
        "UPDATE shop.lines SET kind = NULL",
        "UPDATE shop.lines SET kind = 'old'",
        "UPDATE shop.lines SET at = 2",
        "UPDATE shop.lines SET name = repeat('é', 700)",
        "DELETE FROM shop.lines",
        "INSERT INTO shop.tokens VALUES (x'00ff00ff', 'acme')",
        "INSERT INTO shop.wholes VALUES (1); INSERT INTO shop.parts VALUES (7, 1); DELETE FROM shop.wholes",
        "INSERT INTO shop.parts VALUES (99, NULL)",
    )
    with lines_told("WARNING") as told:
        async with running(worker):
            await tell_mariadb(mariadb.url, story)
            await until(lambda: heard.has("part", "99") and worker.meters.count("dead") == 3, within_s=60)
    assert heard.asked == {
        f"K acme:line:{LARGEST}%3A1": 2,
        "K acme:kind:new": 2,  # made, and moved away
        f"K globex:line:{LARGEST}%3A1": 6,
        "K globex:kind:new": 2,
        "K globex:kind:old": 6,
        "I globex kind old": 2,
        f"K globex:line:{LARGEST}%3A2": 4,  # also where a name beside it is too long
        "D acme token_list": 1,
        "K acme:part:7": 1,
        "K acme:part:99": 1,  # what goes by ON DELETE CASCADE is in no binary log
    }
    reasons = "".join(told)
    assert "name: resource_id is too long" in reasons
    assert "'token' holds neither text nor a whole number" in reasons


async def test_a_row_that_is_not_whole_ends_the_connector(
    kafka: KafkaServer, mariadb: MariaDBServer, debezium: DebeziumServer, prefix: str, redis_url: str
) -> None:
    """It tells nothing of it, rather than a part with the rest made up."""
    worker = topics_worker(kafka, redis_url, prefix, parse_rules(RULES))
    heard = Heard(worker)
    async with running(worker):
        await tell_mariadb(mariadb.url, ["INSERT INTO shop.lines VALUES (1, 1, 'acme', 'new', NULL, NULL)"])
        await until(lambda: heard.has("line", "1%3A1"), within_s=60)
        before = dict(heard.asked)
        minimal = "SET SESSION binlog_row_image = MINIMAL; UPDATE shop.lines SET tenant = 'globex'"
        await tell_mariadb(mariadb.url, [minimal, "INSERT INTO shop.parts VALUES (99, NULL)"])
        await until(lambda: [task["state"] for task in debezium.tasks()] == ["FAILED"], within_s=60)
    assert heard.asked == before
    assert worker.meters.count("dead") == 0
    await tell_mariadb(mariadb.url, ["SET GLOBAL binlog_row_image = MINIMAL"])
    late = DebeziumServer(kafka, mariadb.url, topic_prefix=f"{prefix}late", connector=CONNECTOR)
    with pytest.raises(ConfigError, match=r"the connector has ended: .*binlog_row_image.*FULL"):
        await asyncio.to_thread(late.start)
