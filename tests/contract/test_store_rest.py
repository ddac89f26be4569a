"""A lease that rests: its holder's source has failed, and those who have something to give leave the source alone."""

from __future__ import annotations

import pytest

from cachebus.core.ports import LeaseOutcome, Stale
from cachebus.keys.key import everywhere
from cachebus.wire import event as events
from cachebus.wire.record import FLAG_NOT_FOUND
from tests.contract.people import LONG_MS, SHORT_MS, Person, key, scope
from tests.contract.rig import StoreRig, until


async def resting(person: Person, px_ms: int = LONG_MS, *, refresh: bool = False) -> None:
    """Have the lease on the key rest."""
    await person.granted(key(), "failed", refresh=refresh)
    person.store.rest(key(), "failed", px_ms)
    await person.probe()  # behind the rest, on the same connection


async def test_who_has_something_to_give_leaves_the_source_alone(ann: Person, bob: Person) -> None:
    await resting(ann)
    reply = await bob.lease(key(), "b", stale=Stale.OWN)
    assert reply[:4] == (ann.caller.epoch, 1, LeaseOutcome.RESTING, None)
    assert LONG_MS - 10_000 < reply.wait_ms <= LONG_MS
    assert (await bob.lease(key("other"), "b", stale=Stale.OWN)).outcome is LeaseOutcome.GRANTED


async def test_who_has_nothing_asks_the_source_all_the_same(ann: Person, bob: Person) -> None:
    await resting(ann)
    lease = await bob.granted(key(), "b")
    assert (await ann.lease(key(), "a", stale=Stale.OWN)).outcome is LeaseOutcome.WAIT, "it is held again"
    record = bob.record(b"v", lease)
    assert (await bob.fill(key(), record, "b")).stored
    assert await ann.read(key()) == [record.encode(key().l2)]


async def test_a_kept_record_is_given_along(ann: Person, bob: Person) -> None:
    """It has expired, and L2 keeps it for just that: nobody has to have anything of his own."""
    kept = await ann.loaded(key(), lives_ms=-1)
    await resting(ann)
    for stale in (Stale.RECORD, Stale.OWN):
        reply = await bob.lease(key(), "b", stale=stale)
        assert (reply.outcome, reply.record) == (LeaseOutcome.RESTING, kept.encode(key().l2))
    assert (await bob.lease(key(), "b", stale=Stale.NONE)).outcome is LeaseOutcome.GRANTED, (
        "who wants nothing stale may load"
    )


async def test_that_there_was_nothing_is_nothing_to_give(ann: Person, bob: Person) -> None:
    await ann.loaded(key(), lives_ms=-1, flags=FLAG_NOT_FOUND)
    await resting(ann)
    assert (await bob.lease(key(), "b", stale=Stale.OWN)).outcome is LeaseOutcome.RESTING
    assert (await bob.lease(key(), "b", stale=Stale.RECORD)).outcome is LeaseOutcome.GRANTED


async def test_who_waits_for_anothers_load_is_given_a_kept_record_if_it_wants_one(ann: Person, bob: Person) -> None:
    kept = await ann.loaded(key(), lives_ms=-1)
    await ann.granted(key(), "a")
    for stale, given in ((Stale.RECORD, kept.encode(key().l2)), (Stale.OWN, b""), (Stale.NONE, None)):
        reply = await bob.lease(key(), "b", stale=stale)
        assert (reply.outcome, reply.record) == (LeaseOutcome.WAIT, given)


async def test_a_valid_record_is_a_hit_and_its_refresh_rests(ann: Person, bob: Person) -> None:
    record = await ann.loaded(key())
    await resting(ann, refresh=True)
    assert (await bob.lease(key(), "b")).outcome is LeaseOutcome.HIT
    reply = await bob.lease(key(), "b", refresh=True, stale=Stale.RECORD)
    assert (reply.outcome, reply.record) == (LeaseOutcome.RESTING, record.encode(key().l2))


async def test_a_record_that_was_replaced_is_nothing_to_give(ann: Person, bob: Person) -> None:
    await ann.loaded(key(), lives_ms=-1)
    await resting(ann)
    await ann.invalidate(scopes=[scope("doc")])
    reply = await bob.lease(key(), "b", stale=Stale.RECORD)
    assert (reply.outcome, reply.record) == (LeaseOutcome.GRANTED, None)


