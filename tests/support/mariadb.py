"""A MariaDB with changes to follow, by real Debezium."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import pymysql
from pymysql.constants import CLIENT

from cachebus.tools.servers.debezium import DebeziumServer
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.changes import MANY, STORY

CONNECTOR: Final = {
    "skipped.operations": "none",
    "heartbeat.interval.ms": "200",
    "provide.transaction.metadata": "true",
    "tombstones.on.delete": "true",
    "bigint.unsigned.handling.mode": "precise",
}
SCHEMA: Final = """
CREATE DATABASE shop;
CREATE DATABASE other;
CREATE TABLE shop.orders (
  id bigint PRIMARY KEY, tenant_id varchar(20) NOT NULL, customer_id int, note text, at timestamp DEFAULT now());
CREATE TABLE shop.notes (
  code uuid PRIMARY KEY, tenant_id varchar(20) NOT NULL, folder int, title text, text longtext, seen int DEFAULT 0);
CREATE TABLE other.settings (name varchar(100) PRIMARY KEY, value text);
CREATE TABLE shop.settings (name varchar(100) PRIMARY KEY, value text);
CREATE TABLE shop.unruled (id int PRIMARY KEY);
"""
IN_MARIADB: Final = [statements.replace(MANY, "(SELECT seq AS g FROM shop.seq_1000_to_4000) g") for statements in STORY]
"""The story of the other sources."""


async def tell_mariadb(url: str, story: Sequence[str]) -> None:
    """Have it happen, each by a connection's own word."""
    await asyncio.to_thread(_tell, url, story)


def _tell(url: str, story: Sequence[str]) -> None:
    where = urlsplit(url)
    with (
        pymysql.connect(
            host=where.hostname,
            port=where.port or 0,
            user=where.username,
            autocommit=True,
            client_flag=CLIENT.MULTI_STATEMENTS,
        ) as connection,
        connection.cursor() as cursor,
    ):
        for statements in story:
            cursor.execute(statements)
            while cursor.nextset():
                pass


def query(url: str, sql: str) -> Any:
    """The first row that is answered."""
    where = urlsplit(url)
    with (
        pymysql.connect(host=where.hostname, port=where.port or 0, user=where.username) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(sql)
        return cursor.fetchone()


@asynccontextmanager
async def followed(kafka: KafkaServer, url: str, prefix: str, **connector: str) -> AsyncIterator[DebeziumServer]:
    """Debezium, which tells of all of its changes on topics of this prefix."""
    server = DebeziumServer(kafka, url, topic_prefix=prefix, connector=CONNECTOR | connector)
    try:
        await asyncio.to_thread(server.start)
        yield server
    finally:
        await asyncio.to_thread(server.stop)
