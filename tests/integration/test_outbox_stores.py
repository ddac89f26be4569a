"""Relays of one table that work for different servers: once that is mended, what was applied at the wrong one is let go
of at the right one, by the relay that goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from cachebus.consumers.outbox import OutboxRelay, create_tables
from cachebus.consumers.outbox.knowledge import RelayKnowledge
from cachebus.consumers.outbox.options import RelayOptions
from cachebus.consumers.outbox.postgres import PostgresOutbox, PostgresSession
from cachebus.consumers.worker.source import AGREE_LOOKS, Finding, Left, NotStored
from cachebus.tools.servers.redis import EmbeddedServer
from tests.conftest import connected
from tests.support.caches import nodes, until
from tests.support.changes import tell
from tests.support.logs import told as lines_told
from tests.support.outbox import QUICKLY, invalidation, put, running, settings


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays look at their tables all the time."""
    monkeypatch.setattr("cachebus.consumers.worker.watcher.LOOK_EVERY_S", 0.05)


async def test_what_was_applied_at_another_server_is_let_go_of_when_that_relay_has_gone(
    database: str, redis_url: str, own_server: EmbeddedServer
) -> None:
    await create_tables(database)
    right = OutboxRelay(database, settings(redis_url), options=QUICKLY)
    wrong = OutboxRelay(database, settings(own_server.url), options=QUICKLY)
    async with nodes(redis_url, 1) as (cache,), connected(database) as connection:
        await cache.set("config", "good", "old", "acme")
        async with running(wrong):
            await until(lambda: wrong.health.ready)
            await put(connection, invalidation("good"))
            await until(lambda: wrong.meters.count("applied") == 1)
            async with running(right):
                await until(lambda: "different servers" in str(right.health.as_dict()["parts"]["stores"]["why"]))
                assert await cache.get("config", "good", "acme") == "old"
                wrong.drain()

                async def is_gone() -> bool:
                    return await cache.get("config", "good", "acme") is None

                await until(is_gone)
                await until(lambda: right.health.ready)
                with lines_told("ERROR") as told:
                    await cache.set("config", "good", "new", "acme")
                    await put(connection, invalidation("other"))
                    await until(lambda: right.meters.count("applied") == 1)
                    assert await cache.get("config", "good", "acme") == "new", "once"
                assert told == []


class Sessions:
    """Several relays' sessions, whose servers are told by name."""

    def __init__(self, session: PostgresSession, store: str) -> None:
        self.session = session
        self.names(store)

    def names(self, store: str) -> None:
        """It is for this server from now on."""
        self.session._known.identity = lambda: store

    async def missed(self) -> list[Finding]:
        """What it finds that is missed."""
        return [finding for finding in (await self.session.look()).findings if finding.missed]


async def test_relays_that_follow_a_failover_one_after_the_other_have_missed_nothing(database: str) -> None:
    await create_tables(database)

    def source() -> PostgresOutbox:
        return PostgresOutbox(database, "cachebus", RelayOptions())

    async with source().opened() as first:
        assert isinstance(first, PostgresSession)
        one = Sessions(first, "old")
        async with source().opened() as second:
            assert isinstance(second, PostgresSession)
            other = Sessions(second, "old")
            assert await one.missed() == await other.missed() == []
            one.names("new")
            assert await one.missed() == await other.missed() == []
            other.names("new")
            assert await other.missed() == await one.missed() == []
            for each in (first, second):  # whoever was there before goes on, and is noticed
                await each.take(1, ())
            one.names("newer")
            await first.take(1, ())
            assert await other.missed() == await one.missed() == []
            other.names("newer")
            await second.take(1, ())
            assert await other.missed() == await one.missed() == []
        assert await one.missed() == []
    async with source().opened() as third:  # it comes later
        assert isinstance(third, PostgresSession)
        stranger = Sessions(third, "elsewhere")

        async def takes() -> bool:
            """A session's end takes the server a moment."""
            await stranger.missed()
            await third.take(1, ())
            return third._stores.takes("cachebus public.cachebus_outbox", "elsewhere")

        await until(takes)
        (found,) = await stranger.missed()
        assert found.over
        await third.made_up([found])
        assert await stranger.missed() == []


async def test_without_what_it_remembers_a_relay_notices_those_that_it_has_seen(database: str) -> None:
    """Its role may neither use nor make the table."""
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute("DROP TABLE cachebus_outbox_relays")
    async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as first:
        assert isinstance(first, PostgresSession)
        one = Sessions(first, "ours")
        async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as third:
            assert isinstance(third, PostgresSession)
            stranger = Sessions(third, "elsewhere")
            await third.take(1, ())
            assert await stranger.missed() == await one.missed() == []

        async def is_missed() -> bool:
            """A session's end takes the server a moment."""
            return bool(await one.missed())

        await until(is_missed)
        (found,) = await one.missed()
        assert found.over
        await first.made_up([found])
        assert await one.missed() == []


