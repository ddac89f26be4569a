"""Commands: what producers hand on is what workers apply, and what is no command is told, field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus import Cascade, Context, InvalidKey, TenantRequired
from cachebus.base.choices import ContextMatch
from cachebus.keys.plan import Plan, joined
from cachebus.producers.base import Order, Orders, receipt_for_command
from cachebus.producers.command import InvalidCommand, Resource, encode, parse

CASCADES = [Cascade("document", to=[("embedding", "doc:{resource_id}"), ("query_result", "*")])]
ORDERS: dict[str, Any] = {
    "key": lambda o: o.invalidate("config", "x", "acme", "exact", None, None, None),
    "number": lambda o: o.invalidate("config", 7, 8, "exact", None, None, None),
    "context": lambda o: o.invalidate("config", "x", "acme", "exact", "a", "c", None),
    "contexts": lambda o: o.invalidate("config", "x", "acme", "all", None, None, None),
    "system": lambda o: o.invalidate("system", "x", None, "exact", None, None, None),
    "star": lambda o: o.invalidate("config", "*", "acme", "exact", None, None, None),
    "cascade": lambda o: o.invalidate("document", 7, "acme", "exact", "a", None, None),
    "cascade, all contexts": lambda o: o.invalidate("document", 7, "acme", "all", None, None, None),
    "tenant": lambda o: o.scope("acme", None, None, None, None),
    "type": lambda o: o.scope("acme", "config", None, None, None),
    "agent": lambda o: o.scope("acme", "config", "a", None, None),
    "tags": lambda o: o.tags(["t", "ü:*"], "acme"),
    "coordinated": lambda o: o.coordinated("acme", "config", "x", None, None, None, None),
    "related": lambda o: o.coordinated(
        "acme",
        "page",
        "p",
        [{"data_type": "config"}, {"data_type": "e", "resource_id": 1, "agent_id": None}],
        "a",
        None,
        None,
    ),
    "whole": lambda o: o.coordinated(
        "acme", "page", "*", [{"data_type": "document", "resource_id": "d"}], None, None, None
    ),
}


def addressed(plan: Plan) -> tuple[int, set[str], set[str]]:
    return plan.shard, {key.l1 for key in plan.keys}, set(plan.scopes)


@pytest.mark.parametrize("verb", ORDERS)
def test_a_command_addresses_what_its_verb_did_also_where_no_cascade_is_known(verb: str) -> None:
    order: Order = ORDERS[verb](Orders(4, CASCADES))
    read_back = parse(encode(order.command()))
    assert addressed(read_back.plan(Orders(4).planner)) == addressed(order.plan)
    assert addressed(read_back.plan(Orders(4, CASCADES).planner)) == addressed(order.plan)


@pytest.mark.parametrize(("data_type", "tenant"), [("config", "acme"), ("document", "acme"), ("system", None)])
@pytest.mark.parametrize("contexts", ["exact", "all"])
def test_a_resource_addresses_what_the_command_does_that_it_is_handed_on_as(
    data_type: str, tenant: str | None, contexts: ContextMatch
) -> None:
    resource, planner = Resource(data_type, "7", tenant, contexts), Orders(4, CASCADES).planner
    assert addressed(resource.plan(planner)) == addressed(parse(encode(resource)).plan(planner))


def test_a_command_follows_the_cascades_of_the_worker_too() -> None:
    by_hand = parse('{"op": "invalidate", "tenant_id": "acme", "data_type": "document", "resource_id": 7}')
    assert addressed(by_hand.plan(Orders(4, CASCADES).planner)) == addressed(
        Orders(4, CASCADES).invalidate("document", 7, "acme", "exact", None, None, None).plan
    )


def test_the_json_has_only_what_was_said() -> None:
    order = Orders(1).invalidate("config", "x", "acme", "exact", None, None, None)
    assert json.loads(encode(order.command())) == {
        "op": "invalidate",
        "tenant_id": "acme",
        "data_type": "config",
        "resource_id": "x",
        "contexts": "exact",
        "related": [],
    }


def test_the_ambient_tenant_is_written_down() -> None:
    with Context(tenant_id="acme"):
        order = Orders(1).tags(["t"], None)
    assert json.loads(encode(order.command())) == {"op": "tags", "tenant_id": "acme", "tags": ["t"]}


NO_COMMANDS = {
    b"": "Invalid JSON",
    b"\xff": "Invalid JSON",
    b"[]": "should be an object",
    b"{}": "Unable to extract tag using discriminator 'op'",
    b'{"op": "drop"}': "op: must be one of 'invalidate', 'scope', 'all_tenants', 'tags', 'coordinated'",
    b'{"op": "invalidat"}': "op: must be one of 'invalidate', 'scope', 'all_tenants', 'tags', 'coordinated', "
    "did you mean 'invalidate'?",
    b'{"op": "invalidate", "data_type": "t"}': "resource_id: Field required",
    b'{"op": "invalidate", "data_type": "t", "resource_id": true}': "resource_id",
    b'{"op": "invalidate", "data_type": "t", "resource_id": 1.5}': "resource_id",
    b'{"op": "invalidate", "data_type": "t", "resource_id": 1, "resorce": 2}': "resorce: Extra inputs",
    b'{"op": "invalidate", "data_type": "t", "resource_id": 1, "contexts": "some"}': "contexts: Input should be",
    b'{"op": "invalidate", "data_type": "t", "resource_id": 1, "v": 2}': "v: Input should be 1",
    b'{"op": "tags", "tenant_id": "acme", "tags": []}': "tags: Tuple should have at least 1",
    b'{"op": "tags", "tenant_id": "acme", "tags": "t"}': "tags: Input should be a valid",
    b'{"op": "coordinated", "data_type": "t", "resource_id": 1, '
    b'"related": [{"resource_id": 1}]}': r"related\.0\.data_type: Field required",
}


@pytest.mark.parametrize("data", NO_COMMANDS)
def test_what_is_no_command_is_told_by_its_field(data: bytes) -> None:
    with pytest.raises(InvalidCommand, match=NO_COMMANDS[data]):
        parse(data)


def test_no_value_is_shown() -> None:
    with pytest.raises(InvalidCommand) as told:
        parse(
            b'{"op": "invalidate", "data_type": "t", "resource_id": ["s3cret"], "s3cret": 1}'.replace(
                b', "s3cret": 1', b""
            )
        )
    assert "s3cret" not in str(told.value)
    with pytest.raises(InvalidCommand) as told:
        parse(b'{"op": "s3cret"}')
    assert "s3cret" not in str(told.value)


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["op", "tags", "related", "x"]), inner)
        ),
        max_leaves=9,
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_the_bytes_are_there_is_one_error(data: bytes) -> None:
    with pytest.raises(InvalidCommand):
        parse(data)


def test_what_can_be_no_key_is_refused_by_the_plan() -> None:
    planner = Orders(1).planner
    with pytest.raises(TenantRequired):
        parse('{"op": "invalidate", "data_type": "t", "resource_id": 1}').plan(planner)
    with pytest.raises(InvalidKey, match="resource_id"):
        parse('{"op": "invalidate", "tenant_id": "a", "data_type": "t", "resource_id": ""}').plan(planner)
    with pytest.raises(InvalidKey):
        parse('{"op": "scope", "tenant_id": "a", "agent_id": "x", "collection_id": "y"}').plan(planner)


def test_plans_are_joined_by_shard() -> None:
    orders = Orders(4)
    plans = [
        orders.invalidate("config", at % 5, f"tenant-{at % 7}", "exact", None, None, None).plan for at in range(70)
    ] + [orders.tags(["t"], f"tenant-{at}").plan for at in range(7)]
    found = joined(plans)
    assert len(found) == len({plan.shard for plan in plans})
    assert sum(len(plan.keys) for plan in found) == 35
    assert sum(len(plan.scopes) for plan in found) == 7
    for plan in found:
        assert {key.shard for key in plan.keys} == {plan.shard}


def test_many_are_joined_into_steps_that_do_not_hold_the_server_for_long() -> None:
    orders = Orders(1)
    found = joined(orders.invalidate("config", at, "acme", "exact", None, None, None).plan for at in range(1201))
    assert [len(plan.keys) for plan in found] == [500, 500, 201]
    assert sum(plan.targets.get("config", 0) for plan in found) == 1201


def test_nobody_waits_for_what_others_apply() -> None:
    plan = Orders(1).tags(["t"], "acme").plan
    assert receipt_for_command(plan, None).status == "pending"
    with pytest.raises(ValueError, match="others do here"):
        receipt_for_command(plan, "nodes")
    with pytest.raises(ValueError, match="wait"):
        receipt_for_command(plan, "all")
