"""Marks lie in buckets of tenants: what each forgets, what it hides, and that a loss of any is noticed."""

from __future__ import annotations

import pytest

from cachebus.core.ports import FillLeaseOutcome, Invalidated
from cachebus.keys.key import ALL_OF_SHARD, ALL_TENANTS, everywhere
from cachebus.wire import event as events
from tests.contract.clients import (
    BUCKET,
    NEIGHBOUR,
    NEXT_DOOR,
    Client,
    joined,
    key,
    leaves_out,
    raised,
    scope,
    tag,
    where,
)
from tests.contract.rig import RedisRig, StoreRig, until

NOTHING = events.NO_BUCKET, 0
NEXT_DOORS = key(tenant=NEIGHBOUR)


def of_neighbour(number: int) -> str:
    """A scope of the neighbour's."""
    return scope(f"t{number}", tenant=NEIGHBOUR)


def of_type(data_type: str) -> str:
    """The scope of a type in all tenants."""
    return f"Y\x1f{data_type}"


# -- what is forgotten ----------------------------------------------------------------------------------------------


@pytest.mark.limits(max_invalidated_scopes=8)
async def test_a_bucket_with_too_many_marks_loses_its_own_oldest_only(ann: Client, bob: Client) -> None:
    own = await ann.loaded(key("own"))
    others = await ann.loaded(NEXT_DOORS)
    quiet = [scope(f"quiet-{number}") for number in range(3)]
    for name in quiet:
        await ann.invalidate(scopes=[name])
    loud = [await bob.invalidate(scopes=[of_neighbour(number)]) for number in range(50)]
    assert [raised(change) for change in loud] == [NOTHING] * 5 + [(NEXT_DOOR, 5 + number) for number in range(45)]
    invalidated = (await ann.probe()).invalidated
    kept = {name: 2 + at for at, name in enumerate(quiet)}
    assert invalidated == Invalidated(
        {BUCKET: kept, NEXT_DOOR: {of_neighbour(n): 5 + n for n in range(45, 50)}}, {NEXT_DOOR: 49}
    )
    assert await bob.read(key("own"), NEXT_DOORS) == [own.encode(key("own").l2), None]
    assert others.seq < 49
    assert (await bob.fill_lease(key("own"))).outcome is FillLeaseOutcome.HIT
    assert (await bob.fill_lease(NEXT_DOORS)).outcome is FillLeaseOutcome.GRANTED


@pytest.mark.limits(max_invalidated_scopes=8)
async def test_a_bucket_loses_even_when_another_has_one_mark_more(ann: Client, bob: Client) -> None:
    """The one that has most pays, whoever came last."""
    await ann.invalidate(scopes=[scope(f"t{number}") for number in range(7)])
    record = await bob.loaded(NEXT_DOORS)
    assert raised(await bob.invalidate(scopes=[of_neighbour(1)])) == NOTHING
    assert raised(await bob.invalidate(scopes=[of_neighbour(2)])) == (BUCKET, 2)
    assert await bob.read(NEXT_DOORS) == [record.encode(NEXT_DOORS.l2)]
    assert len((await ann.invalidated()).keys() & {scope(f"t{number}") for number in range(7)}) == 6


@pytest.mark.limits(max_invalidated_scopes=4)
async def test_of_two_buckets_that_have_as_many_marks_the_first_by_name_loses(ann: Client) -> None:
    """Some one has to, and the stores are to agree on which."""
    assert NEXT_DOOR < BUCKET
    await ann.invalidate(scopes=[scope("t1"), scope("t2")])
    await ann.invalidate(scopes=[of_neighbour(1), of_neighbour(2)])
    assert raised(await ann.invalidate(scopes=[of_type("x")])) == (NEXT_DOOR, 3)
    assert raised(await ann.invalidate(scopes=[of_type("y")])) == (ALL_TENANTS, 4)


@pytest.mark.limits(max_invalidated_scopes=2)
async def test_a_low_watermark_hides_what_is_older_and_nothing_that_is_not(ann: Client, bob: Client) -> None:
    await ann.loaded(key("older"))
    await bob.invalidate(scopes=[scope("t1")])
    lease = await ann.granted(key("as old"))
    for number in (2, 3):
        change = await bob.invalidate(scopes=[scope(f"t{number}")])
    assert raised(change) == (BUCKET, 2)
    assert lease.seq == 2, "it began after the mark that was forgotten"
    record = ann.record(b"v", lease)
    assert (await ann.fill(key("as old"), record)).done
    assert await bob.read(key("older"), key("as old")) == [None, record.encode(key("as old").l2)]
    assert (await bob.write(key("older"), if_absent=True)).done


