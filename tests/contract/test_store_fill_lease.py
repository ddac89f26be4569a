"""The right to fill a key: who gets it, for how long, and what it is worth after an invalidation."""

from __future__ import annotations

import pytest

from cachebus.core.ports import Caller, Change, FillLeaseOutcome, FillLeaseReply
from cachebus.core.requests import FillLeaseRequest, FillRequest
from cachebus.wire import event as events
from cachebus.wire.record import VERSION
from tests.contract.clients import BUCKET, LONG_MS, NOBODY, SHORT_MS, Client, key, raised, scope, tag
from tests.contract.rig import StoreRig, until


async def test_absence_grants_a_lease_and_a_record_is_a_hit(ann: Client, bob: Client) -> None:
    lease = await ann.fill_lease(key())
    assert lease == FillLeaseReply(ann.caller.epoch, 1, FillLeaseOutcome.GRANTED, None, 0)
    record = ann.record(b"v", lease)
    assert await ann.fill(key(), record) == Change(ann.caller.epoch, 1, True)
    assert await bob.fill_lease(key(), "other") == (
        ann.caller.epoch,
        1,
        FillLeaseOutcome.HIT,
        record.encode(key().l2),
        0,
    )
    assert await bob.store.get(key()) == record.encode(key().l2)


async def test_one_has_it_and_the_others_wait(rig: StoreRig, ann: Client, bob: Client) -> None:
    await ann.granted(key(), "a", LONG_MS)
    waiting = await bob.fill_lease(key(), "b")
    assert waiting[:4] == (ann.caller.epoch, 1, FillLeaseOutcome.WAIT, None)
    assert LONG_MS - 10_000 < waiting.wait_ms <= LONG_MS
    assert (await ann.fill_lease(key(), "a")).outcome is FillLeaseOutcome.GRANTED, "asked again with the same token"
    assert (await bob.fill_lease(key("other"), "b")).outcome is FillLeaseOutcome.GRANTED


@pytest.mark.parametrize(("held", "asked"), [("node-1", "node-12"), ("node-12", "node-1")])
async def test_a_token_is_compared_whole(ann: Client, bob: Client, held: str, asked: str) -> None:
    lease = await ann.granted(key(), held)
    assert (await bob.fill_lease(key(), asked)).outcome is FillLeaseOutcome.WAIT
    assert not (await bob.fill(key(), bob.record(b"x", lease), asked)).done
    bob.store.release(key(), asked)
    assert (await bob.fill_lease(key(), "third")).outcome is FillLeaseOutcome.WAIT
    assert (await ann.fill(key(), ann.record(b"v", lease), held)).done


async def test_when_a_lease_ends_the_next_takes_over(ann: Client, bob: Client) -> None:
    lease = await ann.granted(key(), "a", SHORT_MS)

    async def taken_over() -> bool:
        return (await bob.fill_lease(key(), "b")).outcome is FillLeaseOutcome.GRANTED

    await until(taken_over)
    assert not (await ann.fill(key(), ann.record(b"late", lease), "a")).done
    assert (await bob.fill(key(), bob.record(b"b"), "b")).done


async def test_a_record_that_the_asker_cant_read_is_none_and_no_other_one_is(ann: Client, bob: Client) -> None:
    there = (await ann.loaded(key(), b"one")).encode(key().l2)
    other = bytes(byte ^ 1 for byte in there[VERSION])
    assert (await bob.fill_lease(key(), "b", unreadable=other)).outcome is FillLeaseOutcome.HIT
    lease = await bob.fill_lease(key(), "b", unreadable=there[VERSION])
    assert (lease.outcome, lease.record) == (FillLeaseOutcome.GRANTED, there)
    # Who waits is given what comes in its place.
    assert (await ann.fill_lease(key(), "a", unreadable=there[VERSION])).outcome is FillLeaseOutcome.WAIT
    assert (await bob.fill(key(), bob.record(b"two", lease), "b")).done
    assert (await ann.fill_lease(key(), "a", unreadable=there[VERSION])).outcome is FillLeaseOutcome.HIT


async def test_refresh_leases_over_a_valid_record(ann: Client, bob: Client) -> None:
    record = await ann.loaded(key(), b"one")
    lease = await bob.fill_lease(key(), "b", refresh=True)
    assert lease == FillLeaseReply(ann.caller.epoch, 1, FillLeaseOutcome.GRANTED, record.encode(key().l2), 0)
    assert (await ann.fill_lease(key(), "a", refresh=True)).outcome is FillLeaseOutcome.WAIT
    assert (await ann.fill_lease(key(), "a")).outcome is FillLeaseOutcome.HIT, "all others serve on"
    newer = bob.record(b"two", lease)
    assert (await bob.fill(key(), newer, "b", over=record.version)).done
    assert await ann.store.get(key()) == newer.encode(key().l2)


async def test_an_expired_record_is_given_along_with_the_lease(ann: Client, bob: Client) -> None:
    expired = await ann.loaded(key(), b"old", lives_ms=-1)
    lease = await bob.fill_lease(key())
    assert lease == FillLeaseReply(ann.caller.epoch, 1, FillLeaseOutcome.GRANTED, expired.encode(key().l2), 0)
    await bob.fill(key(), bob.record(b"new", lease))
    assert (await ann.fill_lease(key())).outcome is FillLeaseOutcome.HIT


