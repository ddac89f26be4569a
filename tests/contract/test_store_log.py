"""The log is bounded, in entries and in bytes; what is in it has no gap, and who is behind it can tell."""

from __future__ import annotations

import pytest

from cachebus.core.ports import LogEntry
from cachebus.wire import event as events
from tests.contract.clients import NOBODY, Client, body, key
from tests.contract.rig import RedisRig, StoreRig

MOST_BYTES = 200_000


def filler(size: int, number: int) -> list[str]:
    """A scope's name that makes an event of about so many bytes."""
    return [f"D\x1facme\x1f{number:06}" + "x" * (size - 150)]


async def entries(client: Client) -> list[LogEntry]:
    return await client.store.log(0, 0, 100_000)


async def told(client: Client, size: int, count: int) -> int:
    """So many events of so many bytes; gives the last one's seq. They mark nothing."""
    for number in range(count):
        change = await client.store.invalidate(0, NOBODY, [], [], body(scopes=filler(size, number)))
    return change.seq


@pytest.mark.parametrize("size", [200, 1_000, 20_000])
@pytest.mark.limits(log_max_bytes=MOST_BYTES)
async def test_it_is_bounded_in_bytes(rig: StoreRig, ann: Client, size: int) -> None:
    count = 3 * MOST_BYTES // size
    last = await told(ann, size, count)
    found = await entries(ann)
    assert [entry.seq for entry in found] == list(range(last - len(found) + 1, last + 1)), "the latest, without a gap"
    held = sum(len(entry.message) + 64 for entry in found)
    assert held <= MOST_BYTES + 8_192, "Redis drops whole nodes of the stream, of 4096 bytes"
    assert held > MOST_BYTES * 3 // 4 - size, "and no more than it must"
    for entry in found:
        assert events.decode(entry.message).seq == entry.seq
    behind = await ann.store.log(0, 1, 1)
    assert behind[0].seq == found[0].seq > 2, "a reader behind it finds a later one, and must notice"
    if isinstance(rig, RedisRig):
        used = await rig.redis.call("MEMORY", "USAGE", rig.names.log, "SAMPLES", "0")
        assert used < 1.5 * MOST_BYTES + 16_384


@pytest.mark.limits(log_max_bytes=10_000)
async def test_an_entry_larger_than_all_that_may_be_held_is_held_alone(ann: Client) -> None:
    await told(ann, 1_000, 8)
    last = await told(ann, 50_000, 1)
    assert [entry.seq for entry in await entries(ann)] == [last]
    assert [entry.seq for entry in await ann.store.log(0, last - 1, 10)] == [last]
    after = await told(ann, 1_000, 2)
    assert [entry.seq for entry in await entries(ann)][-2:] == [after - 1, after]


@pytest.mark.limits(log_max=50, log_max_bytes=MOST_BYTES)
async def test_the_number_of_entries_bounds_it_too(ann: Client) -> None:
    last = await told(ann, 200, 400)
    seqs = [entry.seq for entry in await entries(ann)]
    assert 50 <= len(seqs) < 200, "whole nodes of the stream, of a hundred entries"
    assert seqs == list(range(last - len(seqs) + 1, last + 1))


@pytest.mark.limits(log_max_bytes=MOST_BYTES)
async def test_bytes_are_counted_anew_in_a_new_epoch(rig: StoreRig, ann: Client) -> None:
    await told(ann, 1_000, 150)
    await rig.another_server()
    last = await told(ann, 1_000, 150)
    assert [entry.seq for entry in await entries(ann)] == list(range(last - 149, last + 1))


async def test_an_entry_says_what_had_been_logged_with_it(redis: RedisRig) -> None:
    """By that, and without looking at any, the script finds how many are too many."""
    ann = await Client(await redis.store(), "ann").attach()
    await ann.invalidate(key())
    await ann.write(key())
    ids = [entry_id for entry_id, _ in await redis.redis.call("XRANGE", redis.names.log, "-", "+")]
    sizes = [len(entry.message) + 64 for entry in await entries(ann)]
    assert ids == [b"2-%d" % sizes[0], b"3-%d" % sum(sizes)]
    assert await redis.redis.call("HGET", redis.names.meta, "logged") == b"%d" % sum(sizes)


@pytest.mark.parametrize("planted", ["a later id", "an id from the clock", "a string"])
async def test_what_somebody_else_put_into_its_place_goes(redis: RedisRig, planted: str) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    await ann.invalidate(key())
    if planted == "a string":
        await redis.redis.call("SET", redis.names.log, "x")
    else:
        await redis.redis.call("XADD", redis.names.log, "*" if planted == "an id from the clock" else "7-0", "x", "y")
        assert [entry.seq for entry in await entries(ann)][:1] == [2]
    change = await ann.invalidate(key())
    assert [entry.seq for entry in await entries(ann)] == [change.seq] == [3]
