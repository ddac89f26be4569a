"""The worker around any source, with one in memory that fails in every way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cachebus import Cache, ConfigError
from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.monitoring.meters import Meters
from cachebus.consumers.worker import assumptions, dead_letter_writer, retry, source_worker, watcher
from cachebus.consumers.worker.apply import Carried
from cachebus.consumers.worker.source import Finding, Meaning
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.keys.plan import Plan
from cachebus.producers.command import Invalidate, InvalidateCoordinated, Related
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.at_work import at_work, invalidation
from tests.support.caches import nodes, quick, until
from tests.support.logs import WITH_LEVEL, told
from tests.support.memory_source import Gone, MemorySource, Poisoned, scope

GOOD = "good"


@pytest.fixture
def said() -> Any:
    """What the workers' log says."""
    with told(form=WITH_LEVEL) as lines:
        yield lines


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """One that has a value which the good command invalidates."""
    async with nodes(redis_url, 1) as (cache,):
        await cache.set("config", GOOD, 1, "acme")
        yield cache


async def is_gone(cache: Cache, tenant: str) -> bool:
    return await cache.get("config", "x", tenant) is None


async def gone(cache: Cache, resource_id: str | int = GOOD) -> None:
    """Until the command for this one was applied."""

    async def absent() -> bool:
        return await cache.get("config", resource_id, "acme") is None

    await until(absent)


def raising(error: BaseException) -> Callable[[], Any]:
    """A row that raises."""

    def row() -> Any:
        raise error

    return row


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (b"{", "Invalid JSON"),
        (b"[" * 100_000, ""),
        (b'{"op": "invalidate", "x\\u0000\\n": 1}', ""),
        (invalidation("1", tenant_id="a\0b"), ""),
        (invalidation("x" * 5000), ""),
        (b'{"op": "invalidate", "tenant_id": "acme", "data_type": "t", "resource_id": "\\ud800"}', ""),
        (raising(RecursionError("too deep")), "RecursionError while it was read"),
        (raising(ZeroDivisionError()), "ZeroDivisionError while it was read"),
        (raising(ValueError("first\nINFO forged \u65e5 \0")), "first"),
        (Meaning([invalidation("1")], ["the old row has no tenant"]), "the old row has no tenant"),
    ],
    ids=range(10),
)
async def test_no_item_holds_up_another(
    cache: Cache, redis_url: str, poison: Any, reason: str, said: list[str]
) -> None:
    source = MemorySource()
    source.put(poison, invalidation(GOOD))
    async with at_work(source, redis_url) as worker:
        await gone(cache)
        await until(lambda: not source.rows)
        assert worker.meters.count("dead") == len(source.dead) == 1
    (letter,) = source.dead
    assert reason in letter.reason
    assert letter.reason.isascii() and letter.reason.isprintable()
    assert len(letter.reason) <= 500
    assert not [line for line in said if not line.rstrip("\n").isprintable() or "INFO forged" in line.split("first")[0]]


async def test_what_can_be_named_of_an_item_is_applied_beside_its_letter(cache: Cache, redis_url: str) -> None:
    source = MemorySource()
    source.put(Meaning([invalidation(GOOD), invalidation("x" * 5000)], ["half of it"]))
    async with at_work(source, redis_url):
        await gone(cache)
        await until(lambda: not source.rows)
    (letter,) = source.dead
    assert "half of it" in letter.reason and "resource_id" in letter.reason


@pytest.mark.parametrize("kind", ["invalidate", "coordinated"])
async def test_a_related_name_that_no_cache_takes_costs_the_others_of_a_change_nothing(
    cache: Cache, redis_url: str, kind: Any
) -> None:
    good, bad = Related(data_type="config", resource_id=GOOD), Related(data_type="note", resource_id="x" * 600)
    await cache.set("config", "own", 1, "acme")
    given: Any = {"op": kind, "tenant_id": "acme", "data_type": "config"}
    command = Invalidate if kind == "invalidate" else InvalidateCoordinated
    source = MemorySource()
    source.put(Meaning([command(**given, resource_id="own", related=(bad, good))]))
    source.put(Meaning([command(**given, resource_id="y" * 600, related=(good,))]))
    async with at_work(source, redis_url):
        await gone(cache)
        assert await cache.get("config", "own", "acme") is None
        await until(lambda: not source.rows)
    assert [letter.reason.split(" is too long")[0] for letter in source.dead] == [
        "note: resource_id",
        "config: resource_id",
    ]


