"""Counters: plain integers beside the records."""

from __future__ import annotations

import pytest

from cachebus.errors import L2Unavailable
from tests.contract.people import LONG_MS, SHORT_MS, Person, key, scope
from tests.contract.rig import RedisRig, StoreRig, until


async def count(person: Person, amount: int, what: str = "n", request: str = "", expires_ms: int = 0) -> int:
    return await person.store.counter(key(what), person.caller, amount, request, expires_ms)


async def test_it_adds_and_zero_reads(ann: Person, bob: Person) -> None:
    assert await count(ann, 0) == 0
    assert await count(ann, 3) == 3
    assert await count(bob, 4) == 7
    assert await count(bob, -10) == -3
    assert await count(ann, 0) == -3
    assert await count(ann, 1, "other") == 1
    assert await count(ann, 2**52) == 2**52 - 3


async def test_a_request_counts_once(ann: Person, bob: Person) -> None:
    assert await count(ann, 1, request="a") == 1
    assert await count(bob, 10) == 11
    assert await count(ann, 1, request="a") == 1, "what it answered then"
    assert await count(ann, 1, request="b") == 12
    assert await count(ann, 5, "other", request="a") == 5, "a request is the counter's own"
    assert await count(ann, 0) == 12


async def test_it_expires_when_told_to_and_begins_at_zero(ann: Person) -> None:
    assert await count(ann, 5, expires_ms=SHORT_MS) == 5

    async def expired() -> bool:
        return await count(ann, 0) == 0

    await until(expired)
    assert await count(ann, 1) == 1


async def test_the_first_expiry_stays(ann: Person) -> None:
    """A rate limiter's window begins with its first request, and is not moved by the next."""
    for window_ms in (SHORT_MS, 8 * SHORT_MS, 64 * SHORT_MS):  # on a slow machine the first may be over at once
        what = f"window of {window_ms}"
        await count(ann, 1, what, expires_ms=window_ms)
        if await count(ann, 1, what, expires_ms=LONG_MS) == 2:
            break

    async def expired() -> bool:
        return await count(ann, 0, what) == 0

    await until(expired)


async def test_reading_sets_no_expiry(ann: Person) -> None:
    await count(ann, 5)
    await count(ann, 0, expires_ms=1)
    await count(ann, 0, "absent", expires_ms=1)
    await count(ann, 1, "absent")

    async def passed() -> bool:
        return await count(ann, 0, "clock") == 0

    await count(ann, 1, "clock", expires_ms=SHORT_MS)
    await until(passed)
    assert await count(ann, 0) == 5
    assert await count(ann, 0, "absent") == 1


async def test_it_is_no_part_of_records_scopes_and_epochs(rig: StoreRig, ann: Person) -> None:
    await count(ann, 5)
    await ann.write(key("n"))
    assert await count(ann, 1) == 6
    await ann.invalidate(key("n"), names=[scope()])
    await rig.another_server()
    assert await count(ann, 1) == 7
    assert await ann.store.log(0, 0, 10) == [], "and no event tells of it"


async def test_a_request_is_remembered_for_a_minute(redis: RedisRig) -> None:
    ann = await Person(await redis.store(), "ann").attach()
    assert await count(ann, 1, request="a") == 1
    left_ms = await redis.redis.call("PTTL", f"{redis.names.request_prefix}{key('n').l2}:a")
    assert 50_000 < left_ms <= 60_000
    assert await redis.redis.call("PTTL", redis.names.counter_prefix + key("n").l2) == -1


@pytest.mark.parametrize("plant", [("SET", "{}", "no number"), ("RPUSH", "{}", "a list")])
async def test_nonsense_under_a_counter_reads_as_zero_and_is_not_counted_on(
    redis: RedisRig, plant: tuple[str, ...]
) -> None:
    ann = await Person(await redis.store(), "ann").attach()
    name = redis.names.counter_prefix + key("n").l2
    await redis.redis.call(*[part.format(name) for part in plant])
    assert await count(ann, 0) == 0
    with pytest.raises(L2Unavailable):
        await count(ann, 1)
