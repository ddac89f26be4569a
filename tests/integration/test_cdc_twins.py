"""Workers of one slot that would not do the same: each says so while the other lives."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack

import pytest

from cachebus.consumers.cdc.rules.rules import RuleFile, parse_rules
from cachebus.consumers.cdc.slot.postgres import SlotWorker
from cachebus.consumers.cdc.slot.twins import L2, RULES, Twins
from cachebus.consumers.worker import watcher
from cachebus.consumers.worker.preflight import preflight
from cachebus.consumers.worker.source import AGREE_LOOKS
from cachebus.tools.servers.redis import EmbeddedServer
from tests.conftest import connected
from tests.support.caches import until
from tests.support.cdc_surroundings import HEAD, RULE, Looks, at_work, given, worker
from tests.support.changes import running, tell
from tests.support.worker_health import why

TABLES = [
    f"CREATE TABLE {name} (id int PRIMARY KEY, tenant_id text); ALTER TABLE {name} REPLICA IDENTITY FULL"
    for name in ("o", "p")
]


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)


async def told_by_check(one: SlotWorker) -> str:
    """What a check of it says of the slot's workers: nothing of other rules, which may be those to come."""
    return " ".join(str(found) for seen in await preflight(one) if seen.what == "leader" for found in seen.findings)


async def agree(*workers: SlotWorker) -> None:
    """They go on being well."""
    looks = [Looks(one) for one in workers]
    await until(lambda: all(one.count > 2 * AGREE_LOOKS for one in looks))
    assert all(one.health.is_up("leader") for one in workers)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (("o", "p"), ("o",), "no rule is for it any more"),
        (("o",), ("o", "o"), "rules say another thing of it than before"),
        (("o",), ("o", "p"), "leaves it out"),
    ],
    ids=["fewer", "another", "more"],
)
async def test_a_check_of_rules_that_are_to_come_finds_nothing_to_mend(
    database: str, redis_url: str, before: tuple[str, ...], after: tuple[str, ...], said: str
) -> None:
    """What they make up for, the worker does by itself: a deployment is not to be kept from it."""
    await tell(database, TABLES)
    to_come = parse_rules(HEAD + "".join(RULE.format(name, f"{name}{at}") for at, name in enumerate(after)))
    async with running(worker(database, redis_url, given(*before))):
        checked = await preflight(worker(database, redis_url, to_come))
        assert [one for one in checked if one.findings] == []
        warned = [warning for one in checked for warning in one.warnings]
        assert [one for one in warned if said in one and "a worker that starts sees to it" in one], warned
    async with running(second := worker(database, redis_url, to_come)):
        await until(lambda: second.follows and second.health.ready)


