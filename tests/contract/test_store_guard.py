"""Write guards: while one stands nothing that it covers is stored, whoever asks; and what a takeover makes of them."""

from __future__ import annotations

import pytest

from cachebus.core.ports import Change, FillLeaseOutcome
from cachebus.keys.key import Key
from cachebus.wire.record import decode
from tests.contract.clients import LONG_MS, SHORT_MS, Client, key, scope, tag, where
from tests.contract.rig import RedisRig, StoreRig, until

OTHER = "h" * 16


async def allows(client: Client, what: Key, *, tags: tuple[str, ...] = ()) -> bool:
    """Whether a lease is granted."""
    reply = await client.fill_lease(what, "probe", tags=tags, refresh=True)
    if reply.outcome is FillLeaseOutcome.GRANTED:
        client.store.release(what, "probe")
    assert reply.outcome in (FillLeaseOutcome.GRANTED, FillLeaseOutcome.GUARDED)
    return reply.outcome is FillLeaseOutcome.GRANTED


async def test_a_guard_is_an_invalidation(rig: StoreRig, ann: Client, bob: Client) -> None:
    await bob.loaded(key())
    await bob.loaded(key("s"), tags=[tag("t")])
    assert where(await ann.guard(key(), scopes=[tag("t")])) == (ann.caller.epoch, 2, True)
    assert await bob.read(key(), key("s")) == [None, None]
    assert len(await rig.heard(1)) == 1
    assert await bob.invalidated() == {tag("t"): 2}
    assert [entry.seq for entry in await bob.store.log(0, 0, 9)] == [2]


@pytest.mark.parametrize("name", ["key", "its type", "its tenant", "its id in every context", "its context", "its tag"])
async def test_while_it_stands_nothing_that_it_covers_is_leased(ann: Client, bob: Client, name: str) -> None:
    what = key("r", agent_id="a7")
    scopes = {
        "key": [],
        "its type": [scope("doc")],
        "its tenant": [scope()],
        "its context": [scope("doc", agent_id="a7")],
        "its id in every context": [next(n for n in what.scopes if n.startswith("I"))],
        "its tag": [tag("t")],
    }[name]
    keys = [what] if name == "key" else []
    await ann.guard(*keys, scopes=scopes)
    refused = await bob.fill_lease(what, tags=[tag("t")])
    assert (refused.outcome, refused.record) == (FillLeaseOutcome.GUARDED, None)
    assert LONG_MS - 5_000 < refused.wait_ms <= LONG_MS
    assert (await bob.fill_lease(what, tags=[tag("t")], refresh=True)).outcome is FillLeaseOutcome.GUARDED
    elsewhere = key("other", data_type="other")
    assert await allows(bob, elsewhere, tags=(tag("u"),)) == (name != "its tenant")
    await ann.guard(*keys, scopes=scopes, px_ms=0)
    assert await allows(bob, what, tags=(tag("t"),))


async def test_a_load_that_was_leased_before_is_not_stored(ann: Client, bob: Client) -> None:
    lease = await bob.granted(key())
    wide = await bob.granted(key("wide"), "w")
    await ann.guard(key(), scopes=[scope("doc")])
    assert not (await bob.fill(key(), bob.record(b"old", lease))).done
    assert not (await bob.fill(key("wide"), bob.record(b"old", wide), "w")).done
    await ann.guard(key(), scopes=[scope("doc")], px_ms=0)
    assert not (await bob.fill(key("wide"), bob.record(b"old", wide), "w")).done
    assert await bob.read(key(), key("wide")) == [None, None]


async def test_a_load_that_turns_out_to_carry_a_guarded_tag_is_not_stored(ann: Client, bob: Client) -> None:
    await ann.guard(scopes=[tag("t")])
    lease = await bob.granted(key())
    assert not (await bob.fill(key(), bob.record(b"old", lease, tags=[tag("u"), tag("t")]))).done
    assert await bob.read(key()) == [None]


