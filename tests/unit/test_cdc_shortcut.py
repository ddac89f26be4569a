"""What a message means by the short way is what its change means by the long one."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import parse_rules
from cachebus.consumers.cdc.slot.pgoutput import Column, PgOutputError, Relation, Told
from cachebus.consumers.cdc.slot.shortcut import shortcut

NUMBER, UUID, TEXT, TIME, PADDED = 20, 2950, 25, 1114, 1042
RULE = """
[[rule]]
table = "public.orders"
data_type = "order"
resource_id = "{resource}"
tenant_id = "{tenant}"
on_truncate = "ignore"
"""
COLUMNS = (
    Column("at", TIME, False),
    Column("id", NUMBER, True),
    Column("tenant", TEXT, False),
    Column("u", UUID, True),
    Column("c", PADDED, False),
)
RELATION = Relation("public", "orders", "d", COLUMNS)


def rule(resource: str, tenant: str, more: str = "") -> Router:
    return Router(parse_rules(RULE.replace("{resource}", resource).replace("{tenant}", tenant) + more))


def told(kind: bytes, *parts: bytes) -> Told:
    return Told(b"".join([kind, b"\0\0\0\7", *parts]), (RELATION,), "0/1", 1.0)


def row(*values: bytes | None, width: int = len(COLUMNS)) -> bytes:
    texts = (b"n" if value is None else b"t" + struct.pack(">i", len(value)) + value for value in values)
    return struct.pack(">h", width) + b"".join(texts)


def meant(router: Router, message: Told) -> Any:
    """By the long way: commands and problems, or the error."""
    table = router.table("public", "orders")
    try:
        meaning = table.meaning(message.changes(table.columns)[0])
    except PgOutputError as error:
        return str(error)
    return list(meaning.commands), list(meaning.problems)


ROW = row(b"2026-01-01", b"7", "größe".encode(), b"00000000-0000-0000-0000-000000000001", b" a b  ")
NAMES = [
    ("{id}", "acme"),
    ("{id}", "{tenant}"),
    ("{u}", "{tenant}"),
    ("all", "{tenant}"),
    ("{tenant}", "{tenant}"),
    ("{c}", "{u}"),
]


@pytest.mark.parametrize(("resource", "tenant"), NAMES)
@pytest.mark.parametrize("kind", [b"I", b"U"])
def test_a_row_that_is_written_takes_it(resource: str, tenant: str, kind: bytes) -> None:
    router = rule(resource, tenant)
    way = shortcut(router.table("public", "orders"), RELATION)
    assert way is not None
    meaning = way.meaning(told(kind, b"N", ROW))
    assert meaning is not None
    assert (list(meaning.commands), list(meaning.problems)) == meant(router, told(kind, b"N", ROW))


@pytest.mark.parametrize(
    "message",
    [
        told(b"U", b"K", ROW, b"N", ROW),
        told(b"D", b"K", ROW),
        told(b"D", b"N", ROW),
        told(b"I", b"N", row(None, None, b"acme", None, None)),
        told(b"I", b"N", row(b"x", b"7", b"\xff", None, None)),
        told(b"I", b"N", row(b"x", b"7", width=3)),
        told(b"I", b"N", ROW[:-56]),
        told(b"I", b"N", ROW[:3]),
    ],
)
def test_what_is_told_otherwise_does_not(message: Told) -> None:
    way = shortcut(rule("{id}", "{tenant}").table("public", "orders"), RELATION)
    assert way is not None
    assert way.meaning(message) is None


@pytest.mark.parametrize(
    "router",
    [
        rule("order:{id}", "acme"),
        rule("{id}", "acme", 'when = ["at"]'),
        rule("{id}", "acme", 'tags = ["t"]'),
        rule("{id}", "acme", 'scopes = [{ data_type = "list" }]'),
        rule("{id}", "acme", 'related = [{ data_type = "x", resource_id = "{id}" }]'),
        rule("{id}", "acme", 'agent_id = "{u}"'),
        rule("{id}", "acme", 'operations = ["insert", "truncate"]'),
        rule("{id}", "acme", RULE.format(resource="{u}", tenant="acme")),
        rule("{at}", "acme"),
        rule("{other}", "acme"),
        rule("{id}", "{other}"),
    ],
)
def test_a_rule_that_looks_at_more_has_none(router: Router) -> None:
    assert shortcut(router.table("public", "orders"), RELATION) is None


def test_rows_in_an_odd_encoding_have_none() -> None:
    odd = Relation("public", "orders", "d", COLUMNS, "cp1252")
    assert shortcut(rule("{id}", "acme").table("public", "orders"), odd) is None


@given(
    st.sampled_from(NAMES),
    st.sampled_from([b"I", b"U", b"D"]),
    st.lists(st.none() | st.integers().map(lambda n: str(n).encode()) | st.binary(max_size=9), min_size=5, max_size=5),
    st.integers(0, 90),
    st.binary(max_size=2),
)
def test_it_never_tells_anything_else(
    names: tuple[str, str], kind: bytes, values: list[bytes | None], at: int, odd: bytes
) -> None:
    router, data = rule(*names), b"N" + row(*values)
    message = told(kind, data[:at] + odd + data[at + len(odd) :])
    way = shortcut(router.table("public", "orders"), RELATION)
    assert way is not None
    meaning = way.meaning(message)
    long = meant(router, message)
    if meaning is not None and not isinstance(long, str):
        assert not long[1]
        assert [plain(command) for command in meaning.commands] == [plain(command) for command in long[0]]


def plain(command: Any) -> Any:
    """With its number as a server writes it: what the bytes have at random may be written otherwise."""
    try:
        return command._replace(resource_id=str(int(command.resource_id)))
    except ValueError:
        return command
