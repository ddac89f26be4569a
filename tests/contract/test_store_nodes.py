"""The rows of nodes: who is there, how far each is, what each says of itself, and whether rows may be missing."""

from __future__ import annotations

import pytest

from cachebus.core.ports import About, Caller, Largest, NodeRow
from tests.contract.clients import NOBODY, SHORT_MS, Client, key, scope
from tests.contract.rig import StoreRig


async def applied(client: Client) -> dict[str, int]:
    """How far each node is, by what a producer is told."""
    reply = await client.store.nodes(0, NOBODY)
    return {node: row.applied for node, row in reply.rows.items()}


async def test_they_tell_how_far_everybody_is(ann: Client, bob: Client) -> None:
    await ann.invalidate(key())
    await ann.probe()
    await ann.probe()
    assert await applied(ann) == {"ann": 2, "bob": 0}
    bob.caller = bob.caller._replace(applied=1)
    reply = await bob.store.nodes(0, bob.caller)
    assert {node: row.applied for node, row in reply.rows.items()} == {"ann": 2, "bob": 1}, "the caller's own too"
    assert reply.epoch == bob.caller.epoch


async def test_a_row_moves_with_every_question(ann: Client, bob: Client) -> None:
    before = (await ann.store.nodes(0, NOBODY)).rows
    await bob.fill_lease(key(), px_ms=SHORT_MS)
    after = (await ann.store.nodes(0, NOBODY)).rows
    assert before["ann"] == after["ann"]
    assert before["bob"].at_us < after["bob"].at_us
    await bob.read(key())
    assert after["bob"].at_us < (await ann.store.nodes(0, NOBODY)).rows["bob"].at_us