async def test_a_write_under_a_guard_stores_nothing_and_invalidates(rig: StoreRig, ann: Client, bob: Client) -> None:
    await ann.guard(key())
    await bob.loaded(key("dependent"))
    change = await bob.write(key(), others=[key("dependent")], scopes=[scope("page")])
    assert where(change) == (ann.caller.epoch, 3, False)
    assert change.event_header
    assert await bob.read(key(), key("dependent")) == [None, None]
    assert len(await rig.heard(2)) == 2
    assert await ann.invalidated() == {scope("page"): 3}
    await ann.guard(key(), px_ms=0)
    assert (await bob.write(key())).done


async def test_a_write_with_a_guarded_tag_stores_nothing(ann: Client, bob: Client) -> None:
    await ann.guard(scopes=[tag("t")])
    assert not (await bob.write(key(), tags=[tag("t")])).done
    assert (await bob.write(key(), tags=[tag("u")])).done


async def test_a_write_with_a_guarded_tag_takes_away_what_lay_there_without_it(ann: Client, bob: Client) -> None:
    await ann.guard(scopes=[tag("t")])
    assert (await bob.write(key())).done
    assert not (await bob.write(key(), tags=[tag("t")])).done
    assert await bob.read(key()) == [None]


async def test_adding_under_a_guard_does_nothing_at_all(rig: StoreRig, ann: Client, bob: Client) -> None:
    await ann.guard(key())
    assert await bob.write(key(), if_absent=True) == Change(ann.caller.epoch, 2, False)
    assert len(await rig.heard(1)) == 1


async def test_each_token_stands_for_itself(ann: Client, bob: Client) -> None:
    await ann.guard(key())
    await bob.guard(key(), token=OTHER)
    await ann.guard(key(), px_ms=0)
    assert not await allows(bob, key())
    await ann.guard(key(), px_ms=0)
    assert not await allows(bob, key()), "taken away twice is taken away once"
    await bob.guard(key(), token=OTHER, px_ms=0)
    assert await allows(bob, key())


async def test_a_guard_of_a_scope_and_one_of_a_key_in_it(ann: Client, bob: Client) -> None:
    await ann.guard(scopes=[scope("doc")])
    await bob.guard(key(), token=OTHER)
    await ann.guard(scopes=[scope("doc")], px_ms=0)
    assert not await allows(bob, key())
    assert await allows(bob, key("other"))
    await ann.guard(scopes=[scope("doc")])
    await bob.guard(key(), token=OTHER, px_ms=0)
    assert not await allows(bob, key())


async def test_taking_it_away_invalidates_in_any_case(rig: StoreRig, ann: Client, bob: Client) -> None:
    await bob.loaded(key())
    assert where(await ann.guard(key(), px_ms=0)) == (ann.caller.epoch, 2, True)
    assert await bob.read(key()) == [None]


async def test_it_ends_by_itself_and_the_first_to_end_is_told(ann: Client, bob: Client) -> None:
    await ann.guard(key())
    await bob.guard(key(), scopes=[scope("doc")], token=OTHER, px_ms=SHORT_MS * 10)
    reply = await bob.fill_lease(key())
    assert (reply.outcome, 0 < reply.wait_ms <= SHORT_MS * 10) == (FillLeaseOutcome.GUARDED, True)

    async def over() -> bool:
        return await allows(ann, key("other"))

    await until(over)
    assert (await bob.fill_lease(key())).wait_ms > SHORT_MS * 10, "the other one stands"


