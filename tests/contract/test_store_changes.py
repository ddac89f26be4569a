"""Writes and invalidations: what goes, what is marked, logged and published, all in one step with one seq."""

from __future__ import annotations

import pytest

from cachebus.core.ports import Change, FillLeaseOutcome, Invalidated
from cachebus.core.requests import WriteRequest
from cachebus.keys.key import Key
from cachebus.wire import event as events
from cachebus.wire import record as records
from tests.contract.clients import BUCKET, LONG_MS, SHORT_MS, Client, body, key, raised, scope, tag, where
from tests.contract.rig import StoreRig, until


async def test_an_invalidation_removes_records_and_leases(rig: StoreRig, ann: Client, bob: Client) -> None:
    gone = [key("r1"), key("r1", agent_id="a"), key("r%:*é"), key("absent")]
    for what in gone[:3]:
        await ann.loaded(what)
        await ann.granted(what, "refresh", refresh=True)
    kept = await ann.loaded(key("r2"))
    assert where(await bob.invalidate(*gone)) == (ann.caller.epoch, 2, True)
    for what in gone:
        assert await ann.store.get(what) is None
        assert not await rig.leased(what)
    assert await ann.read(*gone, key("r2")) == [None] * 4 + [kept.encode(key("r2").l2)]


async def test_each_change_takes_the_next_seq(ann: Client, bob: Client) -> None:
    assert (await ann.invalidate(key())).seq == 2
    assert (await bob.invalidate(scopes=[scope()])).seq == 3
    assert (await ann.write(key())).seq == 4
    assert (await bob.invalidate()).seq == 5, "of nothing at all"
    assert (await ann.probe()).seq == 5


async def test_an_event_says_what_happened(rig: StoreRig, ann: Client, bob: Client) -> None:
    before_us = ann.now_ms * 1000
    change = await ann.invalidate(key("a"), key("b", agent_id="x"), scopes=[scope("doc"), tag("plan")])
    written = await bob.write(key("c"), others=[key("d")], scopes=[scope("other")])
    messages = await rig.heard(2)
    entries = await ann.store.log(0, 0, 10)
    assert entries == [(2, messages[0]), (3, messages[1])]

    told = body([key("a"), key("b", agent_id="x")], [scope("doc"), tag("plan")], "ann")
    assert messages[0] == change.event_header + told, "its header, and what its publisher said"
    event = events.decode(messages[0])
    assert (event.epoch, event.seq, event.low) == (*change[:2], events.NONE_RAISED)
    assert (event.keys, event.scopes) == ([key("a").l1, key("b", agent_id="x").l1], [scope("doc"), tag("plan")])
    assert event.origin == "ann"
    assert before_us <= event.published_us <= (await ann.store.probe(0, ann.caller, with_invalidated=False)).server_us

    event = events.decode(messages[1])
    assert (event.epoch, event.seq, event.low) == (*written[:2], events.NONE_RAISED)
    assert (event.keys, event.scopes, event.origin) == ([key("c").l1, key("d").l1], [scope("other")], "bob")


async def test_a_name_given_twice_is_one_mark(ann: Client) -> None:
    await ann.invalidate(scopes=[scope(), scope(), scope("doc")])
    assert await ann.invalidated() == {scope(): 2, scope("doc"): 2}
    await ann.invalidate(scopes=[scope()])
    assert await ann.invalidated() == {scope(): 3, scope("doc"): 2}, "and no takeover by a wrong count"


@pytest.mark.limits(max_invalidated_scopes=3)
async def test_marks_are_bounded_by_raising_a_low_watermark(rig: StoreRig, ann: Client) -> None:
    record = await ann.loaded(key())
    scopes = [scope(f"t{number}") for number in range(5)]
    changes = [await ann.invalidate(scopes=[name]) for name in scopes]
    nothing = events.NO_BUCKET, 0
    assert [raised(change) for change in changes] == [nothing, nothing, nothing, (BUCKET, 2), (BUCKET, 3)]
    told = [events.decode(message) for message in await rig.heard(5)]
    assert [event.low for event in told] == [raised(change) for change in changes]
    invalidated = (await ann.probe()).invalidated
    assert invalidated == Invalidated({BUCKET: {scopes[2]: 4, scopes[3]: 5, scopes[4]: 6}}, {BUCKET: 3})
    assert await ann.read(key()) == [None], f"{record.seq} lies below it: too much may go, never too little"
    await ann.invalidate(scopes=[scopes[2]])
    assert raised(await ann.invalidate(scopes=[scopes[0]])) == (BUCKET, 5), "the oldest, not the first ever named"
    newer = await ann.loaded(key())
    assert await ann.read(key()) == [newer.encode(key().l2)]


