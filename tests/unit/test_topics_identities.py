"""What is kept of topics beyond them: by it a topic that was made anew is known, and a new one is no other."""

from __future__ import annotations

import secrets

import pytest

from cachebus.consumers.topics import identities
from cachebus.consumers.topics.brokers import Committed
from cachebus.consumers.topics.identities import ANOTHER, TopicIdentities
from cachebus.testing import FakeClock


def of(text: str | None, namespace: str = "ours", clock: FakeClock | None = None) -> TopicIdentities:
    """What a worker knows that starts where this is kept."""
    one = TopicIdentities(namespace, "dead", clock or FakeClock())
    one.found({} if text is None else {one.place: Committed(0, text)})
    return one


def kept(*names: str) -> str:
    text = of(None).due({name: f"id of {name}" for name in names})
    assert text is not None
    return text


def test_a_topic_is_known_by_what_is_kept_of_it() -> None:
    one = of(kept("a", "b"))
    assert one.before("a", "id of a") == "id of a"
    assert one.before("a", "new") == ANOTHER
    assert one.before("c", "id of c") is None, "it is new to the group"


@pytest.mark.parametrize("text", [None, "", "?", "7", "[]", "{}", '{"cachebus": "ours"}', "[" * 5000])
def test_where_nothing_is_kept_nothing_is_known(text: str | None) -> None:
    assert of(text).before("a", "id of a") is None


def test_what_is_another_namespaces_says_nothing() -> None:
    assert of(kept("a"), "theirs").before("a", "new") is None


def test_what_this_worker_has_read_itself_comes_first() -> None:
    one = of(kept("a"))
    one.took({"a": "new", "old brokers": ""})
    assert one.before("a", "new") == "new"
    assert one.before("old brokers", "x") is None


def test_workers_of_one_group_keep_what_the_others_keep_until_it_lies_there() -> None:
    a, b = of(kept("a")), of(kept("a"))
    first, second = a.due({"a": "new"}), b.due({"b": "id of b"})
    assert first is not None
    assert second is not None
    for worker in (a, b):
        worker.found({a.place: Committed(0, second)})  # written over the other one's
    again = a.due({"a": "new"})
    assert again is not None
    late = of(again)
    assert (late.before("a", "new"), late.before("b", "id of b")) == ("new", "id of b")


def test_it_is_kept_once_and_again_before_brokers_remove_it() -> None:
    clock = FakeClock()
    one = of(None, clock=clock)
    text = one.due({"a": "id"})
    assert text is not None
    one.kept(text)
    assert one.due({"a": "id"}) is None
    clock.advance(identities.KEEP_EVERY_S)
    assert one.due({"a": "id"}) == text


def test_a_topic_that_is_there_no_more_stays_known_also_to_a_worker_that_does_not_read_it() -> None:
    text = of(kept("a", "b")).due({"b": "id of b"})
    assert text is not None
    assert of(text).before("a", "new") == ANOTHER


def test_of_very_many_those_that_are_read_are_kept_as_far_as_brokers_take_it() -> None:
    one = of(kept(*(f"old {number}" for number in range(300))))
    text = one.due({f"topic {number}": secrets.token_hex(16) for number in range(400)})
    assert text is not None
    assert len(text) < 4096
    late = of(text)
    assert all(late.before(f"topic {number}", "new") == ANOTHER for number in range(400))