@pytest.mark.parametrize("loss", ["flush", "lose_meta", "another_server", "lose_guards"])
async def test_a_takeover_loses_guards_and_what_is_stored_then_lives_no_longer_than_they_might_have(
    rig: StoreRig, loss: str
) -> None:
    ann = await Client(await rig.store(), "ann", guard_ms=60_000).attach()
    bob = await Client(await rig.store(), "bob", guard_ms=60_000).attach()
    await ann.guard(key())
    await getattr(rig, loss)()
    await bob.probe()
    lease = await bob.granted(key())
    change = await bob.fill(key(), bob.record(b"v", lease))
    assert change.done
    assert 50_000 < change.expires_ms - bob.now_ms <= 61_000
    (data,) = await bob.read(key())
    assert data is not None
    assert decode(data, key().l2).expires_ms == change.expires_ms
    change = await bob.write(key("w"), lives_ms=3_600_000, px_ms=3_600_000)
    assert 50_000 < change.expires_ms - bob.now_ms <= 61_000
    assert (await bob.write(key("short"), lives_ms=5_000, px_ms=5_000)).expires_ms == 0
    if isinstance(rig, RedisRig):
        for one in ("r", "w"):
            assert 50_000 < await rig.redis.call("PTTL", rig.names.record(key(one))) <= 60_000


async def test_all_that_is_stored_or_leased_after_a_takeover_ends_when_lost_guards_have_ended(rig: StoreRig) -> None:
    """However late it was: each of them was put up before the epoch began. A load that began before may have read
    what was before a commit, so its lease lasts no longer either."""
    bob = await Client(await rig.store(), "bob", guard_ms=60_000).attach()
    await rig.another_server()
    await bob.probe()
    ends_ms = (await bob.store.probe(0, bob.caller, with_invalidated=False)).born_us // 1000 + 60_000
    first = await bob.write(key("first"))
    wrote_ms = bob.now_ms

    async def later() -> bool:
        return (await bob.probe()).server_us // 1000 > wrote_ms + 2

    await until(later)
    second = await bob.write(key("second"))
    assert (first.expires_ms, second.expires_ms) == (ends_ms, ends_ms)
    await bob.granted(key(), px_ms=200_000)
    assert 50_000 < (await bob.fill_lease(key(), "other")).wait_ms <= 60_000
    for _ in range(2):  # the first may have had to send the script
        bob.store.extend(key(), "t", 200_000)
        assert 50_000 < (await bob.fill_lease(key(), "other")).wait_ms <= 60_000
    bob.store.release(key(), "t")


async def test_where_the_servers_clock_was_set_back_lost_guards_last_no_longer_for_that(redis: RedisRig) -> None:
    """By its clock the epoch has yet to begin."""
    bob = await Client(await redis.store(), "bob", guard_ms=60_000).attach()
    before_ms = (await bob.probe()).server_us // 1000
    await redis.redis.call("HSET", redis.names.meta, "born", f"{(before_ms + 3_600_000) * 1000}")
    expires_ms = (await bob.write(key())).expires_ms
    assert before_ms <= expires_ms - 60_000 <= (await bob.probe()).server_us // 1000


async def test_when_no_lost_guard_can_stand_any_more_records_live_as_long_as_they_like(rig: StoreRig) -> None:
    ann = await Client(await rig.store(), "ann", guard_ms=50).attach()
    await rig.another_server()
    await ann.probe()

    async def unbounded() -> bool:
        return not (await ann.write(key())).expires_ms

    await until(unbounded)


@pytest.mark.parametrize("who", ["the one who stores", "a node that has probed before"])
async def test_whoever_knows_of_a_longer_guard_has_records_live_shorter(rig: StoreRig, who: str) -> None:
    knows = await Client(await rig.store(), "knows", guard_ms=60_000).attach()
    stores = knows if who == "the one who stores" else await Client(await rig.store(), "stores").attach()
    assert (await stores.write(key())).expires_ms
    lease = await stores.granted(key("filled"))
    assert (await stores.fill(key("filled"), stores.record(b"v", lease))).expires_ms


async def test_so_many_guards_on_one_name_are_refused(ann: Client) -> None:
    """Each costs the server at every look at the name."""
    for number in range(1000):
        assert (await ann.guard(key(), token=f"{number:016}")).done
    assert not (await ann.guard(key(), token="x" * 16)).done
    assert (await ann.guard(key("other"), token="x" * 16)).done
    assert (await ann.guard(key(), token=f"{7:016}", px_ms=0)).done, "one may be taken away"
    assert (await ann.guard(key(), token="x" * 16)).done
