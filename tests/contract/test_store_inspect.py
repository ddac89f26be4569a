"""What a store says of one key to who explains it: the same in memory and on each server, and nothing changes by it."""

from __future__ import annotations

import pytest

from cachebus.core.ports import KeyFacts
from cachebus.keys.key import ALL_TENANTS, guard_name
from cachebus.wire import event as events
from tests.contract.clients import BUCKET, LONG_MS, NEIGHBOUR, NOBODY, Client, key, scope, tag
from tests.contract.rig import StoreRig, until


async def inspect(client: Client, **more: str) -> KeyFacts:
    return await client.store.inspect(key(**more))


async def test_of_a_shard_that_nobody_has_laid_out(rig: StoreRig) -> None:
    facts = await (await rig.store()).inspect(key())
    assert facts._replace(server_us=0, is_over=True) == KeyFacts(0, b"", 0, is_over=True)
    assert await rig.rows() == {}
    assert facts.server_us > 1_500_000_000_000_000


async def test_a_record_its_marks_and_the_nodes(ann: Client, bob: Client) -> None:
    stored = await ann.write(key(), b"x", tags=[tag("t"), tag("u")])
    assert (await inspect(ann)).invalidated == {}
    marked = await ann.invalidate(scopes=[tag("t"), tag("v"), scope("doc"), scope("other"), scope(tenant=NEIGHBOUR)])
    everything = await ann.invalidate(scopes=["N"])
    facts = await inspect(bob)
    assert (facts.epoch, facts.seq, facts.is_over) == (stored.epoch, everything.seq, False)
    assert facts.record == await ann.store.get(key())
    assert facts.record is not None
    assert facts.invalidated == {tag("t"): marked.seq, scope("doc"): marked.seq, "N": everything.seq}
    assert facts.rows.keys() == {"ann", "bob"}
    assert facts.rows == await rig_rows(ann)
    assert (facts.low, facts.guards, facts.fill_lease, facts.nonsense) == ({}, {}, b"", False)
    assert (await inspect(bob, resource_id="other")).record is None


async def rig_rows(client: Client) -> object:
    return (await client.store.nodes(0, NOBODY)).rows


async def test_guards(ann: Client) -> None:
    await ann.guard(key(), token="1" * 16, px_ms=2 * LONG_MS)
    await ann.guard(key(), token="2" * 16)
    await ann.guard(scopes=[scope("doc"), tag("t")], token="3" * 16)
    await ann.guard(scopes=[scope("other")], token="4" * 16)
    facts = await inspect(ann)
    assert facts.guards.keys() == {guard_name(key()), scope("doc")}, "of what is not there nobody knows the tags"
    first, second = facts.guards[guard_name(key())]
    assert 0 < first - facts.server_us <= LONG_MS * 1000 < second - facts.server_us <= 2 * LONG_MS * 1000
    assert (await inspect(ann, resource_id="other")).guards.keys() == {scope("doc")}
    await ann.guard(key(), token="1" * 16, px_ms=0)
    assert len((await inspect(ann)).guards[guard_name(key())]) == 1


async def test_a_guarded_tag_of_what_lies_there(rig: StoreRig, ann: Client) -> None:
    await ann.write(key(), tags=[tag("t")])
    record = await ann.store.get(key())
    assert record is not None
    await ann.guard(scopes=[tag("t")])
    await rig.plant(key(), record)
    assert (await inspect(ann)).guards.keys() == {tag("t")}


async def test_a_guard_that_is_over(ann: Client) -> None:
    await ann.guard(key(), px_ms=1)
    await until(lambda: guard_is_over(ann))


async def guard_is_over(ann: Client) -> bool:
    return (await inspect(ann)).guards == {}


async def test_leases(ann: Client) -> None:
    await ann.granted(key(), "token")
    facts = await inspect(ann)
    assert facts.fill_lease == b"h" + facts.epoch + b"token"
    ann.store.cool_down(key(), "token", LONG_MS)
    assert (await inspect(ann)).fill_lease[:1] == b"r"


@pytest.mark.limits(max_invalidated_scopes=8)
async def test_low_watermarks(ann: Client) -> None:
    await ann.write(key(), b"x")
    for number in range(30):
        await ann.invalidate(scopes=[tag(str(number))])
    low = (await inspect(ann)).low
    assert low.keys() == {BUCKET}
    assert low[BUCKET] > 1
    for number in range(30):
        await ann.invalidate(scopes=[f"Y\x1f{number}"])
    assert (await inspect(ann)).low[ALL_TENANTS] > low[BUCKET]


async def test_what_is_no_record_is_said_to_be_none(rig: StoreRig, ann: Client) -> None:
    await rig.plant_nonsense(key())
    facts = await inspect(ann)
    assert facts.nonsense or facts.record == b"\x00"
    await rig.plant(key("damaged"), b"\xcb\x02")
    assert (await inspect(ann, resource_id="damaged")).record == b"\xcb\x02"


async def test_another_server_is_told_and_left_alone(rig: StoreRig, ann: Client) -> None:
    before = await inspect(ann)
    await rig.another_server()
    for _ in range(2):
        facts = await inspect(ann)
        assert facts.is_over
        assert facts.epoch == before.epoch, "it only looks"


async def test_what_is_no_event_goes_to_the_channel_and_not_to_the_log(rig: StoreRig, ann: Client) -> None:
    await ann.store.publish(0, b"CBQ one")
    assert (await rig.heard(1))[-1] == b"CBQ one"
    assert await ann.store.log(0, 0, 100) == []
    change = await ann.invalidate(scopes=["N"])
    assert events.decode((await rig.heard(2))[-1]).seq == change.seq
