"""What a worker tells people to run is obeyed word for word: with the variables that it names, and no others."""

from __future__ import annotations

import asyncio
import json
import secrets
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from aiokafka import AIOKafkaProducer

from cachebus.consumers.outbox import create_tables
from cachebus.consumers.worker.in_a_row import ALL_DEAD
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import until
from tests.support.cdc_surroundings import HEAD, RULE, TABLE
from tests.support.changes import tell
from tests.support.command import cachebus, ran
from tests.support.commands import made, setup
from tests.support.worker_health import health
from tests.support.written import asked

DEAD = f"the last {ALL_DEAD}"


class Case(NamedTuple):
    """A worker all of whose items are set aside."""

    words: list[str]
    """Its command, with options for all."""
    variables: dict[str, str]
    """Those that are named."""
    spoil: Callable[[], Awaitable[None]]
    """Have it set aside what comes."""
    said: str
    """What the command says that tries them again."""


async def in_postgres(database: str, **_: str) -> Case:
    await create_tables(database, "inval")
    return _outbox(database, "20 rows are back in inval")


async def in_sqlite(folder: str, **_: str) -> Case:
    url = f"sqlite:///{folder}/outbox.db"
    await create_tables(url, "inval")
    return _outbox(url, "20 rows are back in inval")


def _outbox(url: str, said: str) -> Case:
    rows = [f"INSERT INTO inval (namespace, command) VALUES ('mine', '?{number}')" for number in range(ALL_DEAD)]

    async def spoil() -> None:
        await asked(url, *rows)

    words = ["outbox", "--table", "inval", "--namespace", "mine", "--database-url", url, "--poll", "0.05"]
    return Case(words, {"CACHEBUS_DATABASE_URL": url}, spoil, said)


async def on_a_slot(database: str, redis_url: str, rules: str, **_: str) -> Case:
    await tell(database, TABLE)
    sql = f"INSERT INTO o SELECT repeat('x', 600) || n, 'acme' FROM generate_series(1, {ALL_DEAD}) AS n"
    words = ["cdc", "--rules", rules, "--slot", "ours", "--namespace", "mine", "--database-url", database]
    variables = {"CACHEBUS_DATABASE_URL": database, "CACHEBUS_URL": redis_url}
    return Case(words, variables, lambda: tell(database, [sql]), "0 applied, 20 still set aside")


async def of_debezium(kafka: str, redis_url: str, rules: str, **_: str) -> Case:
    name = f"debezium-{secrets.token_hex(4)}"
    await made(setup(redis_url, kafka, kafka_commands_topic=name))
    words = ["cdc", "--rules", rules, "--source", "kafka", "--bootstrap-servers", kafka, "--topics", name]
    words += ["--group", f"{name}-g", "--dead-topic", f"{name}-dead", "--namespace", "mine"]
    return Case(words, {"CACHEBUS_URL": redis_url}, lambda: nonsense(kafka, name), "0 applied, 20 still set aside")


async def of_commands(kafka: str, redis_url: str, **_: str) -> Case:
    name = f"commands-{secrets.token_hex(4)}"
    await made(setup(redis_url, kafka, kafka_commands_topic=name))
    words = ["kafka", "--bootstrap-servers", kafka, "--topic", name, "--group", f"{name}-g"]
    words += ["--dead-topic", f"{name}-dead", "--namespace", "mine"]
    return Case(words, {}, lambda: nonsense(kafka, name), f"20 commands are back in {name}")


async def nonsense(kafka: str, topic: str) -> None:
    """So many messages that nobody can read."""
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for _ in range(ALL_DEAD):
            await producer.send_and_wait(topic, b"nonsense")


@pytest.mark.parametrize("of", [in_postgres, in_sqlite, on_a_slot, of_debezium, of_commands])
async def test_what_tries_dead_letters_again_is_obeyed_as_it_is_told(
    of: Callable[..., Awaitable[Case]], database: str, kafka: KafkaServer, redis_url: str, tmp_path: Path
) -> None:
    folder, rules, port = tmp_path / "folder", tmp_path / "its rules.toml", free_port()
    folder.mkdir()
    rules.write_text(HEAD + RULE.format("o", "o"))
    case = await of(database=database, kafka=kafka.address, redis_url=redis_url, rules=str(rules), folder=str(tmp_path))
    more = ["--url", redis_url, "--health-port", str(port)]
    with cachebus("worker", *case.words, *more, folder=folder):

        async def says(words: str) -> bool:
            return words in (await asyncio.to_thread(health, port))[1]

        await until(lambda: says('"ready": true'), within_s=60)
        await case.spoil()
        await until(lambda: says(DEAD), within_s=60)
        told = json.loads((await asyncio.to_thread(health, port))[1])["parts"]["items"]["why"]
    for variable in case.variables:
        assert variable in told
    assert redis_url not in told
    assert database not in told
    words = shlex.split(told.rpartition(" by: ")[2])
    status, out, errors = await asyncio.to_thread(ran, *words[1:], folder=folder, env=case.variables)
    assert case.said in out, errors
    assert status == (1 if "still set aside" in out else 0)


async def test_a_table_of_the_dead_that_is_not_there_is_told_as_a_mistaken_name(database: str, tmp_path: Path) -> None:
    """It was told to be made, and had nothing to bring back then."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for url in (database, f"sqlite:///{tmp_path / 'outbox.db'}"):
        await create_tables(url, "inval")
        options = ("--database-url", url)
        status, out, errors = await asyncio.to_thread(ran, "worker", "replay-dead", "outbox", *options, folder=folder)
        assert (status, out) == (2, "")
        assert "which is the outbox's table? give --table" in errors
        assert "--create-table" not in errors