async def lives(
    database: str, right: OutboxRelay, wrong: OutboxRelay, put_row: Callable[[], Awaitable[None]]
) -> tuple[int, int]:
    """How many rows each has applied, when the wrong one was there from its first step to its refusal."""
    async with running(right):
        await until(lambda: right.health.ready)
        await put_row()
        await until(lambda: right.meters.count("applied") == 1)
        async with running(wrong):
            for _ in range(20):
                await put_row()
            await until(lambda: "came later" in str(wrong.health.as_dict()["parts"]["stores"]["why"]))
            await until(lambda: right.meters.count("applied") == 21)
    return right.meters.count("applied"), wrong.meters.count("applied")


async def test_a_relay_that_comes_later_for_another_server_takes_nothing(
    database: str, redis_url: str, own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even before its second look at the tables."""
    monkeypatch.setattr("cachebus.consumers.worker.watcher.LOOK_EVERY_S", 0.7)
    await create_tables(database)
    right = OutboxRelay(database, settings(redis_url), options=QUICKLY)
    wrong = OutboxRelay(database, settings(own_server.url), options=QUICKLY)
    async with connected(database) as connection:
        assert await lives(database, right, wrong, lambda: put(connection, invalidation("x"))) == (21, 0)


async def test_what_a_relay_for_another_server_took_before_is_let_go_of_once(
    database: str, redis_url: str, own_server: EmbeddedServer
) -> None:
    """It has gone before the right one began."""
    await create_tables(database)
    async with nodes(redis_url, 1) as (cache,), connected(database) as connection:
        await cache.set("config", "good", "old", "acme")

        async def applied(url: str, *names: str) -> list[str]:
            with lines_told("WARNING") as told:
                async with running(OutboxRelay(database, settings(url), options=QUICKLY)) as relay:
                    for name in names:
                        await put(connection, invalidation(name))
                    await until(lambda: relay.meters.count("applied") == len(names))
                    await until(lambda: relay.health.ready)
            return told

        assert await applied(redis_url, "x") == []
        assert await applied(redis_url, "x") == []
        assert await cache.get("config", "good", "acme") == "old"
        await applied(own_server.url, "good")
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)):

            async def is_gone() -> bool:
                return await cache.get("config", "good", "acme") is None

            await until(is_gone)

            async def is_made_up() -> bool:
                return await connection.fetchval("SELECT missed FROM cachebus_outbox_relays") == 0

            await until(is_made_up)
        assert await applied(redis_url, "x") == []


async def test_a_table_made_anew_while_no_relay_ran_is_told_as_missed(database: str, redis_url: str) -> None:
    await create_tables(database)
    async with nodes(redis_url, 1) as (cache,), connected(database) as connection:
        await cache.set("config", "good", "old", "acme")
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
            await put(connection, invalidation("x"))
            await until(lambda: relay.meters.count("applied") == 1)

            async def is_remembered() -> bool:
                oid = await connection.fetchval("SELECT table_oid FROM cachebus_outbox_relays")
                return bool(oid) and oid == await connection.fetchval("SELECT 'cachebus_outbox'::regclass::oid::int8")

            await until(is_remembered)
        await put(connection, invalidation("good"))
        await connection.execute("DROP TABLE cachebus_outbox")
        await create_tables(database)
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)):

            async def is_gone() -> bool:
                return await cache.get("config", "good", "acme") is None

            await until(is_gone)
            await until(is_remembered)


async def test_a_table_to_remember_by_is_made_where_that_is_allowed_and_told_where_not(
    database: str, redis_url: str
) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute("DROP TABLE cachebus_outbox_relays")
        async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as session:
            (found,) = (await session.look()).findings
            assert (found.assumption, found.stops) == ("stores", False)
            assert found.remedy.startswith("cachebus worker outbox --create-table")
        async with running(OutboxRelay(database, settings(redis_url), options=QUICKLY)) as relay:
            await until(lambda: relay.health.ready)

            async def is_remembered() -> bool:
                return await connection.fetchval("SELECT count(*) FROM cachebus_outbox_relays") == 1

            await until(is_remembered)


async def test_a_relay_that_can_not_know_for_which_server_it_takes_rows_takes_none_beside_another(
    database: str,
) -> None:
    """A primary of its Cluster is away since its start. What it took alone is missed by whoever knows."""
    await create_tables(database)
    source = PostgresOutbox(database, "cachebus", RelayOptions())
    async with connected(database) as connection, source.opened() as first, source.opened() as second:
        assert isinstance(first, PostgresSession)
        assert isinstance(second, PostgresSession)
        first._known, second._known = RelayKnowledge(60.0), RelayKnowledge(60.0)
        for session in (first, second):
            session._stores._strangers = session._known.strangers
        unknown, right = Sessions(first, ""), Sessions(second, "ours")
        assert await right.missed() == await unknown.missed() == []
        await put(connection, invalidation("x"))
        await second.acknowledge(await second.take(10, ()), Left())
        await put(connection, invalidation("y"))
        assert (await first.take(10, ())).items == [], "the right one takes them"
        await second._connection.execute("SELECT pg_advisory_unlock_all()")  # it has gone
        second._stores._held.clear()
        for _ in range(AGREE_LOOKS):
            assert await unknown.missed() == []
        batch = await first.take(10, ())
        assert [item.place for item in batch.items] == ["row 2"]
        await first.acknowledge(batch, Left())
        assert (await second.take(10, ())).items == [], "it comes later now"
        unknown.names("ours")
        await first.take(10, ())
        (found,) = await unknown.missed()
        assert found.over


async def test_what_relays_remember_is_written_once_it_can_be_and_written_again_where_it_was_restored(
    database: str,
) -> None:
    await create_tables(database)
    async with connected(database) as connection:
        await connection.execute("DROP TABLE cachebus_outbox_relays")

        async def l2() -> str | None:
            return await connection.fetchval("SELECT l2 FROM cachebus_outbox_relays")

        async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as session:
            assert isinstance(session, PostgresSession)
            one = Sessions(session, "ours")
            await session.take(1, ())
            await create_tables(database)
            for _ in range(2):
                assert await one.missed() == []
            assert await l2() == "ours"
            assert await connection.fetchval("SELECT table_oid FROM cachebus_outbox_relays") > 0
            await connection.execute("UPDATE cachebus_outbox_relays SET l2 = 'another', missed = 0")
            for _ in range(AGREE_LOOKS):
                await one.missed()
            assert await l2() == "ours"
            (found,) = await one.missed()
            assert found.over


async def test_where_it_can_not_be_remembered_no_row_is_taken_not_at_the_second_try_either(database: str) -> None:
    await create_tables(database)
    async with connected(database) as connection, connected(database) as other:
        await put(connection, invalidation("x"))
        await connection.execute("INSERT INTO cachebus_outbox_relays VALUES ('cachebus', 'before', 0, 0)")
        async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as session:
            assert isinstance(session, PostgresSession)
            one = Sessions(session, "ours")
            await one.missed()
            await other.execute("BEGIN; SELECT FROM cachebus_outbox_relays FOR UPDATE")
            for _ in range(2):
                session._rest_until_s = float("-inf")
                assert (await session.take(10, ())).items == []
            await other.execute("COMMIT")
            session._rest_until_s = float("-inf")
            batch = await session.take(10, ())
            assert len(batch.items) == 1
            await session.acknowledge(batch, Left())
            (found,) = await one.missed()
            await other.execute("BEGIN; SELECT FROM cachebus_outbox_relays FOR UPDATE")
            with pytest.raises(NotStored):
                await session.made_up([found])
            await other.execute("COMMIT")
            await session.made_up([found])
            assert await one.missed() == []


async def test_a_relay_that_may_not_make_its_table_goes_on(database: str) -> None:
    """A trigger forbids it, which no right tells of; and the table of rows was locked for a moment."""
    await create_tables(database)
    async with connected(database) as connection, connected(database) as other:
        await put(connection, invalidation("x"))
        await connection.execute("DROP TABLE cachebus_outbox_relays")
        await connection.execute(
            "CREATE FUNCTION never() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'never'; END $$;"
            "CREATE EVENT TRIGGER never ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION never()"
        )
        async with PostgresOutbox(database, "cachebus", RelayOptions()).opened() as session:
            assert isinstance(session, PostgresSession)
            await session.look()
            assert not await session.mend([])
            await other.execute("BEGIN; LOCK TABLE cachebus_outbox IN ACCESS EXCLUSIVE MODE")
            assert (await session.take(10, ())).items == []
            await other.execute("COMMIT")
            (found,) = (await session.look()).findings
            assert found.assumption == "stores"
            session._rest_until_s = float("-inf")
            assert len((await session.take(10, ())).items) == 1


async def test_a_session_that_outlives_its_relay_is_named_and_ended_by_what_is_told(database: str) -> None:
    """As where a host has vanished: the server keeps its session, with its locks, for as long as TCP does."""
    await create_tables(database)
    source = PostgresOutbox(database, "cachebus", RelayOptions())
    async with source.opened() as left, PostgresOutbox(database, "cachebus", RelayOptions()).opened() as session:
        assert isinstance(left, PostgresSession)
        assert isinstance(session, PostgresSession)
        assert await left._connection.fetchval("SHOW tcp_keepalives_idle") == "5"
        pid = await left._connection.fetchval("SELECT pg_backend_pid()")
        Sessions(left, "elsewhere")
        await left.take(1, ())
        Sessions(session, "here")
        await until(lambda: _is_told_of(session, pid))
        (found,) = (await session.look()).findings
        assert f"the session {pid} from 127.0.0.1" in found.problem
        await tell(database, [found.remedy[found.remedy.index("SELECT") :]])
        await until(lambda: _has_none(session))


async def _is_told_of(session: PostgresSession, pid: int) -> bool:
    return any(str(pid) in one.remedy for one in (await session.look()).findings)


async def _has_none(session: PostgresSession) -> bool:
    return (await session.look()).findings == []
