"""Declared cascades: what they entail, and which are refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.cascade import FAN_OUT_MAX, Cascade, CascadeTable, Target
from cachebus.errors import ConfigError, InvalidKey
from cachebus.keys.key import Keyspace
from cachebus.keys.plan import Planner

DOCUMENT = Cascade(
    "document", to=[("embedding", "doc:{resource_id}"), ("vector_store", "{collection_id}"), ("query_result", "*")]
)


def expanded(table: CascadeTable, *targets: Target, **how: Any) -> list[Target]:
    return table.expand(targets, "acme", **how)


def test_targets_inherit_the_contexts() -> None:
    found = expanded(CascadeTable([DOCUMENT]), Target("document", 7, "a", None, "c"))
    assert found == [
        Target("document", "7", "a", None, "c"),
        Target("embedding", "doc:7", "a", None, "c"),
        Target("vector_store", "c", "a", None, "c"),
        Target("query_result", "*", "a", None, "c", whole=True),
    ]


def test_every_placeholder_is_filled_in() -> None:
    template = "{tenant_id}/{resource_id}/{agent_id}/{conversation_id}/{collection_id}/{{}}"
    table = CascadeTable([Cascade("a", [("b", template)])])
    assert expanded(table, Target("a", 1, 2, "v", "c"))[1] == Target("b", "acme/1/2/v/c/{}", "2", "v", "c")


def test_what_is_entailed_entails_more_and_comes_once() -> None:
    table = CascadeTable(
        [
            Cascade("a", [("b", "{resource_id}"), ("c", "{resource_id}")]),
            Cascade("b", [("d", "{resource_id}")]),
            Cascade("c", [("d", "{resource_id}"), ("e", "*")]),
        ]
    )
    found = expanded(table, Target("a", "1"), Target("c", "1"), Target("a", "1"))
    assert len(found) == len(set(found)) == 5
    assert {t.data_type for t in found} == {"a", "b", "c", "d", "e"}
    assert found[:2] == [Target("a", "1"), Target("c", "1")]


def test_a_whole_scope_entails_nothing() -> None:
    table = CascadeTable([DOCUMENT, Cascade("query_result", [("summary", "{resource_id}")])])
    assert expanded(table, Target("document", "*", whole=True)) == [Target("document", "*", whole=True)]
    assert "summary" not in {t.data_type for t in expanded(table, Target("document", 1, collection_id="c"))}


def test_no_cascade_entails_nothing() -> None:
    targets = [Target("a", 1), Target("b", 2), Target("a", "1")]
    assert CascadeTable().expand(targets, None) == [Target("a", "1"), Target("b", "2")]


def test_several_cascades_of_one_type_are_all_followed() -> None:
    table = CascadeTable([Cascade("a", [("b", "1")]), Cascade("a", [("c", "2")])])
    assert [t.data_type for t in expanded(table, Target("a", 1))] == ["a", "b", "c"]


def test_a_set_follows_only_those_that_say_so() -> None:
    table = CascadeTable(
        [Cascade("a", [("b", "1")]), Cascade("a", [("c", "2")], on_set=True), Cascade("c", [("d", "3")])]
    )
    assert [t.data_type for t in expanded(table, Target("a", 1), on_set=True)] == ["a", "c"]
    assert {t.data_type for t in expanded(table, Target("a", 1))} == {"a", "b", "c", "d"}


def test_a_placeholder_without_a_value_is_told() -> None:
    with pytest.raises(InvalidKey, match="collection_id for 'vector_store'"):
        expanded(CascadeTable([DOCUMENT]), Target("document", 7, "a"))
    table = CascadeTable([Cascade("system", [("other", "{tenant_id}")])])
    with pytest.raises(InvalidKey, match="tenant_id"):
        table.expand([Target("system", 1)], None)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{resource}", "unknown placeholder {resource}"),
        ("{}", "a placeholder has a name between its braces"),
        ("{0}", "unknown placeholder {0}"),
        ("{resource_id.__class__}", "unknown placeholder"),
        ("{resource_id[0]}", "unknown placeholder"),
        ("{data_type}", "unknown placeholder"),
        ("{resource_id:>10}", "takes neither format"),
        ("{resource_id:{agent_id}}", "takes neither format"),
        ("{resource_id:}{agent_id!r}", "takes neither format"),
        ("doc:{resource_id}{agent_id}", "nothing parts {resource_id} and {agent_id}"),
        ("{resource_id", "expected '}'"),
        ("a}", "Single '}'"),
        ("", "empty"),
    ],
)
def test_a_bad_template_is_refused_when_it_is_declared(template: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        Cascade("document", to=[("embedding", template)])
    assert "document" in str(raised.value)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_cycle_is_refused_and_not_kept(length: int) -> None:
    types = [f"t{number}" for number in range(length)]
    table = CascadeTable([Cascade(a, [(b, "{resource_id}")]) for a, b in pairwise(types)])
    with pytest.raises(ConfigError, match=r"cycle: .*t0"):
        table.register(Cascade(types[-1], [("leaf", "1"), ("t0", "*")]))
    assert [t.data_type for t in expanded(table, Target("t0", 1))] == types


def test_fan_out_is_bounded() -> None:
    many = [("b", f"{{resource_id}}:{number}") for number in range(FAN_OUT_MAX)]
    table = CascadeTable([Cascade("a", many)])
    assert len(expanded(table, Target("a", 1))) == FAN_OUT_MAX + 1
    with pytest.raises(ConfigError, match=f"'a' addresses {2 * FAN_OUT_MAX} targets, at most {FAN_OUT_MAX}.*'b'"):
        table.register(Cascade("b", [("c", "{resource_id}")]))
    with pytest.raises(ConfigError, match="at most"):
        table.register(Cascade("a", [("d", "1")]))
    assert len(expanded(table, Target("a", 1))) == FAN_OUT_MAX + 1
    with pytest.raises(ConfigError, match="at most 3"):
        CascadeTable([Cascade("a", many[:4])], fan_out_max=3)


def test_a_long_chain_is_bounded_too() -> None:
    chain = [Cascade(f"t{number}", [(f"t{number + 1}", "{resource_id}")]) for number in range(FAN_OUT_MAX + 1)]
    table = CascadeTable(chain[:-1])
    with pytest.raises(ConfigError, match="at most"):
        table.register(chain[-1])


types = st.sampled_from("abcdef")


@given(st.lists(st.tuples(types, st.lists(types, min_size=1, max_size=4)), max_size=8))
def test_what_is_registered_always_ends(declared: list[tuple[str, list[str]]]) -> None:
    table = CascadeTable(fan_out_max=20)
    kept = []
    for data_type, to in declared:
        try:
            table.register(Cascade(data_type, [(t, "{resource_id}:" + t) for t in to]))
        except ConfigError:
            continue
        kept.append(data_type)
    for data_type in "abcdef":
        found = expanded(table, Target(data_type, "1"))
        assert len(found) <= 21
        assert (len(found) > 1) is (data_type in kept)


def test_a_whole_scope_with_two_context_ids_has_none() -> None:
    planner = Planner(Keyspace(1), CascadeTable([DOCUMENT]))
    assert len(planner.targets([Target("document", 7, None, None, "c")], "acme").scopes) == 1
    with pytest.raises(InvalidKey, match="at most one"):
        planner.targets([Target("document", 7, "a", None, "c")], "acme")
