"""What is left of guards whose processes were killed: it goes in pieces while others guard, at once when none does."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from cachebus.core.ports import Change, FillLeaseOutcome
from tests.contract.clients import LONG_MS, SHORT_MS, Client, key, scope, tag, where
from tests.contract.rig import RedisRig, StoreRig, until

DEAD = b"d" * 16 + (1).to_bytes(8, "big")
"""A token that ended long ago."""
PIECE = 600
"""More than one step looks at: 64 of a large hash and twice what it adds; all of a small one, of 512 at most."""
AT_ONCE = 20_000
"""So many are left by one script, which a busy machine still ends in time."""


async def left(redis: RedisRig) -> int:
    """How many names are guarded, or were and have not been swept."""
    count: int = await redis.redis.call("HLEN", redis.names.guards)
    assert await redis.redis.call("HGET", redis.names.meta, "guarded") in (None, b"%d" % count)
    return count


async def leave(redis: RedisRig, count: int) -> None:
    """As if so many guards had been left standing, long ago, beside one that stands."""
    script = """
        for at = tonumber(ARGV[1]), tonumber(ARGV[2]), 500 do
          local fields = {}
          for i = at, math.min(at + 499, tonumber(ARGV[2])) do
            fields[#fields + 1] = 'left-' .. i
            fields[#fields + 1] = ARGV[3]
          end
          redis.call('HSET', KEYS[1], unpack(fields))
        end
        return redis.call('HSET', KEYS[2], 'guarded', redis.call('HLEN', KEYS[1]))
    """
    for first in range(1, count + 1, AT_ONCE):
        span = str(first), str(min(first + AT_ONCE - 1, count))
        await redis.redis.call("EVAL", script, "2", redis.names.guards, redis.names.meta, *span, DEAD)


async def calls(redis: RedisRig) -> dict[str, int]:
    """How often each command has run since the count was begun, those of scripts with them."""
    stats = (await redis.redis.call("INFO", "commandstats")).decode()
    return {name: int(count) for name, count in re.findall(r"cmdstat_(\w+):calls=(\d+)", stats)}


async def cost(redis: RedisRig, ann: Client, scopes: Sequence[str]) -> tuple[Change, dict[str, int]]:
    """A guard's change, and the commands that it took."""
    await redis.redis.call("CONFIG", "RESETSTAT")
    change = await ann.guard(scopes=scopes)
    return change, await calls(redis)


async def test_what_others_have_left_is_swept_while_somebody_guards(redis: RedisRig) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    bob = await Client(await redis.store(), "bob").attach()
    await ann.guard(key("standing"))
    await leave(redis, 3_000)
    seen = [await left(redis)]
    for number in range(200):
        await bob.guard(key(f"n{number}"), token="h" * 16)
        seen.append(await left(redis))
        assert seen[-2] - seen[-1] < PIECE, "in pieces"
    assert seen[0] == 3_001
    assert seen[-1] == 201, "all that stands, and nothing else"
    for what in (key("standing"), key("n0"), key("n199")):
        assert (await ann.fill_lease(what)).outcome is FillLeaseOutcome.GUARDED


async def test_the_more_are_added_the_more_are_swept(redis: RedisRig) -> None:
    """So that it can't grow: each guard sweeps twice as many as it adds."""
    ann = await Client(await redis.store(), "ann").attach()
    await ann.guard(key("standing"))
    await leave(redis, 5_000)
    for number in range(12):
        scopes = [tag(f"{number}-{n}") for n in range(1_000)]
        before = await left(redis)
        await ann.guard(scopes=scopes, token="h" * 16)
        await ann.guard(scopes=scopes, token="h" * 16, px_ms=0)
        assert await left(redis) <= max(before - 1_000, 65)
        if before <= 65:
            break
    assert await left(redis) <= 65


async def test_what_stands_is_never_swept(ann: Client, bob: Client) -> None:
    """Neither others' guards nor those that one's own token has put up before."""
    for number in range(70):  # fewer go unswept
        await ann.guard(key(f"ann-{number}"))
        await bob.guard(key(f"bob-{number}"), token="h" * 16)
    for number in range(70):
        for who in ("ann", "bob"):
            assert (await ann.fill_lease(key(f"{who}-{number}"))).outcome is FillLeaseOutcome.GUARDED
    for number in range(70):
        await ann.guard(key(f"ann-{number}"), px_ms=0)
    assert (await ann.fill_lease(key("ann-0"))).outcome is FillLeaseOutcome.GRANTED
    assert (await ann.fill_lease(key("bob-0"))).outcome is FillLeaseOutcome.GUARDED


async def test_what_is_over_is_swept_by_who_guards_next(redis: RedisRig) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    for number in range(20):
        await ann.guard(key(f"{number}"), scopes=[scope("doc")], px_ms=SHORT_MS)
    assert await left(redis) <= 21

    async def over() -> bool:
        return (await ann.fill_lease(key("other"), "probe")).outcome is FillLeaseOutcome.GRANTED

    await until(over)
    await ann.guard(key("last"))
    assert await left(redis) == 1
    await ann.guard(key("last"), px_ms=0)
    assert await left(redis) == 0


@pytest.mark.parametrize("count", [10, 100_000])
async def test_when_none_stands_all_that_is_left_goes_at_once(redis: RedisRig, count: int) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    await ann.guard(key("standing"))
    await leave(redis, count)
    await redis.redis.call("HSET", redis.names.meta, "guards", "1")  # they are all over
    change, took = await cost(redis, ann, [tag("t")])
    assert change.done
    assert took["unlink"] == 1
    assert "hscan" not in took
    assert await left(redis) == 1


async def test_what_somebody_else_put_into_their_place_goes(redis: RedisRig) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    await ann.guard(key())
    await ann.guard(key(), px_ms=0)
    await redis.redis.call("SET", redis.names.guards, "x")
    assert (await ann.fill_lease(key())).outcome is FillLeaseOutcome.GRANTED
    assert (await ann.guard(key())).done
    await redis.redis.call("SET", redis.names.guards, "x")
    assert (await ann.guard(key("other"))).done
    assert (await ann.fill_lease(key("other"))).outcome is FillLeaseOutcome.GUARDED


async def test_who_looks_for_silent_nodes_clears_them_away_too(redis: RedisRig) -> None:
    """Where nobody guards any more, none else would."""
    ann = await Client(await redis.store(), "ann").attach()
    await ann.guard(key("standing"))
    await leave(redis, 1_000)
    await redis.redis.call("HSET", redis.names.meta, "guards", "1")
    await ann.store.probe(0, ann.caller, with_invalidated=False)
    assert await redis.redis.call("EXISTS", redis.names.guards) == 0
    assert await redis.redis.call("HMGET", redis.names.meta, "guards", "guarded", "sweep") == [None] * 3
    assert (await ann.fill_lease(key("standing"))).epoch == ann.caller.epoch


@pytest.mark.limits(max_invalidated_scopes=2_000_000)
async def test_a_guard_beside_a_million_that_were_left_touches_few_of_them(redis: RedisRig) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    await ann.guard(key("standing"))
    await leave(redis, 1_000_000)
    before = await left(redis)
    change, took = await cost(redis, ann, [tag("t")])
    after = await left(redis)
    assert change.done
    assert took["hscan"] == 1
    assert 0 < before + 1 - after == took["hdel"] <= PIECE
    assert sum(took.values()) < took["hdel"] + 40
    await ann.invalidate(key())
    assert await left(redis) == after, "who does not guard does not sweep"
    await redis.redis.call("UNLINK", redis.names.guards)  # beside what the server does; FLUSHALL would hold it up


@pytest.mark.limits(max_invalidated_scopes=100)
async def test_too_many_that_were_left_refuse_a_guard_and_are_swept(redis: RedisRig) -> None:
    """So the next, or the one after it, is not refused."""
    ann = await Client(await redis.store(), "ann").attach()
    await ann.guard(key("standing"))
    await leave(redis, 1_000)
    refused, before = 0, await left(redis)
    while not (change := await ann.guard(scopes=[tag("t")])).done:
        assert change == Change(ann.caller.epoch, 2, False)
        assert 0 < before - (before := await left(redis)) < PIECE
        refused += 1
    assert refused > 0
    assert (await ann.fill_lease(key("standing"))).outcome is FillLeaseOutcome.GUARDED


@pytest.mark.limits(max_invalidated_scopes=16)
async def test_a_refused_guard_that_has_swept_the_last_has_counted_that(redis: RedisRig) -> None:
    """Else guards seem to be lost, which costs all nodes their memory."""
    ann = await Client(await redis.store(), "ann").attach()
    await ann.guard(key("ended"))
    await ann.guard(key("ended"), px_ms=0)
    await leave(redis, 70)
    assert not (await ann.guard(scopes=[tag(f"{number}") for number in range(20)])).done
    assert await left(redis) == 0
    assert (await ann.probe()).epoch == ann.caller.epoch


@pytest.mark.limits(max_invalidated_scopes=10)
async def test_more_names_than_may_be_guarded_are_refused_and_nothing_is_done(
    rig: StoreRig, ann: Client, bob: Client
) -> None:
    record = await ann.loaded(key("0"))
    await ann.granted(key("leased"), "t")
    keys = [key(f"{number}") for number in range(9)]
    change = await bob.guard(*keys, scopes=[scope("page"), tag("t")], px_ms=LONG_MS)
    assert change == Change(ann.caller.epoch, 1, False)
    assert await ann.read(key("0")) == [record.encode(key("0").l2)]
    assert await rig.leased(key("leased"))
    assert await ann.store.log(0, 0, 10) == []
    assert await ann.invalidated() == {}
    assert (await bob.fill_lease(key("1"), "b")).outcome is FillLeaseOutcome.GRANTED
    assert where(await bob.guard(*keys, scopes=[tag("t")])) == (ann.caller.epoch, 2, True), "ten are not too many"
    assert not (await ann.guard(key("eleventh"), token="h" * 16)).done
    assert (await ann.guard(key("eleventh"), token="h" * 16, px_ms=0)).done, "taking one away is never too much"
    await bob.guard(*keys, scopes=[tag("t")], px_ms=0)
    assert (await ann.guard(key("eleventh"), token="h" * 16)).done
    await ann.invalidate()
    assert len(await rig.heard(5)) == 5