async def test_a_row_says_what_its_node_says_of_itself(rig: StoreRig, ann: Client) -> None:
    about = About(2_000, 70_000, (("host", "größe"), ("since", -3.5), ("version", 2**60), ("x", None)))
    carl = await Client(await rig.store(), "carl · 2", about).attach()
    await carl.probe()
    reply = await ann.store.nodes(0, ann.caller)
    row = reply.rows["carl · 2"]
    assert row == NodeRow(carl.caller.applied, carl.caller.epoch, row.at_us, about)
    assert abs(row.at_us // 1000 - carl.now_ms) < 10_000
    assert reply.rows["ann"].about == About()


async def test_who_stands_in_another_epoch_says_so(rig: StoreRig, ann: Client) -> None:
    """A node that a failover took by surprise has applied more, of what is now void."""
    await ann.store.probe(0, Caller("bob", 70, b"0" * 16), with_invalidated=False)
    assert (await ann.store.nodes(0, ann.caller)).rows["bob"][:2] == (70, b"0" * 16)


@pytest.mark.parametrize("lives", [False, True])
async def test_who_is_forgotten_is_gone_from_them(ann: Client, bob: Client, lives: bool) -> None:
    assert await ann.store.forget(0, ann.caller, "bob", lives=lives)
    assert set(await applied(ann)) == {"ann"}
    assert not await ann.store.forget(0, ann.caller, "bob", lives=lives)
    assert not await ann.store.forget(0, NOBODY, "nobody", lives=lives)


async def test_their_name_stays_while_nodes_come_and_go(rig: StoreRig, ann: Client) -> None:
    name = (await ann.probe()).nodes_name
    assert name
    carl = await Client(await rig.store(), "carl").attach()
    await ann.invalidate(key())
    assert await carl.store.forget(0, carl.caller, "carl", lives=False)
    assert (await ann.probe()).nodes_name == name == (await ann.store.nodes(0, NOBODY)).name
    await ann.store.forget(0, NOBODY, "ann", lives=False)
    assert (await ann.store.nodes(0, NOBODY)).rows == {}
    assert (await ann.probe()).nodes_name == name, "all have said that they go: none is missing"


async def test_taking_somebody_out_who_may_live_makes_another_set(ann: Client, bob: Client) -> None:
    name = (await ann.probe()).nodes_name
    await ann.store.forget(0, ann.caller, "bob", lives=True)
    again = (await ann.probe()).nodes_name
    assert again not in (name, b"")
    await ann.store.forget(0, ann.caller, "bob", lives=True)
    assert (await ann.probe()).nodes_name == again, "who was not there is not missing"
    await bob.probe()
    assert (await ann.probe()).nodes_name == again
    assert set(await applied(ann)) == {"ann", "bob"}


@pytest.mark.parametrize("loss", ["flush", "lose_meta", "lose_buckets", "lose_guards", "lose_nodes", "another_server"])
async def test_a_set_in_which_rows_may_be_missing_has_another_name(
    rig: StoreRig, ann: Client, bob: Client, loss: str
) -> None:
    await ann.guard(key(), scopes=[scope()])
    name = (await ann.probe()).nodes_name
    await getattr(rig, loss)()
    empty = await bob.store.nodes(0, NOBODY)
    assert not empty.rows or empty.name != name, "nobody may take it for a whole one"
    reply = await ann.store.nodes(0, ann.caller)
    assert set(reply.rows) == {"ann"}
    assert reply.name not in (name, b"")


async def test_who_has_been_silent_for_a_minute_is_left_out_and_that_makes_another_set(
    rig: StoreRig, ann: Client, bob: Client
) -> None:
    """By the server's clock, which may have been set: whoever it was may still be there."""
    name = (await ann.probe()).nodes_name
    await rig.silence("bob")
    assert set(await applied(ann)) == {"ann", "bob"}
    carl = await Client(await rig.store(), "carl").attach()
    await carl.store.probe(0, carl.caller, with_invalidated=False)  # a store's first of this kind looks for such rows
    assert set(await applied(carl)) == {"ann", "carl"}
    again = (await carl.probe()).nodes_name
    assert again not in (name, b"")
    await bob.probe()
    assert set(await applied(ann)) == {"ann", "bob", "carl"}
    assert (await carl.probe()).nodes_name == again


# -- the largest of the fleet -------------------------------------------------------------------------------------


async def largest(client: Client) -> tuple[int, int]:
    """The largest staleness bound and the longest guard of the fleet, in ms, as a probe's reply says."""
    reply = await client.probe()
    return reply.bound_ms, reply.guard_ms


async def test_the_largest_bound_and_guard_of_the_fleet_are_kept(rig: StoreRig, ann: Client) -> None:
    assert await largest(ann) == (0, 0)
    wide = await Client(await rig.store(), "wide", bound_ms=5_000, guard_ms=10_000).attach()
    long = await Client(await rig.store(), "long", bound_ms=2_000, guard_ms=60_000).attach()
    for client in (ann, wide, long):
        assert await largest(client) == (5_000, 60_000)
    await ann.store.forget(0, ann.caller, "wide", lives=False)
    assert await largest(ann) == (5_000, 60_000), "who is gone may have left what outlives him"


async def test_every_write_tells_the_largest_bound(rig: StoreRig, ann: Client) -> None:
    await Client(await rig.store(), "wide", bound_ms=5_000).attach()
    assert (await ann.invalidate(key())).bound_ms == 5_000
    assert (await ann.write(key())).bound_ms == 5_000
    assert (await ann.write(key(), if_absent=True)).bound_ms == 5_000
    assert (await ann.guard(key())).bound_ms == 5_000
    assert (await ann.store.nodes(0, NOBODY)).bound_ms == 5_000


async def test_asking_for_the_nodes_tells_ones_own_bound(ann: Client) -> None:
    reply = await ann.store.nodes(0, ann.caller._replace(largest=Largest(7_000)))
    assert reply.bound_ms == 7_000
    assert (await largest(ann))[0] == 7_000


async def test_a_probe_without_marks_tells_and_keeps_them_too(ann: Client) -> None:
    reply = await ann.store.probe(0, NOBODY._replace(largest=Largest(3_000, 4_000)), with_invalidated=False)
    assert (reply.bound_ms, reply.guard_ms) == (3_000, 4_000)
    assert await largest(ann) == (3_000, 4_000)


async def test_that_somebody_keeps_what_it_loads_alone_is_kept_too(rig: StoreRig, ann: Client) -> None:
    """Though its row is lost, or it has gone."""
    assert not (await ann.probe()).keeps_without_l2
    assert not (await ann.store.nodes(0, NOBODY)).keeps_without_l2
    keeps = Client(await rig.store(), "keeps")
    keeps.caller = keeps.caller._replace(largest=Largest(keeps_without_l2=True))
    assert (await keeps.probe()).keeps_without_l2
    await rig.lose_nodes()
    assert (await ann.probe()).keeps_without_l2
    assert (await ann.store.probe(0, ann.caller, with_invalidated=False)).keeps_without_l2
    assert (await ann.store.nodes(0, NOBODY)).keeps_without_l2
    await rig.another_server()
    assert (await ann.probe()).keeps_without_l2, "a takeover that finds meta carries it on"
    await rig.flush()
    assert not (await ann.probe()).keeps_without_l2
    assert (await ann.store.nodes(0, keeps.caller)).keeps_without_l2, "who has heard of it brings it back"
    await rig.flush()
    await keeps.invalidate(key())
    assert (await ann.store.probe(0, ann.caller, with_invalidated=False)).keeps_without_l2, "in the takeover itself"


@pytest.mark.parametrize("loss", ["another_server", "lose_buckets", "lose_guards"])
async def test_a_takeover_that_finds_meta_carries_them_on(rig: StoreRig, ann: Client, loss: str) -> None:
    await Client(await rig.store(), "wide", bound_ms=5_000, guard_ms=60_000).attach()
    await ann.guard(key(), scopes=[scope()])
    await getattr(rig, loss)()
    assert await largest(ann) == (5_000, 60_000)
    assert (await ann.probe()).epoch != b""


@pytest.mark.parametrize("loss", ["flush", "lose_meta"])
async def test_where_meta_is_lost_who_has_heard_of_them_brings_them_back(rig: StoreRig, ann: Client, loss: str) -> None:
    knows = await Client(await rig.store(), "knows", bound_ms=5_000, guard_ms=60_000).attach()
    await getattr(rig, loss)()
    assert (await ann.invalidate(key())).bound_ms == 0, "who has not heard of them can't"
    assert await largest(knows) == (5_000, 60_000)
    assert await largest(ann) == (5_000, 60_000)
    await getattr(rig, loss)()
    assert (await knows.invalidate(key())).bound_ms == 5_000, "in the takeover itself"
    assert (await ann.write(key())).expires_ms, "so nobody keeps for long what a lost guard may have stood before"
