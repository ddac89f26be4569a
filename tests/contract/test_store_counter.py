"""Counters: plain integers beside the records."""

from __future__ import annotations

import pytest

from cachebus.errors import L2Unavailable
from cachebus.l2.memory import MemoryShard
from tests.contract.clients import LONG_MS, NOBODY, SHORT_MS, Client, key, scope
from tests.contract.rig import RedisRig, StoreRig, until


async def count(client: Client, amount: int, what: str = "n", request: str = "", expires_ms: int = 0) -> int | None:
    return await client.store.counter(key(what), client.caller, amount, request, expires_ms)


async def test_it_adds_and_zero_reads(ann: Client, bob: Client) -> None:
    assert await count(ann, 0) == 0
    assert await count(ann, 3) == 3
    assert await count(bob, 4) == 7
    assert await count(bob, -10) == -3
    assert await count(ann, 0) == -3
    assert await count(ann, 1, "other") == 1
    assert await count(ann, 2**52) == 2**52 - 3


async def test_a_request_counts_once(ann: Client, bob: Client) -> None:
    assert await count(ann, 1, request="a") == 1
    assert await count(bob, 10) == 11
    assert await count(ann, 1, request="a") == 1, "what it answered then"
    assert await count(ann, 1, request="b") == 12
    assert await count(ann, 5, "other", request="a") == 5, "a request is the counter's own"
    assert await count(ann, 0) == 12


async def test_it_expires_when_told_to_and_begins_at_zero(ann: Client) -> None:
    assert await count(ann, 5, expires_ms=SHORT_MS) == 5

    async def expired() -> bool:
        return await count(ann, 0) == 0

    await until(expired)
    assert await count(ann, 1) == 1


async def test_the_first_expiry_stays(ann: Client) -> None:
    """A rate limiter's window begins with its first request, and is not moved by the next."""
    for window_ms in (SHORT_MS, 8 * SHORT_MS, 64 * SHORT_MS):  # on a slow machine the first may be over at once
        what = f"window of {window_ms}"
        await count(ann, 1, what, expires_ms=window_ms)
        if await count(ann, 1, what, expires_ms=LONG_MS) == 2:
            break

    async def expired() -> bool:
        return await count(ann, 0, what) == 0

    await until(expired)


async def test_reading_sets_no_expiry(ann: Client) -> None:
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


async def test_it_is_no_part_of_records_scopes_and_epochs(rig: StoreRig, ann: Client) -> None:
    await count(ann, 5)
    await ann.write(key("n"))
    assert await count(ann, 1) == 6
    await ann.invalidate(key("n"), scopes=[scope()])
    await rig.another_server()
    assert await count(ann, 1) == 7
    assert await ann.store.log(0, 0, 10) == [], "and no event tells of it"


@pytest.mark.parametrize("value", [2**53 + 1, 2**63 - 1, -(2**53) - 1, -(2**63)])
async def test_it_is_exact_to_the_last_of_its_64_bits(ann: Client, bob: Client, value: int) -> None:
    assert await count(ann, value, request="a") == value
    assert await count(bob, 0) == value
    assert await count(bob, value, request="a") == value, "what it answered then"
    step = -1 if value > 0 else 1
    assert await count(bob, step) == value + step
    assert await count(bob, -value - step) == 0


@pytest.mark.parametrize("sign", [1, -1])
async def test_what_would_leave_64_bits_is_not_added(ann: Client, sign: int) -> None:
    last = 2**63 - 1 if sign > 0 else -(2**63)
    assert await count(ann, last, expires_ms=LONG_MS) == last
    assert await count(ann, sign) is None
    assert await count(ann, sign, request="a") is None
    assert await count(ann, last) is None
    assert await count(ann, 0) == last
    assert await count(ann, -sign) == last - sign
    assert await count(ann, sign, request="a") == last, "a request that was refused may be made again"
    assert await count(ann, sign, request="a") == last


async def test_a_request_goes_with_its_counter(ann: Client) -> None:
    """Once the counter has expired, or was evicted, what it answered is void: the count begins anew."""
    assert await count(ann, 5, request="a", expires_ms=SHORT_MS) == 5

    async def expired() -> bool:
        return await count(ann, 0) == 0

    await until(expired)
    assert await count(ann, 2, request="a") == 2


async def test_an_evicted_counter_takes_its_requests_along(redis: RedisRig) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    assert await count(ann, 5, request="a") == 5
    assert await redis.redis.call("DEL", redis.names.counter_prefix + key("n").l2) == 1
    assert await redis.redis.call("KEYS", "*:c:*") == [], "there is nothing else of it"
    assert await count(ann, 2, request="a") == 2