async def test_a_hidden_record_is_not_given_along(ann: Client, bob: Client) -> None:
    await ann.loaded(key(), b"old", lives_ms=-1)
    await ann.invalidate(scopes=[scope("doc")])
    assert await bob.fill_lease(key()) == (ann.caller.epoch, 2, FillLeaseOutcome.GRANTED, None, 0)


async def test_a_fill_needs_exactly_its_lease(rig: StoreRig, ann: Client) -> None:
    lease = await ann.granted(key(), "a")
    record = ann.record(b"v", lease)
    assert not (await ann.fill(key(), record, "b")).done
    assert not (await ann.fill(key(), record, "")).done
    assert not (await ann.fill(key("never leased"), record, "a")).done
    assert (await ann.fill(key(), record, "a")).done
    assert not (await ann.fill(key(), record, "a")).done, "a lease is good for one fill"
    assert not await rig.leased(key())


async def test_a_fill_needs_the_epoch_of_its_lease(rig: StoreRig, ann: Client) -> None:
    lease = await ann.granted(key())
    record = ann.record(b"v", lease)
    record.epoch = b"f" * 16
    refused = await ann.fill(key(), record)
    assert (refused.epoch, refused.done) == (ann.caller.epoch, False)

    lease = await ann.granted(key())
    await rig.another_server()
    refused = await ann.fill(key(), ann.record(b"v", lease))
    assert refused.epoch != lease.epoch
    assert not refused.done
    assert await ann.store.get(key()) is None


@pytest.mark.parametrize(
    ("keys", "scopes"),
    [
        ((key(),), ()),
        ((key("x"), key()), ()),
        ((), (scope(),)),
        ((), (scope("doc"),)),
        ((), (scope("other"), scope("doc", agent_id="a7"))),
        ((), (tag("plan"),)),
    ],
    ids=["key", "keys", "tenant", "type", "context", "tag"],
)
async def test_a_fill_after_an_invalidation_is_refused(
    ann: Client, bob: Client, keys: tuple[object, ...], scopes: tuple[str, ...]
) -> None:
    what = key(agent_id="a7") if scopes == (scope("other"), scope("doc", agent_id="a7")) else key()
    lease = await ann.granted(what)
    await bob.invalidate(*keys, scopes=scopes)  # type: ignore[arg-type]
    refused = await ann.fill(what, ann.record(b"late", lease, tags=[tag("plan")]))
    assert refused == Change(ann.caller.epoch, 2, False)
    assert await ann.store.get(what) is None
    lease = await ann.granted(what, "again")
    assert lease.seq == 2
    assert (await ann.fill(what, ann.record(b"new", lease, tags=[tag("plan")]), "again")).done


async def test_an_invalidation_elsewhere_refuses_no_fill(ann: Client, bob: Client) -> None:
    lease = await ann.granted(key(agent_id="a7"))
    others = [scope("other"), scope("doc", agent_id="a8"), scope("doc", conversation_id="a7"), tag("other")]
    await bob.invalidate(key(), key("r2", agent_id="a7"), key(agent_id="a8"), scopes=others)
    record = ann.record(b"v", lease, tags=[tag("plan")])
    assert await ann.fill(key(agent_id="a7"), record) == Change(ann.caller.epoch, 2, True)
    assert record.seq == 1, "the seq of its lease"
    assert await ann.read(key(agent_id="a7")) == [record.encode(key(agent_id="a7").l2)]


@pytest.mark.limits(max_invalidated_scopes=2)
async def test_a_fill_below_a_low_watermark_is_refused(ann: Client, bob: Client) -> None:
    lease = await ann.granted(key())
    for number in range(3):
        change = await bob.invalidate(scopes=[scope(f"other-{number}")])
    assert raised(change) == (BUCKET, 2)
    assert lease.seq < 2
    assert await ann.fill(key(), ann.record(b"late", lease)) == Change(ann.caller.epoch, 4, False)


async def test_a_write_takes_the_lease_away(rig: StoreRig, ann: Client, bob: Client) -> None:
    lease = await ann.granted(key())
    await bob.write(key(), b"written")
    assert not await rig.leased(key())
    assert not (await ann.fill(key(), ann.record(b"loaded", lease))).done
    assert (await ann.fill_lease(key())).outcome is FillLeaseOutcome.HIT


async def test_a_fill_over_a_version_stores_over_no_other(ann: Client, bob: Client) -> None:
    first = await ann.loaded(key(), b"one")
    lease = await ann.granted(key(), refresh=True)
    assert not (await ann.fill(key(), ann.record(b"x", lease), over=bytes(4))).done
    lease = await ann.granted(key(), refresh=True)
    assert (await ann.fill(key(), ann.record(b"two", lease), over=first.version)).done