@pytest.mark.limits(max_invalidated_scopes=3)
async def test_more_names_than_marks_may_be_kept(ann: Client) -> None:
    record = await ann.loaded(key())
    change = await ann.invalidate(scopes=[scope(f"t{number}") for number in range(7)])
    assert (where(change), raised(change)) == ((ann.caller.epoch, 2, True), (BUCKET, 2))
    assert len(await ann.invalidated()) == 3
    assert await ann.read(key()) == [None] != [record]
    assert (await ann.probe()).epoch == change.epoch


async def test_a_write_stores_a_record_of_its_own_seq(rig: StoreRig, ann: Client, bob: Client) -> None:
    await bob.invalidate(scopes=[scope("doc")])
    change = await ann.write(key(), b"written", tags=[tag("plan")])
    assert where(change) == (ann.caller.epoch, 3, True)
    data = await bob.store.get(key())
    assert data is not None
    record = records.decode(data, key().l2)
    assert (record.epoch, record.seq, record.payload, list(record.tags)) == (change.epoch, 3, b"written", [tag("plan")])
    assert await bob.read(key()) == [data]
    lease = await bob.fill_lease(key())
    assert (lease.outcome, lease.record) == (FillLeaseOutcome.HIT, data)


async def test_a_write_keeps_all_that_its_record_says(ann: Client) -> None:
    record = records.Record(
        records.FLAG_NOT_FOUND,
        3,
        bytes(range(256)),
        created_ms=1,
        soft_ms=2,
        expires_ms=2**60,
        tags=[tag("é"), tag("2")],
        version=b"VERS",
    )
    change = await ann.store.write(key(), ann.caller, WriteRequest(record, 0, b"crc!body"))
    data = await ann.store.get(key())
    assert data is not None
    record.epoch, record.seq = change.epoch, change.seq
    assert data == record.encode(key().l2)


async def test_a_write_replaces_all_else_that_it_names(rig: StoreRig, ann: Client, bob: Client) -> None:
    for what in (key("a"), key("b"), key("c", data_type="query")):
        await ann.loaded(what)
    await ann.granted(key("b"), "t", refresh=True)
    await bob.write(key("a"), b"new", others=[key("b")], scopes=[scope("query")])
    assert await ann.store.get(key("b")) is None
    assert not await rig.leased(key("b"))
    assert [data is None for data in await ann.read(key("a"), key("b"), key("c", data_type="query"))] == [
        False,
        True,
        True,
    ]
    assert await ann.invalidated() == {scope("query"): 2}


async def test_a_write_under_its_own_mark_is_seen(ann: Client) -> None:
    """A cascade may name a scope that the written key lies in: the value is as new as the mark."""
    await ann.write(key(), b"new", scopes=[scope("doc"), scope()])
    (data,) = await ann.read(key())
    assert data is not None
    assert data.endswith(b"new")


async def test_a_written_record_lives_as_long_as_it_is_told(ann: Client) -> None:
    await ann.write(key(), px_ms=SHORT_MS)

    async def gone() -> bool:
        return await ann.store.get(key()) is None

    await until(gone)


async def test_if_absent_stores_once(rig: StoreRig, ann: Client, bob: Client) -> None:
    assert where(await ann.write(key(), b"first", if_absent=True)) == (ann.caller.epoch, 2, True)
    refused = await bob.write(key(), b"second", others=[key("o")], scopes=[scope()], if_absent=True)
    assert refused == Change(ann.caller.epoch, 2, False), "and says where it stands"
    (data,) = await bob.read(key())
    assert data is not None
    assert data.endswith(b"first")
    assert len(await bob.store.log(0, 0, 10)) == 1
    assert await bob.invalidated() == {}
    assert (await bob.write(key(), b"third")).done, "plain writes still replace it"


async def test_if_absent_counts_a_lease_as_absent(rig: StoreRig, ann: Client, bob: Client) -> None:
    lease = await ann.granted(key())
    assert (await bob.write(key(), if_absent=True)).done
    assert not (await ann.fill(key(), ann.record(b"late", lease))).done


@pytest.mark.parametrize("how", ["invalidated", "scope", "tag", "expired", "takeover", "nonsense"])
async def test_if_absent_stores_over_what_is_not_believed(rig: StoreRig, ann: Client, bob: Client, how: str) -> None:
    await ann.write(key(), b"first", lives_ms=-1 if how == "expired" else LONG_MS, tags=[tag("plan")])
    if how == "invalidated":
        await ann.invalidate(key())
    elif how in ("scope", "tag"):
        await ann.invalidate(scopes=[scope("doc") if how == "scope" else tag("plan")])
    elif how == "takeover":
        await rig.another_server()
    elif how == "nonsense":
        await rig.plant_nonsense(key())
    assert (await bob.write(key(), b"second", if_absent=True)).done
    (data,) = await bob.read(key())
    assert data is not None
    assert data.endswith(b"second")