async def test_a_plan_that_l2_never_takes_is_set_aside_alone(
    cache: Cache, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemorySource()
    source.put(*[invalidation(f"n{number}") for number in range(20)], invalidation("bad"), invalidation(GOOD))
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        send = worker._applier._producer.send

        async def fails(plan: Plan, wait: str | None = None) -> Any:
            if any("bad" in key.l2 for key in plan.keys):
                raise OverflowError("no server takes this")
            return await send(plan, wait)

        monkeypatch.setattr(worker._applier._producer, "send", fails)
        source.put(invalidation("bad"), *[invalidation(f"m{number}") for number in range(20)])
        await until(lambda: not source.rows)
    assert "OverflowError: no server takes this" in source.dead[-1].reason
    assert len(source.dead) <= 2


async def test_letters_that_cant_be_kept_are_kept_bare(cache: Cache, redis_url: str) -> None:
    source = MemorySource()
    source.put(b"one", b"two poison", b"three", invalidation(GOOD))

    def set_aside(letters: Any) -> None:
        if any(b"poison" in letter.payload for letter in letters):
            raise Poisoned("not in this encoding")

    source.faults["set_aside"] = set_aside
    async with at_work(source, redis_url) as worker:
        await gone(cache)
        await until(lambda: not source.rows)
        assert worker.meters.count("dead") == 3
        await until(lambda: worker.health.ready)
    kept = {letter.source: letter.payload for letter in source.dead}
    assert kept == {"row 1": b"one", "row 3": b"three", "row 2": b""}


async def test_one_letter_that_cant_be_kept_rests_and_is_told(cache: Cache, redis_url: str, said: list[str]) -> None:
    """The others of its batch are set aside, and those that come later; nothing says that it was."""
    source = MemorySource()
    source.put(b"one", b"two", b"three", invalidation(GOOD))
    tried: list[str] = []

    def set_aside(letters: Any) -> None:
        tried.extend(letter.source for letter in letters)
        if any(letter.source == "row 2" for letter in letters):
            raise Poisoned("not in this encoding")

    source.faults["set_aside"] = set_aside
    async with at_work(source, redis_url) as worker:
        await gone(cache)
        await until(lambda: len(source.rows) == 1 and not worker.health.is_up("dead"))
        source.put(b"four", invalidation("another"))
        await until(lambda: list(source.rows) == [2])
        assert worker.meters.count("dead") == 3
        why = worker.health.as_dict()["parts"]["dead"]["why"]
        assert "row 2 can be neither applied (" in why and "Poisoned: not in this encoding" in why
        before = len(tried)
        await until(lambda: "row 2" in tried[before:])  # it is tried again
        assert not [line for line in said if "row 2 is set aside" in line]
        del source.faults["set_aside"]
        await until(lambda: not source.rows and worker.health.ready)
        assert worker.meters.count("dead") == 4
    assert sum("nor set aside" in line for line in said) == 1


async def never() -> None:
    """Hangs."""
    await asyncio.Event().wait()


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_place_of_the_dead_that_takes_nothing_costs_a_batch_little_time(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    """However many can't be set aside: it is left alone for a while, and then for longer."""
    monkeypatch.setattr(dead_letter_writer, "REST_S", 60.0)
    monkeypatch.setattr(dead_letter_writer, "REST_MAX_S", 60.0)
    source, asked = MemorySource(limit=50), 0

    def set_aside(letters: Any) -> Any:
        nonlocal asked
        asked += 1
        if hangs:
            return never()
        raise RuntimeError("there is no place")

    source.faults["set_aside"] = set_aside
    async with at_work(source, redis_url) as worker:
        source.put(*[b"?"] * 200, *[invalidation(number) for number in range(200)])
        await until(lambda: worker.meters.count("applied") == 200)
        await until(lambda: len(source.rows) == 200)
        assert asked <= (1 if hangs else 99)
        assert worker.meters.count("dead") == 0


@pytest.mark.parametrize("step", ["open", "take", "acknowledge", "look"])
@pytest.mark.parametrize("error", [Gone("away"), RuntimeError("a bug")], ids=["trouble", "unexpected"])
async def test_a_source_that_fails_is_come_back_to(
    cache: Cache, redis_url: str, step: str, error: Exception, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.01)
    source, times = MemorySource(), iter([True] * 3)

    def fails(*_: Any) -> None:
        if next(times, False):
            raise error

    source.faults[step] = fails
    async with at_work(source, redis_url) as worker:
        source.put(b"?", invalidation(GOOD))
        await gone(cache)
        await until(lambda: not source.rows and worker.health.ready)
        await until(lambda: next(times, None) is None)
    assert source.opens >= 2
    assert any("place is out of reach" in line for line in said)
    assert any("unexpected, and tried again: RuntimeError" in line for line in said) == isinstance(error, RuntimeError)


async def test_what_no_waiting_helps_against_ends_it(redis_url: str) -> None:
    source = MemorySource()

    def fails() -> None:
        raise ConfigError("no such thing")

    source.faults["open"] = fails
    with pytest.raises(ConfigError, match="no such thing"):
        await asyncio.wait_for(SourceWorker("test", source, quick(redis_url)).run(), 10)


async def test_a_slow_l2_is_given_less_at_a_time_and_what_was_applied_is_let_go(own_server: EmbeddedServer) -> None:
    """A batch that takes too long as a whole gets done all the same."""

    source = MemorySource(limit=4000, hold_s=0.05)
    async with nodes(own_server.url, 1) as (cache,):
        await cache.set("config", 2999, 1, "acme")
        async with at_work(source, own_server.url, l2_timeout_s=0.2) as worker:
            await until(lambda: worker.health.ready)
            producer = worker._applier._producer
            send, busy = producer.send, asyncio.Lock()

            async def slowly(plan: Plan, wait: str | None = None) -> Any:
                async with busy:
                    await asyncio.sleep(0.03 * len(plan.keys) / 100)
                return await send(plan, wait)

            producer.send = slowly  # type: ignore[method-assign]
            source.put(*[invalidation(number) for number in range(3000)])
            await until(lambda: not source.rows)
            assert worker.meters.count("applied") == 3000
            await gone(cache, 2999)
    assert source.taken[0] == 3000
    assert min(source.taken) < 3000
    assert sum(source.taken) < 5 * 3000, "what was applied is not taken again, however busy this machine is"


async def test_an_item_that_takes_longer_than_a_batch_may_is_done_all_the_same(redis_url: str) -> None:
    source = MemorySource(hold_s=0.05)
    async with at_work(source, redis_url, l2_timeout_s=0.05) as worker:
        await until(lambda: worker.health.ready)
        producer = worker._applier._producer
        send = producer.send

        async def slowly(plan: Plan, wait: str | None = None) -> Any:
            await asyncio.sleep(0.2)
            return await send(plan, wait)

        producer.send = slowly  # type: ignore[method-assign]
        source.put(invalidation(1), invalidation(2))
        await until(lambda: not source.rows)
        assert worker._patience == 1


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("hold_s", [None, 0.1])
async def test_without_l2_it_waits_and_then_goes_on(
    own_server: EmbeddedServer, hold_s: float | None, known: bool, frozen: bool
) -> None:
    """Whether it notices that L2 is away by an item, or by itself before one comes."""
    source = MemorySource(hold_s=hold_s)
    async with at_work(source, own_server.url) as worker:
        await until(lambda: worker.health.ready)
        own_server.pause() if frozen else own_server.kill()
        if known:
            await until(lambda: not worker.health.ready)
        source.put(invalidation(1))
        await until(lambda: not worker.health.ready)
        await asyncio.sleep(0.3)
        assert source.rows
        own_server.resume() if frozen else own_server.start()
        await until(lambda: not source.rows)
        await until(lambda: worker.health.ready)


async def test_what_was_in_hand_when_l2_hung_is_done_once_it_goes_on(own_server: EmbeddedServer) -> None:
    source = MemorySource(hold_s=0.1)
    async with at_work(source, own_server.url, l2_timeout_s=0.2) as worker:
        await until(lambda: worker.health.ready)
        own_server.pause()
        source.put(invalidation(1))
        await until(lambda: not worker.health.is_up("l2"))
        await until(lambda: worker._limit < source.limit)  # it was given back
        own_server.resume()
        await until(lambda: not source.rows)
        await until(lambda: worker.health.ready)


async def test_large_fan_out_does_not_hold_the_loop(redis_url: str) -> None:
    related = [{"data_type": f"r{number % 40}", "resource_id": f"{number}:x"} for number in range(150)]
    source = MemorySource(limit=5000)
    source.put(*[Meaning([invalidation(number, related=related)]) for number in range(400)])
    worst_s = 0.0

    async def beat() -> None:
        nonlocal worst_s
        while True:
            began_s = monotonic()
            await asyncio.sleep(0)
            worst_s = max(worst_s, monotonic() - began_s)

    beating = asyncio.create_task(beat())
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    async with at_work(source, redis_url) as worker:
        await until(lambda: not source.rows)
        assert worker.meters.count("applied") == 400
    for task in beating, counting:
        task.cancel()
    print(f"the loop was held {worst_s * 1000:.0f} ms at most, and turned {turns} times")
    assert turns > 400 * 150 / source_worker.NAMES_AT_ONCE * 3, "it reads some, and lets others in between"


async def test_killed_while_it_carries_nothing_is_let_go(redis_url: str) -> None:
    source = MemorySource()
    source.put(invalidation(1))
    going_on = asyncio.Event()

    async def never(*_: Any) -> None:
        going_on.set()
        await asyncio.Event().wait()

    source.faults["acknowledge"] = never
    worker = SourceWorker("test", source, quick(redis_url))
    task = asyncio.create_task(worker.run())
    await going_on.wait()
    task.cancel()
    await asyncio.wait([task])
    assert source.rows


async def test_draining_finishes_what_is_in_hand_and_takes_no_more(redis_url: str) -> None:
    source = MemorySource(limit=10)
    source.put(*[invalidation(number) for number in range(100)])
    began, going_on = asyncio.Event(), asyncio.Event()

    async def slowly(*_: Any) -> None:
        began.set()
        await going_on.wait()

    source.faults["acknowledge"] = slowly
    worker = SourceWorker("test", source, quick(redis_url))
    task = asyncio.create_task(worker.run())
    await began.wait()
    worker.drain()
    going_on.set()
    await asyncio.wait_for(task, 10)
    assert len(source.rows) == 90


BROKEN = Finding(
    "shape", "public.o", "it has no column tenant_id", "ALTER TABLE o ADD COLUMN tenant_id text;", missed=True
)


async def test_what_is_assumed_and_not_so_is_told_and_made_up_for(
    cache: Cache, redis_url: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.01)
    source = MemorySource()
    source.names = lambda _: [scope("config")]
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        source.findings = [BROKEN]
        await gone(cache)
        await until(lambda: not worker.health.ready)
        told = worker.health.as_dict()["parts"]
        assert told["shape"]["why"] == str(BROKEN)
        assert told["access"]["up"]
        assert worker.meters.registry.get_sample_value("cachebus_worker_up", {"worker": "test", "part": "shape"}) == 0
        source.put(invalidation("other"))
        await until(lambda: not source.rows)
        await until(lambda: source.made_up == [BROKEN])
        await cache.set("config", GOOD, 2, "acme")
        source.findings = []
        await gone(cache)
        await until(lambda: worker.health.ready)
        assert source.made_up == [BROKEN, BROKEN]
    assert [line.partition(" (")[0].rstrip("\n") for line in said if "shape" in line] == [
        f"ERROR test: shape: {BROKEN}",
        "WARNING test: shape: public.o: is in order again, after 0 s",
    ]


async def test_of_what_is_made_up_for_what_no_cache_takes_costs_the_rest_nothing(
    cache: Cache, redis_url: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.01)
    source = MemorySource()
    source.names = lambda _: [scope("config", 600 * "x"), scope("config")]
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        source.findings = [BROKEN]
        await gone(cache)
        await until(lambda: source.made_up == [BROKEN])
    assert any("can't be let go of: tenant_id" in line for line in said)


async def test_while_it_lasts_it_is_told_once_a_minute_and_made_up_for_more_often() -> None:
    now_s = 0.0
    health = WorkerHealth("test", ("shape",))
    watched = assumptions.Assumptions("test", ["shape"], health, lambda: now_s)
    due = []
    for _ in range(181):
        due += watched.update([BROKEN])
        now_s += 1.0
    assert len(due) == 1 + 180 / assumptions.MAKE_UP_EVERY_S
    assert len(watched.update([])) == 1
    assert health.ready


async def test_what_can_be_mended_is_mended_and_never_told(
    redis_url: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.01)
    source = MemorySource()

    def mended(_: Any) -> bool:
        source.findings = []
        return True

    source.mends, source.findings = mended, [BROKEN]
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        assert not source.findings
    assert not [line for line in said if "shape" in line]


async def test_nothing_is_taken_while_something_says_so(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(source_worker, "STOPPED_S", 0.01)
    source = MemorySource()
    source.findings = [BROKEN._replace(stops=True, missed=False)]
    async with at_work(source, redis_url) as worker:
        await until(lambda: "no column" in worker.health.as_dict()["parts"]["shape"]["why"])
        source.put(invalidation(1))
        await asyncio.sleep(0.1)
        assert source.rows
        source.findings = []
        await until(lambda: not source.rows)


def test_what_is_over_is_owed_once_however_long_it_takes_to_make_up_for() -> None:
    """As a part of L2 is away: the others would be emptied every few seconds."""
    now_s = 0.0
    watched = assumptions.Assumptions("test", ["shape"], WorkerHealth("test", ("shape",)), lambda: now_s)
    due = []
    for _ in range(60):
        due += watched.update([BROKEN._replace(over=True)])
        now_s += 1.0
    assert len(due) == 1
    assert len(watched.update([BROKEN._replace(over=True, state="once more")])) == 1


def test_two_remedies_of_one_part_are_told_with_one_semicolon_between_them() -> None:
    health = WorkerHealth("test", ("shape",))
    watched = assumptions.Assumptions("test", ["shape"], health)
    watched.update([BROKEN._replace(subject=one, remedy=f"GRANT {one};") for one in ("a", "b")])
    told = health.as_dict()["parts"]["shape"]["why"]
    assert told.count(";;") == 0
    assert "GRANT a; b: " in told
    assert told.endswith("GRANT b;")


def test_what_happens_again_is_made_up_for_again() -> None:
    """Also where nobody has looked in between."""
    watched = assumptions.Assumptions("test", ["shape"], WorkerHealth("test", ("shape",)))
    past = BROKEN._replace(over=True)
    assert watched.update([past]) == [past]
    assert watched.update([past]) == [], "it is under way"
    watched.made_up([past])
    assert watched.update([past]) == [past]


def test_the_log_ends_with_that_it_is_in_order_once_what_is_over_is_made_up_for(said: list[str]) -> None:
    now_s = 0.0
    watched = assumptions.Assumptions("test", ["shape"], WorkerHealth("test", ("shape",)), lambda: now_s)
    past = BROKEN._replace(over=True, remedy="", state="ended")
    watched.update([BROKEN])
    for _ in range(2):  # some of it was not seen yet: it is made up for once more
        now_s += 2.0
        watched.update([past])
        watched.made_up([past])
    now_s += 2.0
    watched.update([])
    watched.update([])
    assert [line.rstrip("\n") for line in said] == [
        f"ERROR test: shape: {BROKEN}",
        f"ERROR test: shape: {past}",
        f"ERROR test: shape: {past}",
        "WARNING test: shape: public.o: is in order again, after 6 s",
    ]


async def test_where_nobody_can_name_what_was_missed_everything_is_let_go_of_once(
    cache: Cache, redis_url: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.01)
    source, tenants = MemorySource(), [f"tenant {number}" for number in range(20)]
    for tenant in tenants:
        await cache.set("config", "x", 1, tenant)
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        source.findings = [BROKEN]
        await until(lambda: source.made_up)
        assert await cache.get("config", "x", tenants[0]) == 1, "what lasts is told, lest it empty all caches for ever"
        source.findings = []
        for tenant in tenants:
            await until(lambda tenant=tenant: is_gone(cache, tenant))
        await until(lambda: worker.health.ready)
        await cache.set("config", "x", 1, "acme")
        source.findings = [BROKEN._replace(over=True)]
        await until(lambda: is_gone(cache, "acme"))
    told = [line for line in said if "nobody can name what they touched" in line]
    assert any("invalidate by hand" in line for line in told)
    assert any("all that the namespace has is let go of" in line for line in told)


async def test_what_has_happened_once_more_is_made_up_for_once_more(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only a minute later: the one was over and made up for before the other happened."""
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.01)
    source = MemorySource()
    source.names = lambda _: [scope("config")]
    source.findings = [BROKEN._replace(over=True)]
    async with at_work(source, redis_url):
        await until(lambda: len(source.made_up) > 1)


async def test_what_could_not_be_made_up_for_is_due_again(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.05)
    source = MemorySource()
    source.names = lambda _: [scope("config")]
    async with at_work(source, own_server.url) as worker:
        await until(lambda: worker.health.ready)
        own_server.kill()
        source.findings = [BROKEN._replace(over=True)]
        await until(lambda: not worker.health.is_up("l2"))
        assert not source.made_up
        own_server.start()
        await until(lambda: source.made_up)


async def test_time_without_progress_is_told(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.01)
    source = MemorySource()

    def figure(worker: SourceWorker) -> float:
        found = worker.meters.registry.get_sample_value("cachebus_worker_progress_seconds", {"worker": "test"})
        assert found is not None
        return found

    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        assert figure(worker) == 0

        def fails(*_: Any) -> None:
            raise Gone("away")

        source.faults["acknowledge"] = fails
        source.put(invalidation(1))
        await until(lambda: figure(worker) > 0.2)
        del source.faults["acknowledge"]
        await until(lambda: not source.rows and figure(worker) == 0)


async def test_that_a_look_fails_is_told_at_once_however_long_a_step_takes(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.01)
    source, going_on = MemorySource(), asyncio.Event()
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        stuck = asyncio.Event()

        async def never(*_: Any) -> None:
            stuck.set()
            await going_on.wait()

        def fails() -> None:
            if not going_on.is_set():
                raise Gone("away")

        source.faults["acknowledge"] = never
        source.put(invalidation(1))
        await stuck.wait()
        source.faults["look"] = fails
        await until(lambda: not worker.health.is_up("place"))
        going_on.set()
        await until(lambda: not source.rows and worker.health.is_up("place"))


async def test_what_waits_is_given_back_some_of_it_at_a_time(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch of which all waits for a primary that is away, and that names much."""
    monkeypatch.setattr(source_worker, "NAMES_AT_ONCE", 20)
    monkeypatch.setattr(source_worker, "WAITING_AT_ONCE", 50)
    source = MemorySource()
    given: list[tuple[int, int]] = []
    source.faults["acknowledge"] = lambda batch, left: given.append((len(left.waiting), len(left.undone)))
    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        carry = worker._applier.carry

        async def away(plans: Any, within_s: float | None = None) -> Carried:
            return Carried(away=set(range(len(plans))))

        worker._applier.carry = away  # type: ignore[method-assign]
        related = [{"data_type": "r", "resource_id": number} for number in range(9)]
        source.put(*[invalidation(number, related=related) for number in range(100)])
        await until(lambda: len(given) >= 3)
        worker._applier.carry = carry  # type: ignore[method-assign]
        await until(lambda: not source.rows)
    assert max(waiting for waiting, _ in given) <= 10
    assert given[0][0] + given[0][1] == 100


async def test_a_source_that_takes_no_acknowledgement_is_down_and_asked_ever_less_often(
    redis_url: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.01)
    source, seen, pauses = MemorySource(), [], []
    source.sent_s = wall_s()
    sleep = asyncio.sleep

    async def noted(pause_s: float, *rest: Any) -> Any:
        if asyncio.current_task() is working:
            pauses.append(pause_s)
        return await sleep(min(pause_s, 0.01), *rest)

    def fails(*_: Any) -> None:
        raise Gone("the disk is full")

    async with at_work(source, redis_url) as worker:
        await until(lambda: worker.health.ready)
        working = next(task for task in asyncio.all_tasks() if task.get_name() == "cachebus-test")
        monkeypatch.setattr(retry.asyncio, "sleep", noted)
        source.faults["acknowledge"] = fails
        source.put(*[invalidation(number) for number in range(50)])
        await until(lambda: not worker.health.ready)
        while source.opens < 9:
            seen.append(worker.health.ready)
            await sleep(0.001)
        assert not any(seen)
        waits = [pause_s for pause_s in pauses if pause_s >= retry.FIRST_S / 2]
        assert max(waits) > 16 * retry.FIRST_S
        figures = worker.meters.registry.get_sample_value
        assert worker.meters.count("applied") == 0
        assert figures("cachebus_worker_lag_seconds_count", {"worker": "test"}) == 0
        del source.faults["acknowledge"]
        await until(lambda: not source.rows and worker.health.ready)
        assert worker.meters.count("applied") + worker.meters.count("again") == 50
        assert figures("cachebus_worker_lag_seconds_count", {"worker": "test"}) == 50
    assert sum("is back after" in line for line in said) == 1


def test_where_no_look_succeeds_the_oldest_grows_older(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("cachebus.consumers.monitoring.meters.monotonic", lambda: now_s)
    meters = Meters(WorkerHealth("test", ()))

    def oldest_s() -> float | None:
        return meters.registry.get_sample_value("cachebus_worker_oldest_seconds", {"worker": "test"})

    meters.waits(3, 5.0)
    now_s += 2
    assert oldest_s() == 5.0, "as it was last looked at"
    now_s += 60
    assert oldest_s() == 67.0
    meters.waits(0, 0.0)
    assert oldest_s() == 0.0


@pytest.mark.parametrize("backlog", [6, None])
def test_what_nobody_knows_the_age_of_has_waited_since_nothing_did(
    monkeypatch: pytest.MonkeyPatch, backlog: int | None
) -> None:
    now_s = 100.0
    monkeypatch.setattr("cachebus.consumers.monitoring.meters.monotonic", lambda: now_s)
    meters = Meters(WorkerHealth("test", ()))

    def oldest_s() -> float | None:
        return meters.registry.get_sample_value("cachebus_worker_oldest_seconds", {"worker": "test"})

    meters.waits(0, None)
    for _ in range(3):
        now_s += 2
        meters.waits(backlog, None)
    assert oldest_s() == 6.0
    meters.waits(backlog, 40.0)
    now_s += 2
    meters.waits(backlog, None)
    assert oldest_s() == 42.0, "as old as it was, and since then"
    meters.waits(0, None)
    assert oldest_s() == 0.0


def test_many_that_were_sent_together_are_told_together() -> None:
    health = WorkerHealth("test", ())
    one, other = Meters(health), Meters(health)
    for lag_s in (0.0, 0.0015, 7.0, 10_000.0):
        one.lag(lag_s, 3)
        for _ in range(3):
            other.lag(lag_s)
    told = [
        {
            (sample.name, *sample.labels.values()): sample.value
            for family in meters.registry.collect()
            for sample in family.samples
            if sample.name.startswith("cachebus_worker_lag_seconds") and not sample.name.endswith("_created")
        }
        for meters in (one, other)
    ]
    assert told[0] == pytest.approx(told[1])
    assert told[0]["cachebus_worker_lag_seconds_count", "test"] == 12
