"""The register of nodes: who is there, how far each is, and whether lines may be missing from it."""

from __future__ import annotations

import pytest

from cachebus.ports import Caller
from tests.contract.people import NOBODY, SHORT_MS, Person, key, scope
from tests.contract.rig import StoreRig


async def applied(person: Person) -> dict[str, int]:
    """How far each node is, by what a producer is told."""
    register = await person.store.register(0, NOBODY)
    return {node: applied for node, (applied, _) in register.lines.items()}


async def test_it_tells_how_far_everybody_is(ann: Person, bob: Person) -> None:
    await ann.invalidate(key())
    assert await applied(ann) == {"ann": 1, "bob": 0}
    bob.caller = bob.caller._replace(applied=2)
    register = await bob.store.register(0, bob.caller)
    assert {node: line[0] for node, line in register.lines.items()} == {"ann": 1, "bob": 2}, "the caller's own too"
    assert register.epoch == bob.caller.epoch


async def test_a_line_moves_with_every_question(ann: Person, bob: Person) -> None:
    before = (await ann.store.register(0, NOBODY)).lines
    await bob.lease(key(), px_ms=SHORT_MS)
    after = (await ann.store.register(0, NOBODY)).lines
    assert before["ann"] == after["ann"]
    assert before["bob"] != after["bob"]


async def test_who_stands_in_another_epoch_has_applied_nothing_of_this_one(rig: StoreRig, ann: Person) -> None:
    """A node that a failover took by surprise has applied more, of what is now void."""
    await ann.store.probe(0, Caller("bob", 70, b"0" * 16), marks=False)
    assert await applied(ann) == {"ann": 0, "bob": 0}


async def test_who_leaves_is_gone_from_it(ann: Person, bob: Person) -> None:
    await bob.store.leave(0, bob.caller)
    assert set(await applied(ann)) == {"ann"}


async def test_its_name_stays_while_nodes_come_and_go(rig: StoreRig, ann: Person) -> None:
    name = (await ann.probe()).register
    assert name
    carl = await Person(await rig.store(), "carl").attach()
    await ann.invalidate(key())
    await carl.store.leave(0, carl.caller)
    assert (await ann.probe()).register == name == (await ann.store.register(0, NOBODY)).name


@pytest.mark.parametrize("loss", ["flush", "lose_meta", "lose_marks", "lose_nodes", "another_server"])
async def test_a_register_in_which_lines_may_be_missing_has_another_name(
    rig: StoreRig, ann: Person, bob: Person, loss: str
) -> None:
    await ann.invalidate(names=[scope()])
    name = (await ann.probe()).register
    await getattr(rig, loss)()
    empty = await bob.store.register(0, NOBODY)
    assert not empty.lines or empty.name != name, "nobody may take it for a whole one"
    register = await ann.store.register(0, ann.caller)
    assert set(register.lines) == {"ann"}
    assert register.name not in (name, b"")


async def test_who_has_been_silent_for_a_minute_is_left_out_and_that_makes_another_register(
    rig: StoreRig, ann: Person, bob: Person
) -> None:
    """By the server's clock, which may have been set: whoever it was may still be there."""
    name = (await ann.probe()).register
    await rig.silence("bob")
    assert set(await applied(ann)) == {"ann", "bob"}
    carl = await Person(await rig.store(), "carl").attach()  # a store's first probe looks for such lines
    assert set(await applied(carl)) == {"ann", "carl"}
    again = (await carl.probe()).register
    assert again not in (name, b"")
    await bob.probe()
    assert set(await applied(ann)) == {"ann", "bob", "carl"}
    assert (await carl.probe()).register == again