ODD_REQUESTS = ["value", "sweep", "rvalue", "r", "a", "a:b", ":", "::", "ra", "1:2", "99999999999999999999:7", " ", "é"]


async def test_requests_of_any_name_are_told_apart(ann: Client) -> None:
    for number, request in enumerate(ODD_REQUESTS, 1):
        assert await count(ann, 1, request=request) == number
    for number, request in enumerate(ODD_REQUESTS, 1):
        assert await count(ann, 1, request=request) == number
    assert await count(ann, 0) == len(ODD_REQUESTS)


@pytest.mark.parametrize(
    ("one", "other"), [(("a:b", "c"), ("a", "b:c")), (("a", "value"), ("a:value", "x")), (("n:ra", "b"), ("n", "ra:b"))]
)
async def test_a_request_of_one_counter_is_none_of_another(
    ann: Client, one: tuple[str, str], other: tuple[str, str]
) -> None:
    """Whatever colons there are in the counter's id and in the request's."""
    assert await count(ann, 1, one[0], request=one[1]) == 1
    assert await count(ann, 10, other[0], request=other[1]) == 10
    assert await count(ann, 1, one[0], request=one[1]) == 1


async def test_a_request_is_remembered_for_a_minute(redis: RedisRig) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    name = redis.names.counter_prefix + key("n").l2
    assert await count(ann, 1, request="a") == 1
    until_us = int((await redis.redis.call("HGET", name, "ra")).partition(b":")[0])
    seconds, micros = map(int, await redis.redis.call("TIME"))
    assert 50_000_000 < until_us - (seconds * 1_000_000 + micros) <= 60_000_000
    assert await redis.redis.call("PTTL", name) == -1
    await redis.redis.call("HSET", name, "ra", f"{until_us - 60_000_001}:1")
    assert await count(ann, 1, request="a") == 2, "and no longer"


async def test_in_memory_a_request_is_remembered_for_a_minute() -> None:
    now_s = [1_000.0]
    shard = MemoryShard(lambda: now_s[0])

    def counted(request: str) -> int | None:
        return shard.counter(key("n"), NOBODY, 1, request, 0)

    assert [counted("a"), counted("b"), counted("a")] == [1, 2, 1]
    now_s[0] += 59.9
    assert counted("a") == 1
    now_s[0] += 0.2
    assert counted("c") == 3
    assert len(shard.requests) == 1, "those that are over are forgotten"
    assert counted("a") == 4


@pytest.mark.parametrize("many", [200, 3_000])
async def test_requests_that_are_over_are_swept(redis: RedisRig, many: int) -> None:
    """Some at a time, more than come: however many there were, few are left."""
    ann = await Client(await redis.store(), "ann").attach()
    name = redis.names.counter_prefix + key("n").l2
    for at in range(0, many, 100):
        await redis.redis.call("HSET", name, *[part for n in range(at, at + 100) for part in (f"rold-{n}", "1:7")])
    assert await count(ann, 1, request="kept") == 1
    for number in range(2, 2_000):
        before = await redis.redis.call("HLEN", name)
        assert await count(ann, 1, request=f"new-{number}") == number
        gone = before + 1 - await redis.redis.call("HLEN", name)
        assert gone <= 600, "one call does not sweep them all"
        left = await redis.redis.call("HLEN", name) - number
        if left <= 2:
            break
    assert left <= 2, "the value, and how far the sweep has come"
    assert await count(ann, 1, request="kept") == 1, "those that are not over stay"
    assert await count(ann, 0) == number


@pytest.mark.parametrize(
    "plant",
    [("SET", "{}", "no number"), ("SET", "{}", "7"), ("RPUSH", "{}", "a list"), ("HSET", "{}", "ra", "no deadline")],
)
async def test_nonsense_under_a_counter_reads_as_zero_and_is_not_counted_on(
    redis: RedisRig, plant: tuple[str, ...]
) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    name = redis.names.counter_prefix + key("n").l2
    await redis.redis.call(*[part.format(name) for part in plant])
    assert await count(ann, 0) == 0
    assert await count(ann, 0, request="a") == 0
    if plant[0] == "HSET":
        assert await count(ann, 1, request="a") == 1
        return
    for request in ("", "a"):
        with pytest.raises(L2Unavailable):
            await count(ann, 1, request=request)
