"""Names: no two different inputs share one, and what is no part of a key is told by its name."""

from __future__ import annotations

from enum import Enum, IntEnum, StrEnum
from hashlib import sha1
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.base.ids import PART_MAX_BYTES
from cachebus.errors import InvalidKey, TenantRequired
from cachebus.keys.key import (
    ALL_TENANTS,
    KEY_MAX_BYTES,
    Keyspace,
    bucket_of,
    bucket_of_scope,
    encoded,
    everywhere,
    guard_name,
    scopes_of,
    tag_scope,
)

space = Keyspace(64)
NAMES = ("data_type", "resource_id", "tenant_id", "agent_id", "conversation_id", "collection_id")

# Few letters, the ones that names are built of among them, so that inputs which could collide are found.
tricky = st.text(st.sampled_from("a7:%*2A5é agentconvcoll"), min_size=1, max_size=8)
anything = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
words = st.sampled_from(["agent", "conv", "coll", "a", "a:b", "a%3Ab", "%", "*", ":"])
texts = tricky | words | anything
parts = texts | st.integers()
maybe = st.none() | parts
inputs = st.tuples(parts, parts, parts, maybe, maybe, maybe)
scopes = st.tuples(parts, maybe, st.sampled_from([None, "agent_id", "conversation_id", "collection_id"]), parts)


def as_text(given_parts: tuple[Any, ...]) -> tuple[str | None, ...]:
    """An int and its digits are one and the same part."""
    return tuple(None if part is None else str(part) for part in given_parts)