async def test_a_table_that_no_worker_may_publish_is_a_problem_of_rules_that_are_to_come(
    database: str, redis_url: str
) -> None:
    await tell(database, TABLES)
    async with running(worker(database, redis_url, given("o"))):
        pass
    role = f"small_{secrets.token_hex(4)}"
    await tell(
        database, [f"CREATE ROLE {role} LOGIN REPLICATION", f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"]
    )
    try:
        theirs = database.replace("postgres@", f"{role}@")
        checked = {one.what: one for one in await preflight(worker(theirs, redis_url, given("o", "p")))}
        assert "leaves it out" in str(checked["publication"].findings)
    finally:
        await tell(database, [f"DROP OWNED BY {role}", f"DROP ROLE {role}"])


@pytest.mark.parametrize("differs", ["another Redis", "other rules"])
async def test_workers_of_a_slot_that_would_not_do_the_same_say_so_while_both_live(
    database: str, redis_url: str, own_server: EmbeddedServer, differs: str
) -> None:
    """1. One leads, and its twin stands by. 2. So does one that is unlike them. 3. It leads, and they stand by. 4. It
    is gone."""
    await tell(database, TABLES)

    def like(*, unlike: bool) -> SlotWorker:
        of_redis = unlike and differs == "another Redis"
        rules: RuleFile = given("p" if unlike and differs == "other rules" else "o")
        return worker(database, own_server.url if of_redis else redis_url, rules)

    other = like(unlike=True)
    async with AsyncExitStack() as stack:
        async with running(first := like(unlike=False)):
            await until(lambda: first.follows)
            await agree(first)
            assert await told_by_check(like(unlike=False)) == ""
            assert (differs in await told_by_check(like(unlike=True))) == (differs != "other rules")
            await agree(first)  # a check shows itself to nobody
            await stack.enter_async_context(at_work(other))
            for one in (first, other):
                await until(lambda one=one: differs in why(one, "leader"))
        await until(lambda: other.follows and other.health.is_up("leader"))
        async with at_work(second := like(unlike=False)):
            for one in (second, other):
                await until(lambda one=one: differs in why(one, "leader"))
            assert (differs in await told_by_check(like(unlike=False))) == (differs != "other rules")
            await stack.aclose()
            await until(lambda: second.follows and second.health.ready)
            assert await told_by_check(like(unlike=False)) == ""


async def test_a_worker_of_another_namespace_by_mistake_is_told_so_and_those_of_the_slot_are_well(
    database: str, redis_url: str
) -> None:
    """1. It comes beside them. 2. It is there alone, and lets one of them begin."""
    await tell(database, TABLES)

    def stranger() -> SlotWorker:
        return worker(database, redis_url, namespace="other", slot="cachebus_cdc", publication="cachebus_cdc")

    async with running(worker(database, redis_url)):
        pass
    async with at_work(other := stranger()):
        async with running(first := worker(database, redis_url)):
            await until(lambda: "it serves the namespace 'cachebus'" in why(other, "slot"))
            await agree(first)
            assert other.health.is_up("leader"), "nor does it say what it can't know"
            assert await told_by_check(worker(database, redis_url)) == ""
            assert await told_by_check(stranger()) == ""
        looks = Looks(other)
        await until(lambda: looks.count > 2)
        async with running(second := worker(database, redis_url)):
            await until(lambda: second.follows)
            await agree(second)


async def test_a_worker_whose_redis_has_another_name_by_now_is_no_stranger_to_its_twin(
    database: str, own_server: EmbeddedServer
) -> None:
    """It has lost all. They learn it one after the other."""
    await tell(database, TABLES)
    async with running(first := worker(database, own_server.url)), at_work(second := worker(database, own_server.url)):
        await agree(first, second)
        before = first.source.identity()
        own_server.restart()
        await until(lambda: "" != first.source.identity() == second.source.identity() != before)
        await until(lambda: first.health.ready and second.health.ready)
        await agree(first, second)


async def test_one_whose_sessions_the_server_has_ended_leaves_no_trace(
    database: str, redis_url: str, own_server: EmbeddedServer
) -> None:
    """As it ends those of a process that was killed."""
    await tell(database, TABLES)
    first, other = worker(database, redis_url), worker(database, own_server.url)
    async with running(first), at_work(other), connected(database) as connection:
        await until(lambda: "another Redis" in why(first, "leader"))
        other.source._url = "postgresql://127.0.0.1:1/nowhere"
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 "
            "AND objid::bigint = hashtext($1)::bigint & 4294967295",
            other.source.identity(),
        )
        await until(lambda: first.health.is_up("leader"))


@pytest.mark.parametrize("kind", [L2, RULES])
async def test_a_session_that_outlives_its_worker_is_named_and_ended_by_what_is_told(database: str, kind: str) -> None:
    """As where a host has vanished: the server keeps its session, with its locks, until TCP gives up."""
    async with connected(database) as left, connected(database) as ours:
        pid = await left.fetchval("SELECT pg_backend_pid()")
        await Twins(left, "a_slot").show(kind, "other")
        found = await Twins(ours, "a_slot").finding(kind, "own", looks=1)
        assert found is not None
        assert f"the session {pid} from 127.0.0.1" in found.problem
        await tell(database, [sql := found.remedy[found.remedy.index("SELECT") :]])
        assert str(pid) in sql
        twins = Twins(ours, "a_slot")
        await until(lambda: _is_well(twins, kind))


async def _is_well(twins: Twins, kind: str) -> bool:
    return await twins.finding(kind, "own", looks=1) is None
