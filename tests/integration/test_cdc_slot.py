"""The worker that follows a slot: what it sets up and refuses, what it sets aside, what it waits for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from cachebus import Cache, ConfigError
from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import RuleFile, parse_rules
from cachebus.consumers.cdc.slot import connecting, reader
from cachebus.consumers.cdc.slot.postgres import SlotWorker
from cachebus.consumers.cdc.slot.replay import replay
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.preflight import preflight
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.postgres import PostgresServer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.conftest import connected
from tests.support.caches import quick, until
from tests.support.cdc_slot import ORDER, THE_END, worker
from tests.support.changes import END, RULES, SCHEMA, Heard, fetched, fetched_is, rules, running, tell
from tests.support.logs import told

DEAD = "SELECT reason, payload, attempts, source FROM cachebus_cdc_dead ORDER BY id"


async def problem(database: str, redis_url: str, said: str, given: RuleFile | None = None, **more: Any) -> str:
    """What the worker says is wrong, once this is part of it: it is not ready, and does not end."""
    one = worker(database, redis_url, given, **more)
    task = asyncio.create_task(one.run())
    await until(lambda: said in _told(one), within_s=20)
    assert not one.health.ready
    assert not task.done()
    one.drain()
    await asyncio.wait_for(task, 20)
    return _told(one)


def _told(one: SlotWorker) -> str:
    return "; ".join(part["why"] for part in one.health.as_dict()["parts"].values())


async def test_a_committed_row_reaches_every_cache(database: str, redis_url: str) -> None:
    await tell(database, [SCHEMA])
    async with Cache(quick(redis_url)) as cache, running(worker(database, redis_url)) as _:
        await cache.set("order", "1", "old", tenant_id="acme")
        await cache.set("embedding", "order:1", "old", tenant_id="acme")
        await cache.set("order_list", "all", "old", tenant_id="acme")
        await cache.set("order", "1", "theirs", tenant_id="globex")
        await tell(database, [ORDER.format(1)])
        for key in (("order", "1"), ("embedding", "order:1"), ("order_list", "all")):
            await until(lambda key=key: _absent(cache, *key))
        assert await cache.get("order", "1", tenant_id="globex") == "theirs"


async def _absent(cache: Cache, data_type: str, resource_id: str, tenant_id: str = "acme") -> bool:
    return await cache.get(data_type, resource_id, tenant_id=tenant_id) is None


async def test_after_a_drain_another_goes_on_where_it_stopped(database: str, redis_url: str) -> None:
    await tell(database, [SCHEMA])
    first = worker(database, redis_url)
    before = Heard(first)
    async with running(first):
        await tell(database, [ORDER.format(1)])
        await until(lambda: before.has("order", "1"))
    await tell(database, [ORDER.format(2)])
    second = worker(database, redis_url)
    heard = Heard(second)
    async with running(second):
        await tell(database, [THE_END])
        await until(lambda: heard.has(*END))
        assert heard.has("order", "2")
        assert not heard.has("order", "1"), "the slot had moved on"
        lags = "cachebus_worker_lag_seconds_count", {"worker": "cdc"}
        await until(lambda: second.meters.registry.get_sample_value(*lags) == 2)


async def test_it_drains_at_once_while_l2_is_not_there_yet(database: str) -> None:
    one = worker(database, f"redis://127.0.0.1:{free_port()}/0")
    task = asyncio.create_task(one.run())
    await until(lambda: not one.health.is_up("l2"))
    one.drain()
    await asyncio.wait_for(task, 5)


async def test_a_transaction_larger_than_a_peek_is_applied_in_parts_and_passed(database: str, redis_url: str) -> None:
    await tell(database, [SCHEMA])
    small = worker(database, redis_url, batch=10)
    heard = Heard(small)
    async with running(small):
        await tell(
            database, ["INSERT INTO shop.orders SELECT g, 'acme', 1, '' FROM generate_series(1000, 6000) g", THE_END]
        )
        await until(lambda: heard.has(*END), within_s=30)
        assert all(heard.has("order", str(number)) for number in range(1000, 6001))
        assert heard.asked["K acme:order:1000"] == 1, "it was told once"


async def test_what_no_rule_is_for_does_not_hold_the_log_back(database: str, redis_url: str) -> None:
    await tell(database, [SCHEMA])
    idle = worker(database, redis_url)
    async with running(idle):
        others = "CREATE TABLE {} AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 3000)"
        await tell(database, [others.format("others")])
        now = await fetched(database, "SELECT pg_current_wal_lsn()::text")
        await tell(
            database, [others.format("more")]
        )  # the last megabyte of others' is no matter: it may be before `now`
        passed = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2"
        await until(lambda: fetched(database, passed, now, idle.source.names.slot))


async def test_a_row_that_cant_be_used_is_set_aside_counted_and_brought_back(database: str, redis_url: str) -> None:
    loose = parse_rules(RULES.replace('resource_id = "{name}"', 'resource_id = "{value}"'))
    await tell(database, [SCHEMA, "ALTER TABLE other.settings REPLICA IDENTITY FULL"])
    one = worker(database, redis_url, loose)
    heard = Heard(one)
    async with running(one):
        await tell(database, ["INSERT INTO other.settings VALUES ('theme', repeat('x', 600)), ('limit', '5')", THE_END])
        await until(lambda: heard.has(*END))
        assert heard.asked["K :system:5"] == 1, "those around it pass"
        await until(lambda: one.meters.count("dead") == 1)
        async with connected(database) as connection:
            (letter,) = await connection.fetch(DEAD)
        assert "resource_id is too long" in letter["reason"]
        assert letter["attempts"] == 1
        assert '"name": "theme"' in letter["payload"]
        again = await replay(SecretStr(database), "cachebus_cdc", Router(loose), one._applier)
        assert again == (0, 1)
        assert await fetched(database, "SELECT attempts FROM cachebus_cdc_dead") == 2
        assert await replay(SecretStr(database), "cachebus_cdc", Router(rules()), one._applier) == (1, 0)
        with pytest.raises(ConfigError, match="no worker has followed a slot other in this database"):
            await replay(SecretStr(database), "other", Router(rules()), one._applier)
        assert heard.asked["K :system:theme"] == 1
        assert await fetched(database, "SELECT count(*) FROM cachebus_cdc_dead") == 0


async def test_a_row_of_megabytes_that_cant_be_used_is_set_aside_too(database: str, redis_url: str) -> None:
    """A letter with all of its value would be six times as large, and be kept nowhere in time."""
    loose = parse_rules(RULES.replace('resource_id = "{name}"', 'resource_id = "{value}"'))
    await tell(database, [SCHEMA])
    one = worker(database, redis_url, loose)
    heard = Heard(one)
    async with running(one):
        await tell(database, ["INSERT INTO other.settings VALUES ('theme', repeat(chr(1), 20000000))", THE_END])
        await until(lambda: heard.has(*END))
        await until(lambda: one.meters.count("dead") == 1)
        async with connected(database) as connection:
            (letter,) = await connection.fetch(DEAD)
        assert '"value": {"text": "(20000000 characters are left out)"}' in letter["payload"]


async def test_of_two_one_works_and_the_other_takes_over(database: str, redis_url: str) -> None:
    await tell(database, [SCHEMA])
    first, second = worker(database, redis_url), worker(database, redis_url)
    heard = Heard(second)
    working = asyncio.create_task(first.run())
    await until(lambda: first.follows)
    async with asyncio.TaskGroup() as group:
        group.create_task(second.run())
        await until(lambda: second.health.is_up("slot"))
        assert first.follows
        assert not second.follows
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await until(lambda: second.follows)
        await tell(database, [THE_END])
        await until(lambda: heard.has(*END))
        second.drain()


async def test_a_restart_of_the_database_is_waited_for(redis_url: str) -> None:
    with PostgresServer() as server:
        await tell(server.url, [SCHEMA])
        one = worker(server.url, redis_url)
        heard = Heard(one)
        async with running(one):
            await tell(server.url, [ORDER.format(1)])
            await asyncio.to_thread(server.kill)
            await until(lambda: not one.health.is_up("database"))
            await asyncio.to_thread(server.start)
            await until(lambda: tell_when_up(server.url))
            await until(lambda: heard.has(*END), within_s=30)
            assert heard.has("order", "1")
            assert one.health.is_up("database")


async def tell_when_up(database: str) -> bool:
    with suppress(OSError, asyncpg.PostgresError):
        await tell(database, [THE_END])
        return True
    return False


async def test_an_outage_of_l2_is_waited_for_without_holding_a_transaction_open(
    database: str, own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tell(database, [SCHEMA])
    monkeypatch.setattr("cachebus.consumers.cdc.slot.reader.HOLD_S", 0.2)
    one = worker(database, own_server.url)
    heard = Heard(one)
    async with running(one):
        own_server.kill()
        await tell(
            database, ["INSERT INTO shop.orders SELECT g, 'acme', 1, '' FROM generate_series(1000, 3500) g", THE_END]
        )
        await until(lambda: not one.health.is_up("l2"))
        mine = """
            SELECT count(*) FROM pg_stat_activity
            WHERE application_name LIKE 'cachebus-cdc%' AND datname = current_database() AND xact_start IS NOT NULL
        """
        await until(lambda: fetched_is(database, 0, mine))
        own_server.start()
        await until(lambda: heard.has(*END), within_s=30)
        assert all(heard.has("order", str(number)) for number in range(1000, 3501))


async def test_a_lost_slot_is_told_and_not_passed_over(database: str, redis_url: str) -> None:
    await tell(database, [SCHEMA])
    async with running(worker(database, redis_url)):
        pass
    await tell(database, ["SELECT pg_drop_replication_slot('cachebus_cdc')", ORDER.format(1)])
    one = worker(database, redis_url, on_lost_slot="stop")
    task = asyncio.create_task(one.run())
    await until(lambda: one.health.as_dict()["parts"]["slot"]["why"].startswith("cachebus_cdc: lost: it is gone"))
    assert not await fetched(database, "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")
    one.drain()
    await asyncio.wait_for(task, 20)
    mending = worker(database, redis_url)
    heard = Heard(mending)
    async with Cache(quick(redis_url)) as cache:
        await cache.set("order", "1", "old", tenant_id="acme")
        async with running(mending):
            assert await cache.get("order", "1", tenant_id="acme") is None
            assert heard.asked["D globex embedding"] == 1
            await tell(database, [THE_END])
            await until(lambda: heard.has(*END))


async def test_of_tenants_that_nobody_names_all_is_let_go_of(database: str, redis_url: str) -> None:
    _, rule, *_, cascade = RULES.replace("[[cascade]]", "[[rule]]").split("[[rule]]")
    unnamed = parse_rules(f"[[rule]]{rule}[[cascade]]{cascade}")
    await tell(database, [SCHEMA])
    async with running(worker(database, redis_url, unnamed)):
        pass
    await tell(database, ["SELECT pg_drop_replication_slot('cachebus_cdc')", ORDER.format(1)])
    async with Cache(quick(redis_url)) as cache:
        tenants = [f"tenant {number}" for number in range(40)]
        for tenant in tenants:
            await cache.set("order", "1", "old", tenant)
            await cache.set("embedding", "order:1", "old", tenant)
        await cache.set("other", "1", "kept", "acme")
        async with running(worker(database, redis_url, unnamed)):
            for tenant in tenants:
                assert await cache.get("order", "1", tenant) is None
                assert await cache.get("embedding", "order:1", tenant) is None, "a cascade reaches it"
            assert await cache.get("other", "1", "acme") == "kept"
            for tenant in tenants:
                await cache.set("order", "1", "old", tenant)
            await tell(database, ["TRUNCATE shop.orders"])
            for tenant in tenants:
                await until(lambda tenant=tenant: _absent(cache, "order", "1", tenant))


async def test_a_slot_made_anew_whose_loss_was_not_made_up_for_is_a_lost_one(database: str, redis_url: str) -> None:
    await tell(database, [SCHEMA])
    async with running(worker(database, redis_url)):
        pass
    await tell(database, ["UPDATE cachebus_cdc_slots SET whole = false"])
    one = worker(database, redis_url)
    heard = Heard(one)
    async with running(one):
        assert heard.asked["D acme order"] == 1
        assert await fetched(database, "SELECT whole FROM cachebus_cdc_slots")


async def test_a_server_that_removes_what_it_was_to_keep_is_noticed(redis_url: str) -> None:
    with PostgresServer(
        settings={"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    ) as server:
        await tell(server.url, [SCHEMA])
        async with running(worker(server.url, redis_url)):
            pass
        for first in (1, 300_000):
            fill = f"INSERT INTO shop.unruled SELECT g FROM generate_series({first}, {first} + 200000) g"
            await tell(server.url, [fill, "SELECT pg_switch_wal()", "CHECKPOINT"])
        assert await fetched(server.url, "SELECT wal_status FROM pg_replication_slots") == "lost"
        one = worker(server.url, redis_url, on_lost_slot="stop")
        task = asyncio.create_task(one.run())
        await until(lambda: "max_slot_wal_keep_size" in one.health.as_dict()["parts"]["slot"]["why"])
        one.drain()
        await asyncio.wait_for(task, 20)
        async with running(worker(server.url, redis_url)):
            assert await fetched(server.url, "SELECT wal_status FROM pg_replication_slots") != "lost"


async def test_wal_that_is_held_back_is_measured_and_warned_of(database: str, redis_url: str) -> None:
    await tell(database, [SCHEMA])
    one = worker(database, redis_url, wal_warning_bytes=1)
    with told() as said:
        async with running(one):
            await until(lambda: any("GiB of WAL" in line for line in said))
            assert one.meters.registry.get_sample_value("cachebus_cdc_wal_retained_bytes")
            assert one.meters.registry.get_sample_value("cachebus_cdc_active") == 1


async def test_what_is_set_up_wrong_is_told_with_what_mends_it(
    database: str, postgres: PostgresServer, redis_url: str
) -> None:
    await problem(database, redis_url, "there is no such table")
    await tell(database, [SCHEMA, "ALTER TABLE shop.notes DROP COLUMN title"])
    await problem(database, redis_url, "shop.notes: it has no column 'title'")
    await tell(database, ["ALTER TABLE shop.notes ADD title text, ALTER folder TYPE numeric"])
    await problem(database, redis_url, "column 'folder' is neither text nor a whole number")
    await tell(database, ["ALTER TABLE shop.notes ALTER folder TYPE int, REPLICA IDENTITY DEFAULT"])
    said = await problem(database, redis_url, 'it is not as replica_identity = "full" says')
    assert 'ALTER TABLE "shop"."notes" REPLICA IDENTITY FULL' in said
    await tell(database, ["ALTER TABLE shop.notes REPLICA IDENTITY FULL", "CREATE TABLE shop.keyless (id int)"])
    keyless = parse_rules("""
        [[rule]]
        table = "shop.keyless"
        data_type = "system"
        resource_id = "{id}"
        operations = ["insert"]
    """)
    said = await problem(database, redis_url, "has no primary key: once published", keyless, slot="k", publication="k")
    assert 'ALTER TABLE "shop"."keyless" REPLICA IDENTITY FULL; ALTER PUBLICATION "k" ADD TABLE ONLY' in said
    await tell(database, ["DROP TABLE shop.keyless", "CREATE PUBLICATION p FOR ALL TABLES WITH (publish = 'insert')"])
    await problem(database, redis_url, "leaves out delete, truncate, update", publication="p")
    await tell(database, ["SELECT pg_create_logical_replication_slot('s', 'test_decoding')"])
    await problem(database, redis_url, "of the plugin test_decoding, not pgoutput", slot="s")
    other = "SELECT pg_create_logical_replication_slot('s2', 'pgoutput')"
    async with connected(postgres.url) as connection:
        await connection.execute(other)
        try:
            await problem(database, redis_url, "is of the database 'postgres'", slot="s2")
        finally:
            await connection.execute("SELECT pg_drop_replication_slot('s2')")


async def test_who_may_not_make_them_is_told_the_sql(database: str, redis_url: str) -> None:
    await tell(database, [SCHEMA, "DROP ROLE IF EXISTS cdc_small", "CREATE ROLE cdc_small LOGIN"])
    small = database.replace("postgres@", "cdc_small@")
    try:
        said = await problem(small, redis_url, "this user may not make it")
        assert "to mend it: CREATE TABLE IF NOT EXISTS public.cachebus_cdc_slots" in said
        await tell(database, ["GRANT CREATE ON SCHEMA public TO cdc_small"])
        said = await problem(small, redis_url, "this user may not mend it")
        assert 'CREATE PUBLICATION "cachebus_cdc" FOR TABLE ONLY "other"."settings", ONLY "shop"."notes"' in said
        await tell(database, ["CREATE PUBLICATION few FOR TABLE shop.orders"])
        said = await problem(small, redis_url, "'few' leaves it out, and this user may not mend it", publication="few")
        assert 'ALTER PUBLICATION "few" ADD TABLE ONLY "shop"."notes";' in said
        await tell(database, ["CREATE PUBLICATION cachebus_cdc FOR ALL TABLES"])
        said = await problem(small, redis_url, "cachebus_cdc: it is not there, and this user may not make it")
        assert "SELECT pg_create_logical_replication_slot('cachebus_cdc', 'pgoutput')" in said
        await tell(database, ["ALTER ROLE cdc_small REPLICATION"])
        async with running(worker(small, redis_url)):
            pass
    finally:
        await tell(database, ["DROP OWNED BY cdc_small", "DROP ROLE cdc_small"])


async def test_a_role_that_loses_its_right_is_told_what_gives_it_back(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)
    role = f"cdc_{database.rpartition('_')[2]}"
    await tell(database, [SCHEMA, f"CREATE ROLE {role} LOGIN REPLICATION", f"GRANT CREATE ON SCHEMA public TO {role}"])
    await tell(database, ["CREATE PUBLICATION cachebus_cdc FOR ALL TABLES"])
    theirs = database.replace("postgres@", f"{role}@")
    one = worker(theirs, redis_url)
    heard = Heard(one)
    try:
        async with running(one):
            await tell(database, [f"ALTER ROLE {role} NOREPLICATION"])
            await until(lambda: f"to mend it: ALTER ROLE {role} REPLICATION;" in _told(one))
            seen = {name.what: name.findings for name in await preflight(worker(theirs, redis_url))}
            assert "its role lacks REPLICATION" in str(seen["slot"][0])
            await tell(database, [THE_END, f"ALTER ROLE {role} REPLICATION"])
            await until(lambda: heard.has(*END))
            await until(lambda: one.health.ready)
    finally:
        await tell(database, [f"DROP OWNED BY {role}", f"DROP ROLE {role}"])


async def test_a_table_that_a_rule_was_written_for_later_is_added(database: str, redis_url: str) -> None:
    await tell(database, [SCHEMA])
    head, _, rest = RULES.partition('[[rule]]\ntable = "*.settings"')
    few = parse_rules(head.partition('[[rule]]\ntable = "shop.notes"')[0] + rest[rest.index("[[cascade]]") :])
    async with running(worker(database, redis_url, few)):
        pass
    more = parse_rules(head + rest[rest.index("[[cascade]]") :])
    one = worker(database, redis_url, more)
    heard = Heard(one)
    async with running(one):
        await tell(database, ["INSERT INTO shop.notes (code, tenant_id) VALUES (gen_random_uuid(), 'acme')", THE_END])
        await until(lambda: heard.has(*END))
        assert any(name.startswith("K acme:note:") for name in heard.asked)


async def test_a_slot_may_take_longer_to_advance_than_anything_else(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server reads its log once more for it, from where the oldest open transaction began."""
    monkeypatch.setattr(connecting, "COMMAND_TIMEOUT_S", 1.0)
    advance = reader.advance
    slow = "WITH late AS MATERIALIZED (SELECT pg_sleep(1.5)) SELECT FROM late"
    monkeypatch.setattr(reader, "advance", lambda slot, target: f"COMMIT; {slow}; {advance(slot, target)}")
    await tell(database, [SCHEMA])
    async with Cache(quick(redis_url)) as cache, running(one := worker(database, redis_url)):
        await until(lambda: one.follows)
        await cache.set("order", "1", "old", tenant_id="acme")
        await tell(database, [ORDER.format(1)])
        await until(lambda: one.meters.count("applied") == 1)
        sql = "SELECT confirmed_flush_lsn > $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = 'cachebus_cdc'"
        before = await fetched(database, "SELECT pg_current_wal_insert_lsn()::text")
        await tell(database, [ORDER.format(2)])
        await until(lambda: fetched(database, sql, before))
        assert one.meters.count("applied") == 2


async def test_what_was_applied_is_not_told_again(database: str, redis_url: str) -> None:
    """What is committed between the look at the log's end and the look into the slot is passed with the rest."""
    await tell(database, [SCHEMA])
    one = worker(database, redis_url)
    heard = Heard(one)
    async with running(one):
        await tell(database, [*(ORDER.format(number) for number in range(1000, 1300)), THE_END])
        await until(lambda: heard.has(*END))
        assert {heard.asked[f"K acme:order:{number}"] for number in range(1000, 1300)} == {1}