@given(inputs, inputs)
def test_no_two_inputs_share_a_name(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    one, other = space.key(*a), space.key(*b)
    same = as_text(a) == as_text(b)
    assert (one.l1 == other.l1) is same
    assert (one.l2 == other.l2) is same


@given(texts, texts, texts, st.lists(texts, max_size=3))
def test_the_same_parts_in_other_places_are_another_key(tenant: str, kind: str, rid: str, ids: list[str]) -> None:
    """Every way to give these context ids, and the resource id glued together from what the others are made of."""
    made = [space.key(kind, rid, tenant, **dict(zip(order, ids, strict=False))) for order in (NAMES[3:], NAMES[:2:-1])]
    made += [space.key(kind, ":".join([*ids, rid]), tenant), space.key(f"{kind}:{rid}", rid, tenant)]
    made += [space.key(kind, f"agent:{one}:{rid}", tenant) for one in ids]
    distinct = {(k.family.tenant, k.family.data_type, k.resource_id, k.contexts) for k in made}
    assert len({k.l1 for k in made}) == len({k.l2 for k in made}) == len(distinct)


@given(inputs)
def test_names_can_be_told_from_the_l1_name_alone(given_parts: tuple[Any, ...]) -> None:
    key = space.key(*given_parts)
    assert scopes_of(key.l1) == (key.family.bucket, key.scopes)
    assert len(set(key.scopes)) == len(key.scopes) == 5 + 2 * sum(part is not None for part in given_parts[3:])
    assert sum(map(key.l1.count, "\x1e\x1f")) == 5


@given(inputs | st.tuples(st.just("system"), parts, st.none(), maybe, maybe, maybe))
def test_a_key_can_be_made_again_from_its_l1_name(given_parts: tuple[Any, ...]) -> None:
    key = space.key(*given_parts)
    again = space.named(key.l1)
    assert (again.l1, again.l2, again.shard, again.scopes) == (key.l1, key.l2, key.shard, key.scopes)
    assert (again.resource_id, again.contexts) == (key.resource_id, key.contexts)
    assert (again.family.tenant, again.family.data_type) == (key.family.tenant, key.family.data_type)
    assert [level.l1 for level in again.levels()] == [level.l1 for level in key.levels()]


@given(inputs, scopes)
def test_a_key_lies_in_exactly_the_scopes_of_its_parts(given_parts: tuple[Any, ...], scope: tuple[Any, ...]) -> None:
    tenant, data_type, context, context_id = scope
    key = space.key(*given_parts)
    narrowed = {} if context is None else {context: context_id}
    shard, name = space.scope(tenant, data_type, **narrowed)
    told = dict(zip(NAMES, as_text(given_parts), strict=True))
    lies = told["tenant_id"] == str(tenant) and (data_type is None or told["data_type"] == str(data_type))
    lies = lies and (context is None or told[context] == str(context_id))
    assert (name in key.scopes) is lies
    assert not lies or shard == key.shard


@given(scopes, scopes)
def test_no_two_scopes_share_a_name(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    def made(tenant: Any, data_type: Any, context: str | None, context_id: Any) -> tuple[str, tuple[Any, ...]]:
        narrowed = {} if context is None else {context: context_id}
        means = (*as_text((tenant, data_type)), context, None if context is None else str(context_id))
        return space.scope(tenant, data_type, **narrowed)[1], means

    (one, meaning), (other, another) = made(*a), made(*b)
    assert (one == other) is (meaning == another)


@given(texts, texts, texts, texts)
def test_tags_are_a_tenants_own_and_no_scopes(tenant: str, tag: str, other_tenant: str, other: str) -> None:
    shard, scopes = space.tags(tenant, [tag, other])
    assert shard == space.key("any", 1, tenant).shard
    assert scopes == [tag_scope(tenant, tag), tag_scope(tenant, other)]
    assert (tag_scope(tenant, tag) == tag_scope(other_tenant, other)) is ((tenant, tag) == (other_tenant, other))
    assert not set(scopes) & set(space.key(tag, other, tenant, tag, other, tag).scopes)


@given(texts, texts)
def test_encoding_is_reversible(part: str, other: str) -> None:
    assert (encoded(part) == encoded(other)) is (part == other)
    assert not set(encoded(part)) & {":", "*"}


@given(inputs, st.integers(1, 64))
def test_all_of_a_tenant_lies_in_one_shard(given_parts: tuple[Any, ...], shards: int) -> None:
    cut = Keyspace(shards)
    tenant = given_parts[2]
    assert cut.key(*given_parts).shard == crc32(str(tenant).encode()) % shards
    assert cut.scope(tenant)[0] == cut.tags(tenant, ["t"])[0] == cut.key(*given_parts).shard


BAD: dict[str, tuple[object, str]] = {
    "empty": ("", "empty"),
    "true": (True, "bool"),
    "false": (False, "bool"),
    "float": (1.5, "float"),
    "bytes": (b"bytes", "bytes"),
    "a list": (["unhashable"], "list"),
    "a dict": ({}, "dict"),
    "an object": (object(), "object"),
    "too long": ("x" * (PART_MAX_BYTES + 1), "too long"),
    "too many bytes": ("é" * (PART_MAX_BYTES // 2 + 1), "too long"),
    "an int too long": (10**PART_MAX_BYTES, "too long"),
    "a negative int too long": (-(10 ** (PART_MAX_BYTES - 1)), "too long"),
    "an int beyond what Python prints": (10**5_000, "too long"),
    **{f"control {ord(c):02x}": (f"a{c}b", "control character") for c in "\x00\t\n\r\x1b\x1e\x1f\x7f\x80\x85\x9f"},
    "control at the end": ("a\n", "control character"),
    "lone surrogate": ("a\ud800", "surrogate"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("part", "why"), BAD.values(), ids=BAD.keys())
def test_a_bad_part_is_told_by_its_name(name: str, part: object, why: str) -> None:
    good: dict[str, object] = {"data_type": "doc", "resource_id": 7, "tenant_id": "acme"}
    for _ in range(2):  # also when the family is known
        space.key(**good)
        with pytest.raises(InvalidKey, match=why) as raised:
            space.key(**{**good, name: part})
        assert name in str(raised.value)
        assert len(str(raised.value)) < 120, "and the message is no place for a whole value"
    if name != "resource_id":
        with pytest.raises(InvalidKey, match=name):
            space.scope(**{"tenant_id": "acme", name: part})


@pytest.mark.parametrize(("part", "why"), BAD.values(), ids=BAD.keys())
def test_a_bad_tag_is_told(part: Any, why: str) -> None:
    with pytest.raises(InvalidKey, match=f"tag.*{why}"):
        space.tags("acme", ["good", part])


@pytest.mark.parametrize(
    "part", ["x" * PART_MAX_BYTES, "é" * (PART_MAX_BYTES // 2), 10**PART_MAX_BYTES - 1, -7, 0, " "]
)
def test_parts_up_to_the_limit_are_taken(part: Any) -> None:
    assert space.key("doc", part, "acme").resource_id == str(part)


def test_a_key_has_a_limit_once_encoded() -> None:
    assert len(space.key("d", "x" * 512, "t" * 500).l2) == 1015
    for kind, rid, tenant in (("d", ":" * 400, "t"), ("d", "x" * 512, "t" * 512), ("é" * 250, "é" * 250, "é" * 250)):
        with pytest.raises(InvalidKey, match="resource_id makes the key too long"):
            space.key(kind, rid, tenant)


@given(st.lists(st.integers(1, 128), min_size=4, max_size=4), st.sampled_from("aé字🦆:"))
def test_no_key_is_longer_than_its_limit(sizes: list[int], letter: str) -> None:
    kind, rid, tenant, agent = (letter * size for size in sizes)
    size_bytes = sum(len(encoded(part).encode()) for part in (kind, rid, tenant, agent)) + len("::agent::")
    try:
        key = space.key(kind, rid, tenant, agent)
    except InvalidKey:
        assert size_bytes > KEY_MAX_BYTES
    else:
        assert len(key.l2.encode()) == size_bytes <= KEY_MAX_BYTES


class Kind(str, Enum):  # noqa: UP042 (services have these: their format() and their text differ)
    DOC = "doc"


class Word(StrEnum):
    DOC = "doc"


class Odd(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "odd"

    __repr__ = __format__ = __str__  # type: ignore[assignment]


class Number(int, Enum):
    SEVEN = 7


class Whole(IntEnum):
    SEVEN = 7


@pytest.mark.parametrize("kind", [Kind.DOC, Word.DOC, Odd("doc")], ids=["Enum", "StrEnum", "own"])
@pytest.mark.parametrize("number", [Number.SEVEN, Whole.SEVEN, "7", Odd("7")], ids=["Enum", "IntEnum", "str", "own"])
def test_subclasses_stand_for_their_plain_value(kind: Any, number: Any) -> None:
    """Else one service would invalidate `doc` and another hold `Kind.DOC`."""
    fresh = Keyspace(4)
    odd, plain = fresh.key(kind, number, kind, kind, number, kind), fresh.key("doc", 7, "doc", "doc", 7, "doc")
    assert (odd.l1, odd.l2, odd.scopes) == (plain.l1, plain.l2, plain.scopes)
    assert fresh.scope(kind, kind, agent_id=number) == fresh.scope("doc", "doc", agent_id=7)
    assert fresh.tags(kind, [kind]) == fresh.tags("doc", ["doc"])
    assert type(odd.family.data_type) is type(odd.family.tenant) is type(odd.resource_id) is str


def test_a_tenant_is_required_but_for_system() -> None:
    with pytest.raises(TenantRequired, match="'doc'"):
        space.key("doc", 7, None)
    with pytest.raises(TenantRequired):
        space.scope(None, "doc")
    with pytest.raises(TenantRequired):
        space.scope(None)
    with pytest.raises(TenantRequired):
        space.scope(None, agent_id="a7")
    none, acme = space.key("system", "flags", None), space.key("system", "flags", "acme")
    assert none.family.tenant == ""
    assert none.l1 != acme.l1
    assert none.l2 != acme.l2
    assert space.scope(None, "system")[1] in none.scopes
    assert space.scope(None, "system")[1] not in acme.scopes


def test_a_family_is_remembered_by_what_it_is() -> None:
    few = Keyspace(1, remembered=2)
    for tenant in ("a", "b", "c", "a", None, "None", "a"):
        data_type = "system" if tenant is None else "doc"
        assert few.family(tenant, data_type).tenant == (tenant or "")
    assert few.family("7", "doc") is few.family("7", "doc")
    assert few.family(7, "doc").tenant == "7"


def test_levels_drop_collection_then_conversation_then_agent() -> None:
    key = space.key("doc", 7, "acme", "a", "v", "c")
    assert [level.contexts for level in key.levels()] == [
        ("a", "v", "c"),
        ("a", "v", None),
        ("a", None, None),
        (None, None, None),
    ]
    assert [level.l1 for level in space.key("doc", 7, "acme", None, "v").levels()] == [
        space.key("doc", 7, "acme", None, "v").l1,
        space.key("doc", 7, "acme").l1,
    ]
    assert len(space.key("doc", 7, "acme").levels()) == 1


@given(inputs)
def test_every_level_is_the_key_that_its_contexts_make(given_parts: tuple[Any, ...]) -> None:
    kind, rid, tenant = given_parts[:3]
    for level in space.key(*given_parts).levels():
        made = space.key(kind, rid, tenant, *level.contexts)
        assert (made.l1, made.l2, made.shard) == (level.l1, level.l2, level.shard)


@pytest.mark.parametrize("given_ids", [{"agent_id", "conversation_id"}, {"agent_id", "collection_id"}, set(NAMES[3:])])
def test_a_scope_takes_one_context_id(given_ids: set[str]) -> None:
    with pytest.raises(InvalidKey, match="at most one"):
        space.scope("acme", "doc", **dict.fromkeys(given_ids, "x"))


def test_everywhere_is_the_id_in_every_context() -> None:
    plain, deep = space.key("doc", 7, "acme"), space.key("doc", "7", "acme", "a")
    name = everywhere(plain)
    assert name == everywhere(deep) == deep.everywhere
    assert plain.everywhere == "", "without contexts there is nothing beside the key itself"
    assert name in space.key("doc", 7, "acme", None, None, "c").scopes
    assert name not in space.key("doc", 8, "acme").scopes
    assert name not in space.key("other", 7, "acme").scopes


@given(inputs)
def test_a_tenants_marks_lie_in_its_bucket_and_those_of_all_tenants_in_one_of_their_own(
    given_parts: tuple[Any, ...],
) -> None:
    key = space.key(*given_parts)
    bucket = key.family.bucket
    assert bucket == bucket_of(key.family.tenant) == sha1(key.family.tenant.encode()).hexdigest()[:2]
    assert [bucket_of_scope(name) for name in key.scopes[:2]] == [ALL_TENANTS] * 2
    assert {bucket_of_scope(name) for name in key.scopes[2:]} == {bucket}
    assert {bucket_of_scope(name) for name in space.tags(key.family.tenant or "x", ["a", "b"])[1]} == {
        bucket_of(key.family.tenant or "x")
    }


@given(inputs, inputs)
def test_a_scope_of_all_tenants_holds_a_type_and_nothing_else(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    one, other = space.key(*a), space.key(*b)
    everything, data_type = one.scopes[:2]
    assert everything in other.scopes
    assert (data_type in other.scopes) is (one.family.data_type == other.family.data_type)


def test_buckets_are_spread() -> None:
    assert len({bucket_of(f"tenant-{i}") for i in range(10_000)}) == 256


@given(inputs)
def test_a_guard_of_a_key_is_no_scope_and_no_tag(given_parts: tuple[Any, ...]) -> None:
    key = space.key(*given_parts)
    assert guard_name(key) == f"K\x1f{key.l1}"
    assert guard_name(key) not in key.scopes


def test_tags_need_a_tenant() -> None:
    """A forgotten tenant would otherwise mark nothing that anybody has, and say nothing."""
    with pytest.raises(TenantRequired, match="tags belong to a tenant"):
        Keyspace(1).tags(None, ["plan"])
