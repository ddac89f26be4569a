"""Which nodes do not hear each other: those that live, and say so."""

from __future__ import annotations

import pytest

from cachebus.bus.kafka.envelope import hearing_of
from cachebus.core.hearing import KAFKA, KEYS, TOPIC, Hearing
from cachebus.core.ports import About, NodeRow
from cachebus.listening.peers import out_of_hearing
from cachebus.settings import Settings

NOW_US = 10**12


def row(topic: str, silent_s: float = 0.0, **more: object) -> NodeRow:
    """Of a node with a staleness bound of two seconds."""
    return NodeRow(0, b"", NOW_US - int(silent_s * 1e6), About(2000, 0, (("topic", topic), *more.items())))


def test_who_lives_and_says_another_topic() -> None:
    rows = {"own": row("a"), "same": row("a"), "other": row("b"), "late": row("b", 1.9)}
    assert out_of_hearing(Hearing("a"), rows) == {"other": TOPIC, "late": TOPIC}


def test_neither_who_is_silent_nor_who_says_nothing_nor_nonsense() -> None:
    rows = {"own": row("a"), "gone": row("b", 2.1), "older": NodeRow(0, b"", NOW_US, About(2000, 0))}
    rows["odd"] = NodeRow(0, b"", NOW_US, About(2000, 0, (("topic", 7), ("keys", [1]))))
    assert not out_of_hearing(Hearing("a", "k", "1"), rows | {"odder": row("a", kafka=7, keys=None)})
    assert not out_of_hearing(Hearing("a"), {})


def test_who_is_at_another_kafka_under_one_name() -> None:
    rows = {"same": row("a", kafka="one"), "other": row("a", kafka="two"), "older": row("a")}
    assert out_of_hearing(Hearing("a", "one"), rows) == {"other": KAFKA}
    assert not out_of_hearing(Hearing("a"), rows), "it does not know its own yet"


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ("old", "old", ""),
        ("old", "old,new", ""),
        ("old,new", "new,old", ""),
        ("new,old", "new", ""),
        ("old", "new", KEYS),
        ("old", "new,old", KEYS),
        (None, None, ""),
        (None, "new", KEYS),
    ],
)
def test_keys_by_which_events_are_passed_over_and_those_by_which_they_are_not(
    one: str | None, other: str | None, why: str
) -> None:
    said = [hearing_of(Settings(namespace="prod", kafka_events_key=key)) for key in (one, other)]
    assert said[0].barrier(said[1]) == said[1].barrier(said[0]) == why
    assert Hearing.of(said[0].in_row) == said[0]


def test_a_fingerprint_is_neither_the_key_nor_the_same_elsewhere() -> None:
    here, there = (hearing_of(Settings(namespace=name, kafka_events_key="a-secret,b-secret")) for name in ("a", "b"))
    assert here.keys is not None and len(here.keys) == 17 and "secret" not in here.keys
    assert here.keys != there.keys
