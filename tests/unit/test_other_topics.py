"""Which nodes hear events by another topic: those that live, and say so."""

from __future__ import annotations

from cachebus.core.ports import About, NodeRow
from cachebus.listening.topics import elsewhere

NOW_US = 10**12


def row(topic: object, silent_s: float = 0.0) -> NodeRow:
    """Of a node with a staleness bound of two seconds."""
    return NodeRow(0, b"", NOW_US - int(silent_s * 1e6), About(2000, 0, (("topic", topic),)))


def test_who_lives_and_says_another_topic() -> None:
    rows = {"own": row("a"), "same": row("a"), "other": row("b"), "late": row("b", 1.9), "odd": row(7)}
    assert elsewhere("a", rows) == {"other", "late", "odd"}


def test_neither_who_is_silent_nor_who_says_nothing() -> None:
    rows = {"own": row("a"), "gone": row("b", 2.1), "older": NodeRow(0, b"", NOW_US, About(2000, 0))}
    assert not elsewhere("a", rows)
    assert not elsewhere("a", {})
