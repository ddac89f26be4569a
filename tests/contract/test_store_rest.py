"""A lease that rests: its holder's source has failed, and those who have something to give leave the source alone."""

from __future__ import annotations

import pytest

from cachebus.core.ports import FillLeaseOutcome
from cachebus.core.requests import FallbackKind
from cachebus.keys.key import everywhere
from cachebus.wire import event as events
from cachebus.wire.record import FLAG_NOT_FOUND
from tests.contract.clients import LONG_MS, SHORT_MS, Client, key, scope
from tests.contract.rig import StoreRig, until


async def resting(client: Client, px_ms: int = LONG_MS, *, refresh: bool = False) -> None:
    """Have the lease on the key rest."""
    await client.granted(key(), "failed", refresh=refresh)
    client.store.cool_down(key(), "failed", px_ms)
    await client.probe()  # behind the rest, on the same connection


async def test_who_has_something_to_give_leaves_the_source_alone(ann: Client, bob: Client) -> None:
    await resting(ann)
    reply = await bob.fill_lease(key(), "b", fallback=FallbackKind.OWN)
    assert reply[:4] == (ann.caller.epoch, 1, FillLeaseOutcome.COOLING_DOWN, None)
    assert LONG_MS - 10_000 < reply.wait_ms <= LONG_MS
    assert (await bob.fill_lease(key("other"), "b", fallback=FallbackKind.OWN)).outcome is FillLeaseOutcome.GRANTED


async def test_who_has_nothing_asks_the_source_all_the_same(ann: Client, bob: Client) -> None:
    await resting(ann)
    lease = await bob.granted(key(), "b")
    assert (await ann.fill_lease(key(), "a", fallback=FallbackKind.OWN)).outcome is FillLeaseOutcome.WAIT, (
        "it is held again"
    )
    record = bob.record(b"v", lease)
    assert (await bob.fill(key(), record, "b")).done
    assert await ann.read(key()) == [record.encode(key().l2)]


async def test_a_kept_record_is_given_along(ann: Client, bob: Client) -> None:
    """It has expired, and L2 keeps it for just that: nobody has to have anything of his own."""
    kept = await ann.loaded(key(), lives_ms=-1)
    await resting(ann)
    for fallback in (FallbackKind.RECORD, FallbackKind.OWN):
        reply = await bob.fill_lease(key(), "b", fallback=fallback)
        assert (reply.outcome, reply.record) == (FillLeaseOutcome.COOLING_DOWN, kept.encode(key().l2))
    assert (await bob.fill_lease(key(), "b", fallback=FallbackKind.NONE)).outcome is FillLeaseOutcome.GRANTED, (
        "who wants nothing fallback may load"
    )


async def test_that_there_was_nothing_is_nothing_to_give(ann: Client, bob: Client) -> None:
    await ann.loaded(key(), lives_ms=-1, flags=FLAG_NOT_FOUND)
    await resting(ann)
    assert (await bob.fill_lease(key(), "b", fallback=FallbackKind.OWN)).outcome is FillLeaseOutcome.COOLING_DOWN
    assert (await bob.fill_lease(key(), "b", fallback=FallbackKind.RECORD)).outcome is FillLeaseOutcome.GRANTED


async def test_who_waits_for_anothers_load_is_given_a_kept_record_if_it_wants_one(ann: Client, bob: Client) -> None:
    kept = await ann.loaded(key(), lives_ms=-1)
    await ann.granted(key(), "a")
    for fallback, given in (
        (FallbackKind.RECORD, kept.encode(key().l2)),
        (FallbackKind.OWN, b""),
        (FallbackKind.NONE, None),
    ):
        reply = await bob.fill_lease(key(), "b", fallback=fallback)
        assert (reply.outcome, reply.record) == (FillLeaseOutcome.WAIT, given)


async def test_a_valid_record_is_a_hit_and_its_refresh_rests(ann: Client, bob: Client) -> None:
    record = await ann.loaded(key())
    await resting(ann, refresh=True)
    assert (await bob.fill_lease(key(), "b")).outcome is FillLeaseOutcome.HIT
    reply = await bob.fill_lease(key(), "b", refresh=True, fallback=FallbackKind.RECORD)
    assert (reply.outcome, reply.record) == (FillLeaseOutcome.COOLING_DOWN, record.encode(key().l2))


async def test_a_record_that_was_replaced_is_nothing_to_give(ann: Client, bob: Client) -> None:
    await ann.loaded(key(), lives_ms=-1)
    await resting(ann)
    await ann.invalidate(scopes=[scope("doc")])
    reply = await bob.fill_lease(key(), "b", fallback=FallbackKind.RECORD)
    assert (reply.outcome, reply.record) == (FillLeaseOutcome.GRANTED, None)