@pytest.mark.limits(max_invalidated_scopes=300)
async def test_marks_are_forgotten_in_batches(ann: Client) -> None:
    """Of a 128th of all that there may be: forgetting then costs little."""
    await ann.invalidate(scopes=[scope(f"t{number:03}") for number in range(300)])
    changes = [await ann.invalidate(scopes=[scope(f"u{number}")]) for number in range(6)]
    assert [raised(change) for change in changes] == [(BUCKET, 2), NOTHING, NOTHING, (BUCKET, 2), NOTHING, NOTHING]
    invalidated = await ann.invalidated()
    assert len(invalidated) == 300
    assert scope("t005") not in invalidated
    assert scope("t006") in invalidated


@pytest.mark.limits(max_invalidated_scopes=4)
async def test_a_long_name_counts_for_several(ann: Client) -> None:
    assert raised(await ann.invalidate(scopes=[tag("x" * 512)])) == NOTHING
    assert raised(await ann.invalidate(scopes=[tag("a")])) == NOTHING
    assert raised(await ann.invalidate(scopes=[tag("b")])) == (BUCKET, 2), "three and two are more than four"
    assert await ann.invalidated() == {tag("a"): 3, tag("b"): 4}
    for letter in "cd":
        assert raised(await ann.invalidate(scopes=[tag(letter)])) == NOTHING
    assert raised(await ann.invalidate(scopes=[tag("e")])) == (BUCKET, 3)


@pytest.mark.limits(max_invalidated_scopes=4)
async def test_marks_of_all_tenants_have_a_bucket_of_their_own(ann: Client, bob: Client) -> None:
    kept = [await ann.loaded(what) for what in (key(), NEXT_DOORS)]
    changes = [await bob.invalidate(scopes=[of_type(f"t{number}")]) for number in range(5)]
    assert [raised(change) for change in changes] == [NOTHING] * 4 + [(ALL_TENANTS, 2)]
    assert await ann.low() == {ALL_TENANTS: 2}
    assert {record.seq for record in kept} == {1}
    assert await bob.read(key(), NEXT_DOORS) == [None, None], "nobody remembers of whom the forgotten one told"
    newer = [await ann.loaded(what) for what in (key(), NEXT_DOORS)]
    assert await bob.read(key(), NEXT_DOORS) == [
        r.encode(what.l2) for r, what in zip(newer, (key(), NEXT_DOORS), strict=True)
    ]


# -- scopes of all tenants --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "hides_other"), [(ALL_OF_SHARD, True), (of_type("doc"), False)], ids=["N", "Y"])
async def test_scopes_of_all_tenants_hide_records_of_each(
    ann: Client, bob: Client, name: str, hides_other: bool
) -> None:
    keys = [key(), NEXT_DOORS, key("c", agent_id="a"), key("other", data_type="other")]
    kept = [(await ann.loaded(what)).encode(what.l2) for what in keys]
    leased = {what: key(f"leased {what.l2}", what.family.data_type, what.family.tenant) for what in keys}
    leases = {what: await ann.granted(leased[what]) for what in keys}
    await bob.invalidate(scopes=[name])
    assert await bob.read(*keys) == [None, None, None, None if hides_other else kept[3]]
    for what in keys:
        hidden = hides_other or what is not keys[3]
        assert (await bob.fill_lease(what, "b")).outcome is (
            FillLeaseOutcome.GRANTED if hidden else FillLeaseOutcome.HIT
        )
        bob.store.release(what, "b")
        late = ann.record(b"late", leases[what])
        assert (await ann.fill(leased[what], late)).done is not hidden
        assert (await bob.write(what, b"added", if_absent=True)).done is hidden
    assert all(data is not None for data in await bob.read(*keys))


@pytest.mark.parametrize("name", [ALL_OF_SHARD, of_type("doc")], ids=["N", "Y"])
async def test_a_guard_of_all_tenants_stands_before_each(ann: Client, bob: Client, name: str) -> None:
    await ann.guard(scopes=[name])
    for what in (key(), NEXT_DOORS, key(collection_id="c")):
        assert (await bob.fill_lease(what)).outcome is FillLeaseOutcome.GUARDED
        assert not (await bob.write(what)).done
    outside = await bob.fill_lease(key(data_type="other"))
    assert outside.outcome is (FillLeaseOutcome.GUARDED if name == ALL_OF_SHARD else FillLeaseOutcome.GRANTED)


# -- losses -----------------------------------------------------------------------------------------------------------


async def marked(ann: Client) -> None:
    """Marks in three buckets."""
    await ann.invalidate(scopes=[scope("x"), scope("x", tenant=NEIGHBOUR), of_type("x")])
    assert len(await ann.invalidated()) == 3