async def version_of(client: Client, what: Key) -> bytes:
    """The version of the valid record that is there."""
    (data,) = await client.read(what)
    assert data is not None
    return records.parse(data).version


async def test_over_a_version_stores_in_its_place_and_once(rig: StoreRig, ann: Client, bob: Client) -> None:
    await ann.write(key(), b"first")
    version = await version_of(bob, key())
    assert where(await ann.write(key(), b"second", over=version)) == (ann.caller.epoch, 3, True)
    refused = await bob.write(key(), b"third", others=[key("o")], scopes=[scope()], over=version)
    assert refused == Change(ann.caller.epoch, 3, False), "and says where it stands"
    (data,) = await bob.read(key())
    assert data is not None
    assert data.endswith(b"second")
    assert len(await bob.store.log(0, 0, 10)) == 2
    assert await bob.invalidated() == {}


@pytest.mark.parametrize("how", ["invalidated", "scope", "tag", "expired", "takeover", "nonsense", "guarded", "loaded"])
async def test_over_a_version_stores_nothing_where_that_is_not_believed(
    rig: StoreRig, ann: Client, bob: Client, how: str
) -> None:
    """What was replaced, or is gone, does not come back by who has read it before."""
    await ann.write(key(), b"first", tags=[tag("plan")])
    version = await version_of(bob, key())
    if how == "invalidated":
        await ann.invalidate(key())
    elif how in ("scope", "tag"):
        await ann.invalidate(scopes=[scope("doc") if how == "scope" else tag("plan")])
    elif how == "expired":
        record = ann.record(b"first", lives_ms=-1)
        record.version = version
        await ann.store.write(key(), ann.caller, WriteRequest(record, 0, body([key()], [], ann.caller.node)))
    elif how == "takeover":
        await rig.another_server()
    elif how == "nonsense":
        await rig.plant_nonsense(key())
    elif how == "guarded":
        await ann.guard(key())
    else:
        await ann.loaded(key(), b"loaded")
    assert not (await bob.write(key(), b"second", over=version)).done
    (data,) = await bob.read(key())
    assert data is None or not data.endswith(b"second")


async def test_the_log_is_read_by_ranges(ann: Client) -> None:
    for _ in range(6):
        await ann.invalidate(key())
    assert [seq for seq, _ in await ann.store.log(0, 0, 100)] == [2, 3, 4, 5, 6, 7]
    assert [seq for seq, _ in await ann.store.log(0, 3, 2)] == [4, 5]
    assert [seq for seq, _ in await ann.store.log(0, 6, 100)] == [7]
    assert await ann.store.log(0, 7, 100) == []
    assert await ann.store.log(0, 1000, 100) == []
    assert await ann.store.log(1, 0, 100) == [], "another shard's"


@pytest.mark.limits(log_max=10)
async def test_the_log_is_trimmed(ann: Client) -> None:
    """Redis trims whole nodes of the stream, so what stays is a little more than it was told."""
    for _ in range(300):
        await ann.invalidate()
    seqs = [seq for seq, _ in await ann.store.log(0, 0, 1000)]
    assert 10 <= len(seqs) < 250
    assert seqs == list(range(302 - len(seqs), 302)), "the latest, without a gap"
    assert (await ann.store.log(0, 1, 1))[0].seq > 2, "a reader behind it finds a later one, and must notice"


async def test_hundreds_of_keys_in_one_invalidation(rig: StoreRig, ann: Client) -> None:
    keys = [key(f"r{number}") for number in range(1_500)]
    for what in keys[::100]:
        await ann.loaded(what)
    change = await ann.invalidate(*keys, scopes=[tag(f"t{number}") for number in range(600)])
    assert change.seq == 2
    assert await ann.read(*keys[::100]) == [None] * 15
    assert [await ann.store.get(what) for what in keys[::100]] == [None] * 15
    event = events.decode((await rig.heard(1))[0])
    assert event.keys == [what.l1 for what in keys]
    assert len(await ann.invalidated()) == len(event.scopes) == 600


async def test_hundreds_of_keys_beside_one_write(ann: Client) -> None:
    keys = [key(f"r{number}") for number in range(1_500)]
    await ann.loaded(keys[0])
    await ann.loaded(keys[-1])
    assert (await ann.write(key(), others=keys)).done
    assert await ann.read(keys[0], keys[-1]) == [None, None]