async def test_who_waits_is_woken_when_it_begins_to_rest(rig: StoreRig, ann: Client, bob: Client) -> None:
    await ann.granted(key(), "failed")
    assert (await bob.fill_lease(key(), "b", fallback=FallbackKind.OWN)).outcome is FillLeaseOutcome.WAIT
    ann.store.cool_down(key(), "failed", LONG_MS)
    assert await rig.heard(1) == [events.WAKE + key().l1.encode()]
    assert (await bob.fill_lease(key(), "b", fallback=FallbackKind.OWN)).outcome is FillLeaseOutcome.COOLING_DOWN
    await bob.granted(key(), "b")
    await bob.fill(key(), bob.record(b"v"), "b")
    await ann.invalidate()
    assert events.decode((await rig.heard(2))[1]).seq == 2, "nobody was woken twice"


async def test_nobody_is_woken_where_nobody_waits(rig: StoreRig, ann: Client) -> None:
    await resting(ann)
    await ann.invalidate()
    assert events.decode((await rig.heard(1))[0]).seq == 2


async def test_its_token_can_do_nothing_any_more(rig: StoreRig, ann: Client, bob: Client) -> None:
    lease = await ann.granted(key(), "failed")
    ann.store.cool_down(key(), "failed", LONG_MS)
    assert not (await ann.fill(key(), ann.record(b"late", lease), "failed")).done
    ann.store.extend(key(), "failed", 2 * LONG_MS)
    ann.store.cool_down(key(), "failed", 2 * LONG_MS)
    ann.store.release(key(), "failed")
    await ann.probe()
    reply = await bob.fill_lease(key(), "b", fallback=FallbackKind.OWN)
    assert (reply.outcome, reply.wait_ms <= LONG_MS) == (FillLeaseOutcome.COOLING_DOWN, True)
    assert (
        await ann.fill_lease(key(), "failed", fallback=FallbackKind.OWN)
    ).outcome is FillLeaseOutcome.COOLING_DOWN, "not even for its own"
    assert await rig.leased(key())


@pytest.mark.parametrize("token", ["other", "fail", "failed2", ""])
async def test_only_its_holder_lets_a_lease_rest(ann: Client, bob: Client, token: str) -> None:
    lease = await ann.granted(key(), "failed")
    bob.store.cool_down(key(), token, LONG_MS)
    bob.store.cool_down(key("never leased"), token, LONG_MS)
    await bob.probe()
    assert (await bob.fill_lease(key(), "b", fallback=FallbackKind.OWN)).outcome is FillLeaseOutcome.WAIT
    assert (
        await bob.fill_lease(key("never leased"), "b", fallback=FallbackKind.OWN)
    ).outcome is FillLeaseOutcome.GRANTED
    assert (await ann.fill(key(), ann.record(b"v", lease), "failed")).done


async def test_rest_ends_by_itself(ann: Client, bob: Client) -> None:
    await resting(ann, SHORT_MS)

    async def over() -> bool:
        return (await bob.fill_lease(key(), "b", fallback=FallbackKind.OWN)).outcome is FillLeaseOutcome.GRANTED

    await until(over)


@pytest.mark.parametrize("how", ["the key", "a write", "a guard on its id"])
async def test_a_change_of_the_key_ends_its_rest(ann: Client, bob: Client, how: str) -> None:
    """What has changed may be there now."""
    await resting(ann)
    if how == "the key":
        await bob.invalidate(key())
    elif how == "a write":
        await bob.write(key())
    else:
        await bob.guard(key(), scopes=[everywhere(key())])
    expected = {
        "the key": FillLeaseOutcome.GRANTED,
        "a write": FillLeaseOutcome.HIT,
        "a guard on its id": FillLeaseOutcome.GUARDED,
    }[how]
    assert (await bob.fill_lease(key(), "b", fallback=FallbackKind.OWN)).outcome is expected


async def test_rest_of_an_older_epoch_is_over(rig: StoreRig, ann: Client, bob: Client) -> None:
    await resting(ann)
    await rig.another_server()
    assert (await bob.fill_lease(key(), "b", fallback=FallbackKind.OWN)).outcome is FillLeaseOutcome.GRANTED


@pytest.mark.parametrize("kept", ["expired", "valid", "not found", "nothing"])
async def test_who_waits_is_given_an_expired_value_if_that_would_do(ann: Client, bob: Client, kept: str) -> None:
    record = None
    if kept != "nothing":
        flags = FLAG_NOT_FOUND if kept == "not found" else 0
        record = await ann.loaded(key(), lives_ms=LONG_MS if kept == "valid" else -1, flags=flags)
    await ann.granted(key(), "a", refresh=True)
    for fallback in FallbackKind:
        reply = await bob.fill_lease(key(), "b", refresh=True, fallback=fallback)
        given = record.encode(key().l2) if record and kept == "expired" and fallback is FallbackKind.RECORD else None
        if fallback is FallbackKind.OWN and kept in ("expired", "valid"):
            given = b""  # L2 has a value too
        assert (reply.outcome, reply.record) == (FillLeaseOutcome.WAIT, given)
        assert 0 < reply.wait_ms <= LONG_MS