@pytest.mark.parametrize("bucket", [BUCKET, NEXT_DOOR, ALL_TENANTS])
async def test_who_begins_notices_lost_marks_of_any_bucket(rig: StoreRig, ann: Client, bucket: str) -> None:
    await marked(ann)
    await rig.lose_marks(bucket)
    bob = await Client(await rig.store(), "bob").attach()
    assert bob.caller.epoch != ann.caller.epoch
    assert await bob.invalidated() == {}


@pytest.mark.parametrize("bucket", [BUCKET, ALL_TENANTS])
async def test_who_judges_by_marks_notices_the_loss_of_those(rig: StoreRig, ann: Client, bucket: str) -> None:
    await marked(ann)
    await ann.loaded(key())
    await ann.invalidate(scopes=[scope("doc"), of_type("other")])
    await rig.lose_marks(bucket)
    reply = await ann.store.read(0, ann.caller, [key()])
    assert reply.epoch != ann.caller.epoch
    assert reply.records == [None]


async def test_who_judges_by_the_marks_of_others_does_not_look_for_them(rig: StoreRig, ann: Client) -> None:
    await marked(ann)
    record = await ann.loaded(key())
    await rig.lose_marks(NEXT_DOOR)
    assert await ann.store.read(0, ann.caller, [key()]) == (ann.caller.epoch, 2, [record.encode(key().l2)])
    reply = await ann.store.read(0, ann.caller, [NEXT_DOORS])
    assert reply.epoch != ann.caller.epoch


@pytest.mark.parametrize("then", ["another mark", "a mark in another bucket", "a key"])
@pytest.mark.parametrize("loss", ["lose_marks", "lose_buckets"])
async def test_an_invalidation_after_a_loss_does_not_hide_it(
    rig: StoreRig, ann: Client, bob: Client, loss: str, then: str
) -> None:
    """Else a record would be believed again that the lost mark stood against."""
    await ann.loaded(key())
    await ann.invalidate(scopes=[scope("doc")])
    await ann.probe()
    await getattr(rig, loss)()
    if then == "a key":
        await bob.invalidate(key("elsewhere"))
    else:
        await bob.invalidate(scopes=[{"another mark": scope("x"), "a mark in another bucket": of_neighbour(1)}[then]])
    assert await bob.read(key()) == [None]
    assert (await bob.probe()).epoch != ann.caller.epoch


@pytest.mark.limits(max_invalidated_scopes=6)
async def test_a_loss_that_nobody_has_noticed_does_not_let_marks_grow(rig: StoreRig, ann: Client, bob: Client) -> None:
    """The largest bucket has to forget some, and has none any more: another epoch begins, and all is counted anew."""
    await ann.invalidate(scopes=[scope(f"t{number}") for number in range(5)])
    await ann.probe()
    await rig.lose_marks(BUCKET)
    for number in range(5):
        change = await bob.invalidate(scopes=[of_neighbour(number)])
    assert change.epoch != ann.caller.epoch
    assert await bob.low() == {}
    assert len(await bob.invalidated()) == 3, "one was set where it was noticed; and since it began"


@pytest.mark.parametrize("what", ["marks", "buckets"])
@pytest.mark.parametrize("before", ["with marks", "before any mark"])
async def test_what_somebody_else_put_into_their_place_goes(redis: RedisRig, what: str, before: str) -> None:
    ann = await Client(await redis.store(), "ann").attach()
    place = redis.names.marks(BUCKET) if what == "marks" else redis.names.buckets
    await ann.loaded(key())
    if before == "with marks":
        await ann.invalidate(scopes=[scope("doc")])
        await ann.probe()
    await redis.redis.call("SET", place, "x")
    change = await ann.invalidate(key("other"), scopes=[scope("x")])
    assert (await ann.store.log(0, change.seq - 1, 1))[0].seq == change.seq
    assert scope("x") in await ann.invalidated() or change.epoch != ann.caller.epoch
    if before == "with marks":
        assert await ann.read(key()) == [None]
    assert await redis.redis.call("TYPE", place) in (b"none", b"zset", b"hash")


async def test_guards_that_stand_no_more_may_be_lost(rig: StoreRig, ann: Client) -> None:
    await ann.guard(key())
    await ann.guard(key(), px_ms=0)
    await rig.lose_guards()
    assert (await ann.fill_lease(key())).epoch == ann.caller.epoch
    await ann.guard(key("g"))
    await rig.lose_guards()
    assert (await ann.fill_lease(key())).epoch != ann.caller.epoch, "this one stood"


# -- ids in all contexts ----------------------------------------------------------------------------------------------

ID = everywhere(key("r"))
OTHER_ID = everywhere(key("r", "other"))


async def left_out(rig: StoreRig, ann: Client, scopes: list[str]) -> tuple[bool, dict[str, int]]:
    """Whether the event of an invalidation of these says that ids were left out; and the marks then."""
    change = await ann.invalidate(key("r"), scopes=scopes)
    logged = (await ann.store.log(0, change.seq - 1, 1))[0].message
    event = events.decode(logged)
    assert event.left_out == leaves_out(change)

    async def heard() -> bool:
        return logged in rig.messages

    await until(heard)
    return event.left_out, await ann.invalidated()


