"""What the doctor tells of workers, where change data capture is all that there is, or an option is wrong."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from cachebus.consumers.outbox import create_tables
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.cdc_surroundings import HEAD, RULE, TABLE, worker
from tests.support.changes import running, tell
from tests.support.command import ran
from tests.support.commands import made, setup


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where commands run."""
    found = tmp_path / "folder"
    found.mkdir()
    return found


@pytest.fixture
def rules(tmp_path: Path) -> str:
    """The file of the rules of `TABLE`."""
    path = tmp_path / "rules.toml"
    path.write_text(HEAD + RULE.format("o", "o"))
    return str(path)


async def test_an_outbox_that_nobody_wants_is_no_problem_of_change_data_capture(
    database: str, own_server: EmbeddedServer, folder: Path, rules: str
) -> None:
    await tell(database, TABLE)
    options = (own_server.url, "--database-url", database)
    async with running(worker(database, own_server.url)):
        status, out, errors = ran("doctor", *options, "--rules", rules, folder=folder)
        assert status in (0, 3), out + errors
        assert "problem" not in out
        assert "warning       database: there is none here" in out
        assert "cachebus worker outbox --create-table --table cachebus_outbox" in out
        status, out, _ = ran("doctor", *options, folder=folder)
        assert (status, "problem       table" in out) == (1, True), "it is asked for"
        wanted = {"CACHEBUS_OUTBOX_TABLE": "cachebus_outbox"}
        status, out, _ = ran("doctor", *options, "--rules", rules, folder=folder, env=wanted)
        assert (status, "problem       table" in out) == (1, True), "a variable names it"
        await create_tables(database)
        await tell(database, ["DROP TABLE cachebus_outbox_dead"])
        status, out, _ = ran("doctor", *options, "--rules", rules, folder=folder)
        assert (status, "problem       table" in out) == (1, True), "a part of it is there"


async def test_a_topic_of_commands_that_nobody_wants_is_none_either(
    kafka: KafkaServer, own_server: EmbeddedServer, folder: Path, rules: str
) -> None:
    name = f"debezium-{secrets.token_hex(4)}"
    settings = setup(own_server.url, kafka.address, kafka_commands_topic=name)
    await made(settings)
    env = {"CACHEBUS_CDC_SOURCE": "kafka", "CACHEBUS_CDC_TOPICS": name, "CACHEBUS_NAMESPACE": name}
    options = ("--bootstrap-servers", kafka.address, "--rules", rules)
    status, out, errors = ran("doctor", own_server.url, *options, "--json", folder=folder, env=env)
    assert status == 1, "the topic of what is set aside is missing, too" + errors
    commands, cdc = json.loads(out)["workers"]
    assert not [one for one in commands["checks"] if one["problems"]], commands
    assert "there is none here (cachebus.commands)" in str(commands["checks"])
    assert {problem["subject"] for one in cdc["checks"] for problem in one["problems"]} == {f"{name}.cdc.dead"}
    status, out, _ = ran("doctor", own_server.url, *options[:2], folder=folder, env=env)
    assert (status, "problem       topic" in out) == (1, True), "it is asked for"


def test_an_option_that_cant_be_is_told_before_anything_is_looked_at(folder: Path, rules: str, tmp_path: Path) -> None:
    """Redis is away: that is not told first, nor is the option in its place."""
    away = f"redis://127.0.0.1:{free_port()}"
    wrong = {
        "CACHEBUS_DATABASE_URL": ("--rules", rules),
        "there is no outbox in MySQL": ("--database-url", "mysql://u:s3cret@h/d"),
        "No such file": ("--rules", str(tmp_path / "nowhere.toml"), "--database-url", "postgresql://h/d"),
    }
    for says, options in wrong.items():
        status, out, errors = ran("doctor", away, *options, folder=folder)
        assert (status, out) == (2, "")
        assert says in errors
        assert "s3cret" not in errors


def test_what_only_connecting_tells_of_an_option_is_a_problem_beside_all_else(
    own_server: EmbeddedServer, folder: Path
) -> None:
    url = "postgresql://u:s3cret@[h/d"
    status, out, errors = ran("doctor", own_server.url, "--database-url", url, folder=folder)
    assert status == 1, errors
    assert "eviction" in out
    assert "problem       options" in out
    assert "s3cret" not in out + errors
