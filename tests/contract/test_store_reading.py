"""What the store itself believes, and what bytes mean nothing to it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from cachebus.core.ports import FillLeaseOutcome
from cachebus.keys.key import ALL_OF_SHARD, Key, everywhere, scopes_of
from cachebus.wire import record as records
from tests.contract.clients import BUCKET, LONG_MS, NEIGHBOUR, Client, key, raised, scope, tag
from tests.contract.rig import StoreRig

EVERYWHERE = key(agent_id="a", conversation_id="v", collection_id="c")
SHAPES = {
    "tenant": scope(),
    "tenant and agent": scope(agent_id="a"),
    "tenant and conversation": scope(conversation_id="v"),
    "tenant and collection": scope(collection_id="c"),
    "type": scope("doc"),
    "type and agent": scope("doc", agent_id="a"),
    "type and conversation": scope("doc", conversation_id="v"),
    "type and collection": scope("doc", collection_id="c"),
    "id in all contexts": everywhere(EVERYWHERE),
    "all of the shard": ALL_OF_SHARD,
    "type of all tenants": "Y\x1fdoc",
}


def test_these_are_all_shapes() -> None:
    assert set(SHAPES.values()) == set(EVERYWHERE.scopes) == set(scopes_of(EVERYWHERE.l1)[1])
    assert scopes_of(EVERYWHERE.l1)[0] == EVERYWHERE.family.bucket == BUCKET


@pytest.mark.parametrize("name", SHAPES.values(), ids=SHAPES.keys())
async def test_a_record_lies_in_every_scope_of_its_key(ann: Client, bob: Client, name: str) -> None:
    keys = [
        EVERYWHERE,
        key(agent_id="a"),
        key(conversation_id="v"),
        key(collection_id="c"),
        key(),
        key("r2", agent_id="a"),
        key(data_type="other", collection_id="c"),
        key(agent_id="b", conversation_id="w"),
        key(tenant=NEIGHBOUR),
        key(data_type="other", tenant=NEIGHBOUR, agent_id="a"),
    ]
    kept = [(await ann.loaded(what)).encode(what.l2) for what in keys]
    assert await bob.read(*keys) == kept
    await ann.invalidate(scopes=[name])
    expected = [None if name in what.scopes else data for what, data in zip(keys, kept, strict=True)]
    assert await bob.read(*keys) == expected
    assert expected[0] is None
    assert name == ALL_OF_SHARD or any(expected)
    for what, data in zip(keys, expected, strict=True):
        assert ((await bob.fill_lease(what)).outcome is FillLeaseOutcome.HIT) == (data is not None)
        assert await bob.store.get(what) is not None, "a plain get is not judged"


async def test_a_record_lies_under_its_tags(ann: Client, bob: Client) -> None:
    tags = [tag("plan"), tag("größe"), tag("x" * 512)]
    records_ = [await ann.loaded(key(f"r{count}"), tags=tags[:count]) for count in range(4)]
    keys = [key(f"r{count}") for count in range(4)]
    for number in (2, 1, 0):
        await ann.invalidate(scopes=[tags[number]])
        assert await bob.read(*keys) == [r.encode(keys[i].l2) if i <= number else None for i, r in enumerate(records_)]


async def test_a_mark_hides_what_is_older_and_nothing_else(ann: Client, bob: Client) -> None:
    await ann.invalidate(scopes=[scope("doc")])
    lease = await ann.granted(key())
    assert lease.seq == 2, "granted at the mark's own seq: the load began after it"
    record = ann.record(b"v", lease)
    assert (await ann.fill(key(), record)).done
    assert await bob.read(key()) == [record.encode(key().l2)]


@pytest.mark.limits(max_invalidated_scopes=1)
async def test_a_low_watermark_hides_everything_older(ann: Client, bob: Client) -> None:
    record = await ann.loaded(key())
    await ann.invalidate(scopes=[scope("x")])
    assert await bob.read(key()) == [record.encode(key().l2)]
    newer = await ann.loaded(key("newer"))
    change = await ann.invalidate(scopes=[scope("y")])
    assert raised(change) == (BUCKET, 2)
    assert await bob.read(key(), key("newer")) == [None, newer.encode(key("newer").l2)]
    assert (await bob.fill_lease(key())).outcome is FillLeaseOutcome.GRANTED


async def test_many_keys_in_one_read(ann: Client, bob: Client) -> None:
    keys = [key(f"r{number}", **({"agent_id": "a"} if number % 3 else {})) for number in range(300)]
    kept: list[bytes | None] = []
    for number, what in enumerate(keys):
        kept.append((await ann.loaded(what)).encode(what.l2) if number % 2 else None)
    reply = await bob.store.read(0, bob.caller, keys)
    assert reply == (ann.caller.epoch, 1, kept)
    assert [await bob.store.get(what) for what in keys] == kept
    assert (await bob.store.read(0, bob.caller, [])).records == []


async def test_an_expired_record_is_given_by_read_but_is_no_hit(ann: Client, bob: Client) -> None:
    """Its reader looks at the expiry; the store keeps it for when the source fails."""
    expired = await ann.loaded(key(), lives_ms=-1)
    live = await ann.loaded(key("live"), lives_ms=LONG_MS)
    assert await bob.read(key(), key("live")) == [expired.encode(key().l2), live.encode(key("live").l2)]
    assert (await bob.fill_lease(key())).outcome is FillLeaseOutcome.GRANTED
    assert (await bob.fill_lease(key("live"))).outcome is FillLeaseOutcome.HIT


def nonsense(epoch: bytes) -> list[bytes]:
    """Bytes that are no record, some of them nearly."""
    dice = random.Random(7)
    good = records.Record(0, 0, b"payload", created_ms=1, epoch=epoch, seq=1).encode("")
    tagged = records.Record(0, 0, b"", created_ms=1, tags=["G\x1facme\x1fplan"], epoch=epoch, seq=1).encode("")
    return [
        b"",
        b"\x00",
        b"0",
        b"-1",
        b"nil",
        MAGIC[:1],
        MAGIC,
        b"\xff" * 63,
        *[good[:size] for size in (2, 20, 28, 62)],
        *[MAGIC + bytes(size) for size in (60, 61, 200)],
        *[tagged[:size] for size in (63, 64, 65, len(tagged) - 1)],
        good[:60] + b"\xff\0\0",
        b"\xcb\x01" + good[2:],
        good[:4] + epoch[::-1] + good[20:],
        good[:20] + bytes(8) + good[28:-1],
        *[dice.randbytes(dice.randrange(200)) for _ in range(20)],
    ]


MAGIC = records.MAGIC


async def misses(client: Client, keys: Sequence[Key]) -> None:
    """None of these is a hit, and none of them an error."""
    assert await client.read(*keys) == [None] * len(keys)
    for what in keys:
        lease = await client.fill_lease(what, f"lease of {what.l2}")
        assert (lease.outcome, lease.record) == (FillLeaseOutcome.GRANTED, None)


@pytest.mark.parametrize("invalidated", [0, 1])
async def test_bytes_that_are_no_record_are_a_miss(rig: StoreRig, ann: Client, invalidated: int) -> None:
    if invalidated:
        await ann.invalidate(scopes=[scope("other")])
    else:
        await ann.invalidate()
    await ann.probe()
    assert ann.caller.applied == 2, "so that seq 0 is not the present one"
    found = nonsense(ann.caller.epoch)
    keys = [key(f"r{number}") for number in range(len(found))]
    for what, data in zip(keys, found, strict=True):
        await rig.plant(what, data)
    assert [await ann.store.get(what) for what in keys] == found
    undecoded = []
    for what, data in zip(keys, found, strict=True):
        try:
            records.parse(data)
        except records.CorruptRecord:
            undecoded.append(what)
    assert len(undecoded) > 15
    await misses(ann, undecoded)
    # Those with a header that could be ours: never an error, whatever they give.
    for what in set(keys) - set(undecoded):
        await ann.read(what)
        await ann.fill_lease(what)


async def test_nonsense_under_a_record_is_a_miss_and_is_written_over(rig: StoreRig, ann: Client) -> None:
    keys = [key("filled"), key("written"), key("added"), key("removed")]
    for what in keys:
        await rig.plant_nonsense(what)
    await misses(ann, keys)
    record = ann.record(b"v")
    assert (await ann.fill(keys[0], record, f"lease of {keys[0].l2}")).done
    assert (await ann.write(keys[1])).done
    assert (await ann.write(keys[2], if_absent=True)).done
    await ann.invalidate(keys[3])
    assert [data is not None for data in await ann.read(*keys)] == [True, True, True, False]
    assert await ann.store.get(keys[0]) == record.encode(keys[0].l2)


async def test_a_refresh_takes_the_place_of_nonsense(rig: StoreRig, ann: Client) -> None:
    record = await ann.loaded(key())
    lease = await ann.granted(key(), refresh=True)
    await rig.plant_nonsense(key())
    assert (await ann.fill(key(), ann.record(b"v", lease), over=record.version)).done