async def test_an_id_is_not_marked_where_nothing_of_its_type_lies_in_a_context(rig: StoreRig, ann: Client) -> None:
    await ann.loaded(key("r"))
    await ann.write(key("s"))
    await ann.granted(key("r", "other", agent_id="a"), "t")
    assert await left_out(rig, ann, [ID]) == (True, {})
    assert await ann.read(key("r")) == [None], "the key itself is gone"


@pytest.mark.parametrize("how", ["leased", "loaded", "written", "added"])
@pytest.mark.parametrize("context", ["agent_id", "conversation_id", "collection_id"])
async def test_an_id_is_marked_once_something_of_its_type_has_been_in_a_context(
    rig: StoreRig, ann: Client, bob: Client, how: str, context: str
) -> None:
    what = key("r", **{context: "c"})
    if how == "leased":
        lease = await bob.granted(what)
    elif how == "loaded":
        await bob.loaded(what)
    else:
        await bob.write(what, if_absent=how == "added")
    seq = (await ann.probe()).seq + 1
    assert await left_out(rig, ann, [ID]) == (False, {ID: seq})
    if how == "leased":
        assert not (await bob.fill(what, bob.record(b"late", lease))).done
    assert await bob.read(what) == [None]
    assert await left_out(rig, ann, [everywhere(key("another id"))]) == (
        False,
        {ID: seq, everywhere(key("another id")): seq + 1},
    )


async def test_what_stores_nothing_in_a_context_calls_for_no_mark(rig: StoreRig, ann: Client, bob: Client) -> None:
    what = key("r", agent_id="a")
    await ann.guard(what)
    assert (await bob.fill_lease(what)).outcome is FillLeaseOutcome.GUARDED
    assert not (await bob.write(what)).done
    assert await left_out(rig, ann, [ID]) == (True, {})


async def test_of_a_mixed_event_nodes_keep_all(rig: StoreRig, ann: Client, bob: Client) -> None:
    """L2 keeps the marks that it needs. Which those are the event does not say, so nodes keep each."""
    await bob.granted(key("r", agent_id="a"))
    assert await left_out(rig, ann, [ID, OTHER_ID]) == (False, {ID: 2})
    assert await left_out(rig, ann, [OTHER_ID, ID]) == (False, {ID: 3})


async def test_other_scopes_are_marked_beside_ids_that_are_not(rig: StoreRig, ann: Client) -> None:
    assert await left_out(rig, ann, [ID, scope("doc"), OTHER_ID]) == (True, {scope("doc"): 2})
    assert await left_out(rig, ann, [scope("doc")]) == (False, {scope("doc"): 3}), "there were none"


async def test_writes_and_guards_leave_ids_out_too(rig: StoreRig, ann: Client, bob: Client) -> None:
    change = await ann.write(key("r"), scopes=[ID])
    assert leaves_out(change)
    change = await ann.guard(scopes=[ID])
    assert leaves_out(change)
    assert await ann.invalidated() == {}
    assert (await bob.fill_lease(key("r", agent_id="a"))).outcome is FillLeaseOutcome.GUARDED, "the guard itself stands"
    await ann.guard(scopes=[ID], px_ms=0)
    assert (await bob.fill_lease(key("r", agent_id="a"))).outcome is FillLeaseOutcome.GRANTED


async def test_an_id_of_one_tenant_is_marked_where_another_has_contexts(rig: StoreRig, ann: Client) -> None:
    """What is remembered is the type alone."""
    await ann.granted(key("r", tenant=NEIGHBOUR, agent_id="a"))
    assert await left_out(rig, ann, [ID]) == (False, {ID: 2})


@pytest.mark.parametrize("loss", ["flush", "lose_meta", "another_server"])
async def test_a_new_epoch_has_nothing_in_contexts(rig: StoreRig, ann: Client, loss: str) -> None:
    await ann.loaded(key("r", agent_id="a"))
    await getattr(rig, loss)()
    await ann.probe()
    assert await left_out(rig, ann, [ID]) == (True, {})
    assert await ann.read(key("r", agent_id="a")) == [None]


async def test_a_write_in_a_context_that_names_its_own_id(rig: StoreRig, ann: Client) -> None:
    """The first in any context: whatever its event says, the record is as new as the mark."""
    what = key("r", agent_id="a")
    change = await ann.write(what, scopes=[ID])
    assert where(change) == (ann.caller.epoch, 2, True)
    assert (await ann.read(what))[0] is not None
    assert joined((await ann.probe()).invalidated).keys() <= {ID}
