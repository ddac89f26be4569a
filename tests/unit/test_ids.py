"""What an id is, by the function that decides it, and by all who must ask it: the fast path, contexts, producers."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from textwrap import dedent
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus import Cache, Cascade, ConfigError, Context, InvalidKey, Policy, Settings, with_context
from cachebus.base.ids import check_part, text_of
from cachebus.cascade import CascadeTable, Target
from cachebus.context import current
from cachebus.helpers import get_with_cache_aside
from cachebus.keys.key import Keyspace
from cachebus.keys.naming import Naming, tag_scopes
from cachebus.policy import PolicyTable, Rules
from cachebus.producers.base import Orders
from cachebus.producers.command import encode
from cachebus.producers.kafka.message import key_of
from tests.support.ids import ARE_NONE, HEX, HUGE, STAND_FOR, Other, Plan, Row, Word

NAMES = [type(one).__name__ for one, _ in STAND_FOR]


@pytest.mark.parametrize(("one", "text"), STAND_FOR, ids=NAMES)
def test_an_id_is_what_it_holds(one: Any, text: str) -> None:
    for found in (text_of("x", one), check_part("x", one)):
        assert found == text
        assert type(found) is str


@pytest.mark.parametrize("one", [*ARE_NONE, None], ids=lambda one: type(one).__name__)
def test_what_is_no_id_is_told_by_its_place(one: Any) -> None:
    with pytest.raises(InvalidKey, match=r"^the place ") as raised:
        check_part("the place", one)
    assert len(str(raised.value)) < 120


@given(st.text() | st.integers() | st.uuids())
def test_a_plain_id_is_its_own_text(one: Any) -> None:
    assert text_of("x", one) == str(one)


# -- the fast path -----------------------------------------------------------------------------------------


def inlined(function: Any) -> tuple[list[str], str]:
    """How a way in makes the name of a hit, and when and how it counts one: the statements up to the look-up, and what
    follows it, with what the ways call differently called alike."""
    module = ast.parse(dedent(inspect.getsource(function)))
    (body,) = (node.body for node in module.body if isinstance(node, ast.AsyncFunctionDef))
    first = next(i for i, node in enumerate(body) if ast.unparse(node) == "name = ''")
    look_up = next(i for i, node in enumerate(body) if "._entries" in ast.unparse(node))
    asked = body[look_up + 1]
    assert isinstance(asked, ast.If)
    assert ast.unparse(asked.test).startswith("entry is not None and ")
    served = asked.body[-1]
    assert isinstance(served, ast.If)
    hit = [ast.unparse(served.test).replace("started", "now"), *map(ast.unparse, served.body[:2])]
    return [ast.unparse(node) for node in body[first:look_up]], "\n".join(hit)


def test_the_three_copies_of_the_hit_are_one() -> None:
    """Written out in each way in, since a function around it costs every hit: then they must not drift apart."""
    first, *others = [inlined(way) for way in (Cache.get, Cache.get_or_load, get_with_cache_aside)]
    assert others == [first, first]
    name, hit = first
    assert len(name) == 2
    assert "type(resource_id) is str" in name[1]
    condition, counted, *_ = hit.split("\n")
    assert condition == "now < entry.fast_until_s and now < group.valid_until_s and (running_loop() is home)"
    assert counted == "group.hits += 1.0"


def test_every_name_of_exact_ids_is_the_keys() -> None:
    """The fast path's name, run as it stands: of exactly str and int the key's own, else none at all."""
    name, _ = inlined(Cache.get)
    made = compile("\n".join(name), "the fast path", "exec")
    fields = ("data_type", "resource_id", "tenant_id", "agent_id", "conversation_id", "collection_id")
    plain: list[Any] = ["doc", "7", "acme", "a", "v", "c"]
    space = Keyspace(1)

    def named(ids: list[Any]) -> str:
        scope = dict(zip(fields, ids, strict=True))
        exec(made, scope)
        return str(scope["name"])

    for at, field in enumerate(fields):
        for one in (*(one for one, _ in STAND_FOR), *ARE_NONE, None, 0, -5, "x"):
            ids = [*plain[:at], one, *plain[at + 1 :]]
            exact = type(one) is str or (type(one) is int and field != "data_type") or (one is None and at > 2)
            try:
                key = space.key(*ids)
            except InvalidKey:
                assert named(ids) == "" or exact, "what is joined without a look can only miss"
            else:
                assert named(ids) == (key.l1 if exact else "")
    assert named(["doc", 7, 0, None, None, None]) == space.key("doc", 7, 0).l1
    assert named(["doc", HUGE, 0, None, None, None]) == named(["doc", 7, "", None, None, None]) == ""


def test_only_a_name_of_exact_ids_is_looked_up_among_the_keys_known() -> None:
    naming = Naming(Keyspace(1))
    key = naming.key("doc", "1", "acme")
    assert naming.key("doc", "1", "acme", name=key.l1) is key
    other = naming.key("doc", "1", Other("acme"))
    assert (other.l1, other is key) == (key.l1, False)
    with pytest.raises(InvalidKey):
        naming.key("doc", "1", Row("acme"))  # type: ignore[arg-type]


# -- what counts ids by what they are ------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "text"), STAND_FOR, ids=NAMES)
def test_contexts_count_tenants_by_what_they_are(one: Any, text: str) -> None:
    with Context(text, "a7"), Context(one) as same:
        assert same.agent_id == "a7"
    with Context("other", "a7"), Context(one) as another:
        assert another.agent_id is None
    with Context("Plan.ACME", "a7"), Context(Plan.ACME) as another:
        assert another.agent_id is None

    @with_context(agent=True)
    def inside(tenant_id: Any, agent_id: Any = None) -> Any:
        return current()

    around = Context(text, text)
    with around:
        assert inside(one) is around
        assert inside(one, one) is around
    with Context("other", "a7"), pytest.raises(InvalidKey, match="contradicts"):
        inside(one)


@pytest.mark.parametrize("one", ARE_NONE, ids=lambda one: type(one).__name__)
def test_what_is_no_id_makes_no_context(one: Any) -> None:
    for name in ("tenant_id", "agent_id", "conversation_id", "collection_id"):
        with pytest.raises(InvalidKey, match=f"^{name} "):
            Context(**{name: one})
    for validate in (True, False):

        @with_context(agent=True, conversation=True, collection=True, validate_tenant=validate)
        def inside(
            tenant_id: Any = "acme", agent_id: Any = 1, conversation_id: Any = 2, collection_id: Any = 3
        ) -> None:
            raise AssertionError("it is not run")

        for name in ("tenant_id", "agent_id", "conversation_id", "collection_id"):
            with pytest.raises(InvalidKey, match=f"^{name} of .*inside"):
                inside(**{name: one})


ORDERS: dict[str, Any] = {
    "invalidate": lambda o, x: o.invalidate(x, x, x, "exact", x, None, x),
    "all contexts": lambda o, x: o.invalidate("doc", x, x, "all", None, None, None),
    "scope": lambda o, x: o.scope(x, x, None, x, None),
    "tags": lambda o, x: o.tags([x, "t"], x),
    "coordinated": lambda o, x: o.coordinated(x, x, x, [{"data_type": x, "resource_id": x, "agent_id": x}], x, x, None),
}
CASCADES = [Cascade("acme", to=[(Plan.ACME.value + "s", "of:{resource_id}:{agent_id}")])]


@pytest.mark.parametrize("verb", ORDERS)
def test_a_command_has_ids_in_text(verb: str) -> None:
    """And so the same JSON, however they were given: a worker knows nothing of our classes."""
    orders = Orders(4, CASCADES)
    for one, text in STAND_FOR:
        order, plain = ORDERS[verb](orders, one), ORDERS[verb](orders, text)
        assert encode(order.command()) == encode(plain.command())
        assert '"' + text + '"' in json.dumps(json.loads(encode(order.command())))
        assert [key.l1 for key in order.plan.keys] == [key.l1 for key in plain.plan.keys]
        assert (order.plan.scopes, order.plan.targets) == (plain.plan.scopes, plain.plan.targets)
        assert key_of(order.command().tenant_id) == text.encode()
    for one in ARE_NONE:
        with pytest.raises(InvalidKey):
            ORDERS[verb](orders, one)


def test_a_kafka_key_is_the_tenants_text() -> None:
    assert {key_of(one) for one in (Plan.ACME, Word.ACME, Other("acme"))} == {b"acme"}
    assert key_of(UUID(HEX)) == HEX.encode()
    assert key_of(None) == b""


def test_targets_are_told_apart_by_what_they_are() -> None:
    table = CascadeTable([Cascade("doc", [("page", "p:{resource_id}")])])
    targets = [Target("doc", 7, Plan.ACME), Target(Other("doc"), "7", "acme")]
    assert table.expand(targets, "acme") == [Target("doc", "7", "acme"), Target("page", "p:7", "acme")]
    for one in (*ARE_NONE[:-6], None):
        with pytest.raises(InvalidKey):
            table.expand([Target("doc", "7"), Target("doc", one)], "acme")


def test_declared_types_count_by_what_they_are() -> None:
    class Kind(Other):
        __slots__ = ()

    cascade = Cascade(Kind("doc"), [(Kind("page"), "{resource_id}")])
    assert CascadeTable([cascade]).expand([Target("doc", 1)], "acme")[1] == Target("page", "1")
    assert (cascade.data_type, cascade.to[0][0]) == ("doc", "page")
    table = PolicyTable({Kind("doc"): Policy(ttl_s=7), Plan.ACME: Policy(ttl_s=8)})
    assert (table.rules("doc").ttl_s, table.rules("acme").ttl_s) == (7, 8)
    assert (
        PolicyTable(Settings(url="memory://x", policies={Plan.ACME: Policy(ttl_s=8)}).policies).rules("acme").ttl_s == 8
    )
    for one in (*ARE_NONE, None):
        with pytest.raises(ConfigError, match="data_type"):
            Rules(one, Policy())
        with pytest.raises(ConfigError):
            Cascade(one, [("page", "x")])
        with pytest.raises(ConfigError):
            Cascade("doc", [(one, "x")])


def test_tags_count_by_what_they_are() -> None:
    key, rules = Keyspace(1).key("doc", 1, "acme"), Rules("doc", Policy(tags=("acme", "doc:{resource_id}")))
    found = tag_scopes(key, [Plan.ACME, Other("acme"), "acme", Other("doc:1")], rules)
    assert found == ["G\x1facme\x1facme", "G\x1facme\x1fdoc:1"]
    for one in (*ARE_NONE, None):
        with pytest.raises(InvalidKey):
            tag_scopes(key, ["t", 1, one], rules)  # type: ignore[list-item]


@pytest.fixture(params=[640, 0])
def digits(request: pytest.FixtureRequest) -> Iterator[None]:
    """How many digits Python writes, at least and without a limit."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(request.param)
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("digits")
async def test_a_huge_int_is_no_id_however_many_digits_python_writes() -> None:
    async with Cache.open("memory://huge") as cache:
        await cache.set("doc", 10**512 - 1, 1, "acme")
        assert await cache.get("doc", 10**512 - 1, "acme") == 1
        for one in (10**512, -(10**600), 10**1000):
            for ids in (("doc", one, "acme"), ("doc", 1, one), ("doc", 1, 1, one), (one, 1, 1)):
                with pytest.raises(InvalidKey, match="too long"):
                    await cache.get(*ids)