async def test_a_fill_over_a_version_that_has_expired_meanwhile_or_was_evicted_is_stored(ann: Client) -> None:
    first = await ann.loaded(key(), b"one")
    lease = await ann.granted(key("absent"), refresh=True)
    assert (await ann.fill(key("absent"), ann.record(b"x", lease), over=first.version)).done


@pytest.mark.parametrize("replaced", ["before the lease", "since"])
async def test_a_refresh_over_a_version_that_a_mark_has_replaced(ann: Client, bob: Client, replaced: str) -> None:
    """The bytes still lie there, but nobody believes them: who has loaded since then may replace them."""
    first = await ann.loaded(key(), b"one")
    if replaced == "before the lease":
        await bob.invalidate(scopes=[scope("doc")])
    lease = await ann.granted(key(), refresh=True)
    if replaced == "since":
        await bob.invalidate(scopes=[scope("doc")])
    stored = (await ann.fill(key(), ann.record(b"two", lease), over=first.version)).done
    assert stored == (replaced == "before the lease")


async def test_a_record_lives_as_long_as_it_is_told(ann: Client, bob: Client) -> None:
    lease = await ann.granted(key())
    assert (await ann.fill(key(), ann.record(b"v", lease), px_ms=SHORT_MS)).done

    async def gone() -> bool:
        return await bob.store.get(key()) is None

    await until(gone)
    assert (await bob.fill_lease(key())).outcome is FillLeaseOutcome.GRANTED


async def test_a_lease_is_extended_by_its_token_alone(rig: StoreRig, ann: Client, bob: Client) -> None:
    lease = await ann.granted(key(), "a", 2_000)
    bob.store.extend(key(), "b", 1)
    bob.store.extend(key("never leased"), "b", LONG_MS)
    ann.store.extend(key(), "a", LONG_MS)

    async def extended() -> bool:
        return (await bob.fill_lease(key(), "b")).wait_ms > 2_000

    await until(extended)
    assert not await rig.leased(key("never leased"))
    assert (await ann.fill(key(), ann.record(b"v", lease), "a")).done


async def test_a_lease_is_released_by_its_token_alone(rig: StoreRig, ann: Client, bob: Client) -> None:
    await ann.granted(key(), "a")
    bob.store.release(key(), "b")
    await bob.probe()
    assert await rig.leased(key())
    ann.store.release(key(), "a")

    async def gone() -> bool:
        return not await rig.leased(key())

    await until(gone)
    assert rig.messages == [], "nobody waited"


async def test_a_lease_of_an_older_epoch_is_not_extended(rig: StoreRig, ann: Client, bob: Client) -> None:
    await ann.granted(key(), "a", LONG_MS)
    await rig.another_server()
    ann.store.extend(key(), "a", 2 * LONG_MS)
    assert (await bob.fill_lease(key(), "b")).outcome is FillLeaseOutcome.GRANTED


async def test_who_waits_is_woken_by_a_fill(rig: StoreRig, ann: Client, bob: Client) -> None:
    lease = await ann.granted(key(agent_id="a7"), "a")
    assert (await bob.fill_lease(key(agent_id="a7"), "b")).outcome is FillLeaseOutcome.WAIT
    assert (await bob.fill_lease(key(agent_id="a7"), "b")).outcome is FillLeaseOutcome.WAIT
    assert (await ann.fill(key(agent_id="a7"), ann.record(b"v", lease), "a")).done
    assert await rig.heard(1) == [events.WAKE + key(agent_id="a7").l1.encode()]


async def test_who_waits_is_woken_by_a_fill_that_is_refused(rig: StoreRig, ann: Client, bob: Client) -> None:
    lease = await ann.granted(key(), "a")
    await bob.fill_lease(key(), "b")
    await bob.invalidate(scopes=[scope("doc")])
    await ann.fill(key(), ann.record(b"late", lease), "a")
    assert (await rig.heard(2))[1] == events.WAKE + key().l1.encode()


async def test_who_waits_is_woken_by_a_release(rig: StoreRig, ann: Client, bob: Client) -> None:
    await ann.granted(key(), "a")
    await bob.fill_lease(key(), "b")
    ann.store.extend(key(), "a", LONG_MS)
    ann.store.release(key(), "a")
    assert await rig.heard(1) == [events.WAKE + key().l1.encode()]
    assert (await bob.fill_lease(key(), "b")).outcome is FillLeaseOutcome.GRANTED


async def test_waiting_does_not_lengthen_a_lease(ann: Client, bob: Client) -> None:
    await ann.granted(key(), "a", SHORT_MS)

    async def taken_over() -> bool:
        return (await bob.fill_lease(key(), "b")).outcome is FillLeaseOutcome.GRANTED

    await until(taken_over)


async def test_nobody_may_lease(rig: StoreRig, ann: Client) -> None:
    """A producer that warms a cache: it may, and leaves no line."""
    lease = await ann.store.fill_lease(key(), NOBODY, FillLeaseRequest("p", LONG_MS))
    assert lease.outcome is FillLeaseOutcome.GRANTED
    assert (await ann.store.fill(key(), Caller("", 0, lease.epoch), FillRequest("p", ann.record(b"v", lease), 0))).done
    assert await rig.applied() == {"ann": 0}
