"""Where a shard stands: probes, the rows of its nodes, and the takeovers that begin another epoch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cachebus.core.ports import Caller, FillLeaseOutcome, Invalidated
from cachebus.core.requests import FillLeaseRequest
from cachebus.wire import event as events
from tests.contract.clients import BUCKET, LONG_MS, NOBODY, Client, body, key, scope
from tests.contract.rig import StoreRig

Loss = Callable[[StoreRig], Awaitable[None]]
LOSSES: dict[str, Loss] = {
    "flushed": lambda rig: rig.flush(),
    "meta evicted": lambda rig: rig.lose_meta(),
    "marks evicted": lambda rig: rig.lose_marks(),
    "counts of marks evicted": lambda rig: rig.lose_buckets(),
    "guards evicted": lambda rig: rig.lose_guards(),
    "another server": lambda rig: rig.another_server(),
}
NOTHING_INVALIDATED = Invalidated({}, {})
losses = pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES.keys())


async def test_the_first_probe_begins_an_epoch(rig: StoreRig) -> None:
    store = await rig.store()
    first = await store.probe(0, Caller("ann", 0, b""), with_invalidated=True)
    assert len(first.epoch) == 16
    assert first.epoch.isalnum()
    assert (first.seq, first.invalidated) == (1, NOTHING_INVALIDATED)
    assert first.nodes_name
    assert 0 < first.born_us <= first.server_us
    again = await store.probe(0, Caller("ann", first.seq, first.epoch), with_invalidated=False)
    assert (again.epoch, again.seq, again.invalidated) == (first.epoch, 1, None)
    assert again.server_us >= first.server_us > 0


async def test_all_who_ask_an_l2_are_given_one_name_for_it_in_every_epoch(rig: StoreRig) -> None:
    one, other = await rig.store(), await rig.store()
    name = await one.identity()
    assert len(name) == 16
    assert await other.identity() == name
    before = (await one.probe(0, NOBODY, with_invalidated=False)).epoch
    await rig.another_server()
    assert (await one.probe(0, NOBODY, with_invalidated=False)).epoch != before
    assert await one.identity() == name


async def test_only_an_answered_probe_makes_a_connection_trusted(rig: StoreRig) -> None:
    store = await rig.store()
    assert store.connected
    assert not store.checked[0]
    await store.read(0, NOBODY, [])
    assert not store.checked[0]
    await store.probe(0, NOBODY, with_invalidated=False)
    assert store.checked[0]
    await store.close()
    assert not store.connected
    assert not store.checked[0]
    await store.connect()
    assert store.connected
    assert not store.checked[0]


async def test_shards_have_histories_of_their_own(rig: StoreRig, ann: Client) -> None:
    other = await ann.store.probe(1, Caller("ann", 0, b""), with_invalidated=True)
    assert other.epoch != ann.caller.epoch
    await ann.invalidate(key())
    assert (await ann.probe()).seq == 2
    assert (await ann.store.probe(1, NOBODY, with_invalidated=False)).seq == other.seq


async def test_marks_are_given_when_asked_for(ann: Client, bob: Client) -> None:
    await ann.invalidate(scopes=[scope(), scope("doc")])
    moved = await ann.invalidate(scopes=[scope("doc", agent_id="a7"), scope("doc")])
    assert moved.seq == 3
    assert (await bob.probe()).invalidated == Invalidated(
        {BUCKET: {scope(): 2, scope("doc"): 3, scope("doc", agent_id="a7"): 3}}, {}
    )


async def test_nodes_leave_rows_and_producers_do_not(rig: StoreRig, ann: Client, bob: Client) -> None:
    await ann.invalidate(key())
    await bob.probe()
    await bob.probe()
    assert await rig.applied() == {"ann": 0, "bob": 2}
    change = await ann.store.invalidate(0, NOBODY, [key()], [], body([key()]))
    assert change.seq == 3
    await ann.store.probe(0, NOBODY, with_invalidated=False)
    await ann.store.counter(key(), NOBODY, 1, "", 0)
    assert await rig.applied() == {"ann": 0, "bob": 2}
    assert await bob.store.forget(0, bob.caller, "bob", lives=False)
    assert await rig.applied() == {"ann": 0}


async def test_reads_and_leases_leave_a_row_too(rig: StoreRig, ann: Client) -> None:
    """Else a master that is cut off from its replicas would go on answering them. Whoever stands in another epoch says
    so: how far it is there is nothing that counts here."""
    other = ann.caller.epoch[::-1]
    await ann.store.read(0, Caller("reader", 7, other), [key()])
    await ann.store.fill_lease(key(), Caller("filler", 8, b""), FillLeaseRequest("t", LONG_MS))
    assert {node: row[:2] for node, row in (await rig.rows()).items()} == {
        "ann": (0, b""),
        "reader": (7, other),
        "filler": (8, b""),
    }


@pytest.mark.parametrize("ask", ["probe", "marks", "nodes", "read", "fill_lease"])
async def test_who_has_left_an_epoch_has_another_one_begun_where_it_is_led_back_into_it(
    ann: Client, bob: Client, ask: str
) -> None:
    """As by a primary that is made the primary again: what was written in its place is not known there."""
    await ann.probe()
    record = await ann.loaded(key(), b"old")
    assert await bob.read(key()) == [record.encode(key().l2)]
    before = ann.caller.epoch
    led_back = Caller("led back", 7, b"p" * 16, former_epochs={b"q" * 16, before})
    if ask == "fill_lease":
        reply = await bob.store.fill_lease(key(), led_back, FillLeaseRequest("t", LONG_MS))
        assert (reply.outcome, reply.record) == (FillLeaseOutcome.GRANTED, None)
        assert reply.epoch not in led_back.former_epochs
    elif ask == "read":
        read = await bob.store.read(0, led_back, [key()])
        assert read.records == [None]
        assert read.epoch not in led_back.former_epochs
    elif ask == "nodes":
        assert (await bob.store.nodes(0, led_back)).epoch not in led_back.former_epochs
    else:
        assert (await bob.store.probe(0, led_back, with_invalidated=ask == "marks")).epoch not in led_back.former_epochs
    now = await ann.probe()
    assert now.epoch not in led_back.former_epochs
    again = await bob.store.probe(0, led_back, with_invalidated=False)
    assert (again.epoch, again.seq) == (now.epoch, now.seq), "it is ended once"


@losses
async def test_a_loss_begins_another_epoch_and_voids_what_is_older(
    rig: StoreRig, ann: Client, bob: Client, lose: Loss
) -> None:
    await ann.invalidate(scopes=[scope("other")])  # so that there are marks to lose
    await ann.guard(key("guarded"))  # and guards
    await ann.probe()
    record = await ann.loaded(key("kept"), b"old")
    lease = await ann.granted(key("loading"), "token")
    assert await ann.read(key("kept")) == [record.encode(key("kept").l2)]
    before = ann.caller
    await lose(rig)

    after = await bob.probe()
    assert after.epoch != before.epoch
    assert after.seq > before.applied or lose is LOSSES["flushed"] or lose is LOSSES["meta evicted"]
    assert after.invalidated == NOTHING_INVALIDATED
    assert await ann.read(key("kept")) == [None]
    assert (await bob.fill_lease(key("kept"))).outcome is FillLeaseOutcome.GRANTED
    raw = await ann.store.get(key("kept"))
    assert raw is None or raw[4:20] == before.epoch != after.epoch
    assert not (await ann.fill(key("loading"), ann.record(b"late", lease), "token")).done
    assert (await bob.fill_lease(key("loading"), "another")).outcome is FillLeaseOutcome.GRANTED
    assert [entry.seq for entry in await ann.store.log(0, 0, 10)] == []


@losses
async def test_a_probe_tells_when_the_epoch_began(rig: StoreRig, ann: Client, lose: Loss) -> None:
    await ann.guard(key("guarded"), scopes=[scope("other")])  # so that there are guards and marks to lose
    before = await ann.probe()
    await lose(rig)
    reply = await ann.store.read(0, ann.caller, [key()])
    after = await ann.probe()
    assert after.epoch == reply.epoch != before.epoch
    assert before.server_us <= after.born_us <= after.server_us
    assert (await ann.probe()).born_us == after.born_us


@losses
async def test_any_operation_takes_over(rig: StoreRig, ann: Client, lose: Loss) -> None:
    async def lost() -> None:
        await ann.invalidate(scopes=[scope("other")])
        await ann.guard(key("guarded"))
        await lose(rig)

    what, store = key(), ann.store
    epochs = {ann.caller.epoch}
    operations: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.read(0, ann.caller, [what]),
        lambda: ann.fill_lease(what),
        lambda: ann.fill(what, ann.record(b"v")),
        lambda: ann.write(what),
        lambda: store.probe(0, ann.caller, with_invalidated=True),
    ]
    if lose is not LOSSES["marks evicted"]:  # what judges nothing by marks does not look for them
        operations += [
            lambda: ann.invalidate(what),
            lambda: ann.guard(what),
            lambda: store.nodes(0, ann.caller),
            lambda: store.probe(0, ann.caller, with_invalidated=False),
        ]
    for number, operation in enumerate(operations):
        await lost()
        reply = await operation()
        epochs.add(reply.epoch)
        assert len(epochs) == number + 2
        assert (await ann.probe()).epoch == reply.epoch, "one takeover, not one more"
    if lose is not LOSSES["marks evicted"]:
        for operation in (
            lambda: store.counter(what, ann.caller, 1, "", 0),
            lambda: store.forget(0, NOBODY, "x", lives=False),
        ):
            await lost()
            await operation()
            epoch = (await ann.probe()).epoch
            assert epoch not in epochs
            epochs.add(epoch)


async def test_a_caller_that_has_seen_more_begins_another_epoch(rig: StoreRig, ann: Client) -> None:
    """The store came back with an older copy of itself: what the caller applied is not in it."""
    await ann.loaded(key(), b"old")
    ahead = await ann.store.probe(0, Caller("ann", 41, ann.caller.epoch), with_invalidated=True)
    assert ahead.epoch != ann.caller.epoch
    assert ahead.seq == 42, "beyond whatever was given out in the epoch before"
    assert await ann.read(key()) == [None]


async def test_a_caller_of_another_epoch_may_be_ahead(ann: Client) -> None:
    reply = await ann.store.probe(0, Caller("ann", 41, b"0" * 16), with_invalidated=False)
    assert (reply.epoch, reply.seq) == (ann.caller.epoch, 1)
    reply = await ann.store.probe(0, Caller("new", 41, b""), with_invalidated=False)
    assert (reply.epoch, reply.seq) == (ann.caller.epoch, 1)


async def test_a_takeover_forgets_the_rows(rig: StoreRig, ann: Client, bob: Client) -> None:
    await rig.another_server()
    await ann.probe()
    assert set(await rig.rows()) == {"ann"}


async def test_a_takeover_leaves_counters_alone(rig: StoreRig, ann: Client) -> None:
    assert await ann.store.counter(key(), ann.caller, 5, "", 0) == 5
    await rig.another_server()
    assert await ann.store.counter(key(), ann.caller, 1, "", 0) == 6


async def test_events_after_a_takeover_are_of_the_new_epoch(rig: StoreRig, ann: Client) -> None:
    await ann.invalidate(key())
    await rig.another_server()
    change = await ann.invalidate(key())
    entries = await ann.store.log(0, 0, 10)
    assert [entry.seq for entry in entries] == [change.seq]
    assert events.decode(entries[0].message).epoch == change.epoch != ann.caller.epoch
