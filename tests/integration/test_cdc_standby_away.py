"""A synchronous standby is away, and applications do not wait for it: the worker does not, either."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.slot.postgres import SlotSource, SlotWorker
from cachebus.consumers.worker import watcher
from cachebus.tools.servers.postgres import PostgresServer
from tests.support.caches import quick, until
from tests.support.cdc_surroundings import at_work, given, worker
from tests.support.changes import Heard, fetched, running, tell
from tests.support.primaries import SHARDS, Town

LOCAL = "SET synchronous_commit = local"
TABLE = "CREATE TABLE o (id text, tenant_id text, PRIMARY KEY (id, tenant_id)); ALTER TABLE o REPLICA IDENTITY FULL"
PUT = "INSERT INTO o VALUES ('{}', '{}')"
ACME = PUT.replace("'{}')", "'acme')")
DEAD = "SELECT count(*) FROM cachebus_cdc_dead"
HELD = "SELECT count(*) FROM cachebus_cdc_held"
WITHIN_S = 10
"""Much less than the time-out of a command, behind which a session would end."""


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)


@pytest.fixture
def alone() -> Iterator[str]:
    """A server whose synchronous standby is away, and whose default is to wait for it."""
    with PostgresServer(settings={"synchronous_standby_names": "nobody"}) as server:
        yield server.url


async def test_behind_a_dead_letter_changes_are_applied(alone: str, redis_url: str) -> None:
    await tell(alone, [LOCAL, TABLE])
    one = worker(alone, redis_url, given())
    heard = Heard(one)
    async with running(one):
        await tell(alone, [LOCAL, ACME.format("q" * 600), ACME.format("behind")])
        await until(lambda: heard.has("o", "behind"), within_s=WITHIN_S)
        await tell(alone, [LOCAL, ACME.format("later")])
        await until(lambda: heard.has("o", "later"), within_s=WITHIN_S)
        assert await fetched(alone, DEAD) == 1
        assert one.health.ready


async def test_an_altered_table_is_made_up_for_and_changes_are_applied(alone: str, redis_url: str) -> None:
    await tell(alone, [LOCAL, TABLE])
    one = worker(alone, redis_url, given())
    heard = Heard(one)
    async with running(one):
        await tell(alone, [LOCAL, "ALTER TABLE o ADD COLUMN more int"])
        await until(lambda: heard.asked["D acme o"], within_s=WITHIN_S)
        await tell(alone, [LOCAL, "INSERT INTO o VALUES ('behind', 'acme')"])
        await until(lambda: heard.has("o", "behind"), within_s=WITHIN_S)
        await until(lambda: one.health.ready, within_s=WITHIN_S)


async def test_while_a_primary_of_l2_is_away_as_well_the_others_are_told(alone: str) -> None:
    await tell(alone, [LOCAL, TABLE])
    rules = parse_rules(
        '[[rule]]\ntable = "public.o"\ndata_type = "config"\nresource_id = "{id}"\ntenant_id = "{tenant_id}"\n'
        'operations = ["insert"]\n'
    )
    async with Town(None, primaries=3, replicas=0) as town:
        settings = quick(town.url, shards=SHARDS)
        one = SlotWorker(settings, rules, SlotSource(SecretStr(alone), poll_s=0.005))
        heard = Heard(one)
        away, there, _ = town.tenants
        async with at_work(one):
            await until(lambda: one.follows)
            town.servers[0].pause()
            try:
                for number in range(3):
                    name = str(number)
                    await tell(alone, [LOCAL, PUT.format(name, away), PUT.format(name, there)])
                    await until(lambda name=name: heard.has("config", name, there), within_s=WITHIN_S)
                await until(lambda: fetched(alone, HELD), within_s=WITHIN_S)
            finally:
                town.servers[0].resume()
            await until(lambda: all(heard.has("config", str(number), away) for number in range(3)), within_s=20)