async def test_who_waits_is_woken_when_it_begins_to_rest(rig: StoreRig, ann: Person, bob: Person) -> None:
    await ann.granted(key(), "failed")
    assert (await bob.lease(key(), "b", stale=Stale.OWN)).outcome is LeaseOutcome.WAIT
    ann.store.rest(key(), "failed", LONG_MS)
    assert await rig.heard(1) == [events.WAKE + key().l1.encode()]
    assert (await bob.lease(key(), "b", stale=Stale.OWN)).outcome is LeaseOutcome.RESTING
    await bob.granted(key(), "b")
    await bob.fill(key(), bob.record(b"v"), "b")
    await ann.invalidate()
    assert events.decode((await rig.heard(2))[1]).seq == 2, "nobody was woken twice"


async def test_nobody_is_woken_where_nobody_waits(rig: StoreRig, ann: Person) -> None:
    await resting(ann)
    await ann.invalidate()
    assert events.decode((await rig.heard(1))[0]).seq == 2


async def test_its_token_can_do_nothing_any_more(rig: StoreRig, ann: Person, bob: Person) -> None:
    lease = await ann.granted(key(), "failed")
    ann.store.rest(key(), "failed", LONG_MS)
    assert not (await ann.fill(key(), ann.record(b"late", lease), "failed")).stored
    ann.store.extend(key(), "failed", 2 * LONG_MS)
    ann.store.rest(key(), "failed", 2 * LONG_MS)
    ann.store.release(key(), "failed")
    await ann.probe()
    reply = await bob.lease(key(), "b", stale=Stale.OWN)
    assert (reply.outcome, reply.wait_ms <= LONG_MS) == (LeaseOutcome.RESTING, True)
    assert (await ann.lease(key(), "failed", stale=Stale.OWN)).outcome is LeaseOutcome.RESTING, "not even for its own"
    assert await rig.leased(key())


@pytest.mark.parametrize("token", ["other", "fail", "failed2", ""])
async def test_only_its_holder_lets_a_lease_rest(ann: Person, bob: Person, token: str) -> None:
    lease = await ann.granted(key(), "failed")
    bob.store.rest(key(), token, LONG_MS)
    bob.store.rest(key("never leased"), token, LONG_MS)
    await bob.probe()
    assert (await bob.lease(key(), "b", stale=Stale.OWN)).outcome is LeaseOutcome.WAIT
    assert (await bob.lease(key("never leased"), "b", stale=Stale.OWN)).outcome is LeaseOutcome.GRANTED
    assert (await ann.fill(key(), ann.record(b"v", lease), "failed")).stored


async def test_rest_ends_by_itself(ann: Person, bob: Person) -> None:
    await resting(ann, SHORT_MS)

    async def over() -> bool:
        return (await bob.lease(key(), "b", stale=Stale.OWN)).outcome is LeaseOutcome.GRANTED

    await until(over)


@pytest.mark.parametrize("how", ["the key", "a write", "a guard on its id"])
async def test_a_change_of_the_key_ends_its_rest(ann: Person, bob: Person, how: str) -> None:
    """What has changed may be there now."""
    await resting(ann)
    if how == "the key":
        await bob.invalidate(key())
    elif how == "a write":
        await bob.write(key())
    else:
        await bob.guard(key(), scopes=[everywhere(key())])
    expected = {
        "the key": LeaseOutcome.GRANTED,
        "a write": LeaseOutcome.HIT,
        "a guard on its id": LeaseOutcome.GUARDED,
    }[how]
    assert (await bob.lease(key(), "b", stale=Stale.OWN)).outcome is expected


async def test_rest_of_an_older_epoch_is_over(rig: StoreRig, ann: Person, bob: Person) -> None:
    await resting(ann)
    await rig.another_server()
    assert (await bob.lease(key(), "b", stale=Stale.OWN)).outcome is LeaseOutcome.GRANTED


@pytest.mark.parametrize("kept", ["expired", "valid", "not found", "nothing"])
async def test_who_waits_is_given_an_expired_value_if_that_would_do(ann: Person, bob: Person, kept: str) -> None:
    record = None
    if kept != "nothing":
        flags = FLAG_NOT_FOUND if kept == "not found" else 0
        record = await ann.loaded(key(), lives_ms=LONG_MS if kept == "valid" else -1, flags=flags)
    await ann.granted(key(), "a", refresh=True)
    for stale in Stale:
        reply = await bob.lease(key(), "b", refresh=True, stale=stale)
        given = record.encode(key().l2) if record and kept == "expired" and stale is Stale.RECORD else None
        if stale is Stale.OWN and kept in ("expired", "valid"):
            given = b""  # L2 has a value too
        assert (reply.outcome, reply.record) == (LeaseOutcome.WAIT, given)
        assert 0 < reply.wait_ms <= LONG_MS
