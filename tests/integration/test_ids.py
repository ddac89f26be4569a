"""What is an id is one everywhere, and what is none is refused everywhere: cold as warm, by whichever way it comes in.

The hit path joins names of ids without a look at them, so what is no id has to be tried where a careless join of it
would meet an entry, and on a node that has that entry in memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import product
from typing import Any
from uuid import UUID, uuid4

import pytest

from cachebus import (
    Cache,
    ConfigError,
    Context,
    InvalidKey,
    Policy,
    TenantRequired,
    cached,
    get_counter,
    get_with_cache_aside,
    increment_counter,
    invalidate_coordinated,
    invalidate_resource_cache,
    lifespan,
    track_cache_metrics,
)
from cachebus.cascade import Target
from cachebus.producers import DirectProducer
from tests.support.caches import nodes, quick, rules_of
from tests.support.ids import ARE_NONE, HEX, STAND_FOR, Lazy, Other, Plan, as_written

KEY = {
    "data_type": "doc",
    "resource_id": "1",
    "tenant_id": "acme",
    "agent_id": "a",
    "conversation_id": "v",
    "collection_id": "c",
}
IDS = tuple(KEY)
CONTEXTS = IDS[3:]
Ids = dict[str, Any]
Verb = Callable[[Cache, Ids], Awaitable[Any]]


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """A store inside the process, and a server."""
    return f"memory://{uuid4().hex}" if request.param == "memory" else request.getfixturevalue("redis_url")


@pytest.fixture
async def cache(url: str) -> AsyncIterator[Cache]:
    """The process-wide cache, open."""
    async with lifespan(quick(url, staleness_bound_s=20.0, policies={"copied": Policy(copy=True)})) as opened:
        yield opened


async def _load() -> str:
    return "loaded"


def _of(ids: Ids, *names: str) -> Ids:
    return {name: ids[name] for name in names}


def _target(ids: Ids) -> tuple[Any, ...]:
    return tuple(ids[name] for name in (*IDS[:2], *CONTEXTS))


async def _guarded(cache: Cache, ids: Ids) -> None:
    async with cache.write_guard([_target(ids)], ids["tenant_id"], timeout_s=30.0, db_timeout_s=0.1):
        pass


async def _guarded_scope(cache: Cache, ids: Ids) -> None:
    async with cache.write_guard(
        scopes=[_of(ids, "data_type", "agent_id")], tenant_id=ids["tenant_id"], timeout_s=30.0, db_timeout_s=0.1
    ):
        pass


async def _decorated(cache: Cache, ids: Ids) -> Any:
    templates: Any = {name: f"{{{name}}}" for name in IDS[1:]}

    async def load(resource_id: Any, tenant_id: Any, agent_id: Any, conversation_id: Any, collection_id: Any) -> str:
        return "loaded"

    try:
        declared = cached(ids["data_type"], **templates, cache=cache)(load)
    except ConfigError as error:  # a data type is refused when it is declared
        raise InvalidKey(str(error)) from error
    return await declared(**_of(ids, *IDS[1:]))


async def _in_context(cache: Cache, ids: Ids) -> Any:
    with Context(**_of(ids, "tenant_id", *CONTEXTS)):
        return await cache.get(ids["data_type"], ids["resource_id"], **_of(ids, *CONTEXTS))


async def _value_of(aside: Awaitable[tuple[Any, Any]]) -> Any:
    value, metrics = await aside
    assert metrics["error"] is None
    return value


READS: dict[str, Verb] = {
    "get": lambda cache, ids: cache.get(**ids),
    "get in a context": _in_context,
    "search": lambda cache, ids: cache.get(**ids, search_hierarchy=True),
    "get past L1": lambda cache, ids: cache.get(**ids, use_memory=False),
    "get_or_load": lambda cache, ids: cache.get_or_load(**ids, loader=_load),
    "search or load": lambda cache, ids: cache.get_or_load(**ids, loader=_load, search_hierarchy=True),
    "cache-aside": lambda cache, ids: _value_of(get_with_cache_aside(**ids, fetch_from_db_func=_load)),
    "cache-aside, deserialized": lambda cache, ids: _value_of(
        get_with_cache_aside(**ids, fetch_from_db_func=_load, deserializer=lambda value: value)
    ),
    "cached": _decorated,
}
"""What gives the value of the key with these ids."""
WRITES: dict[str, Verb] = {
    "set": lambda cache, ids: cache.set(**ids, value=1),
    "add": lambda cache, ids: cache.add(**ids, value=1),
    "invalidate": lambda cache, ids: cache.invalidate(**ids),
    "delete": lambda cache, ids: cache.delete(**ids),
    "targets": lambda cache, ids: cache.invalidate_targets([Target(*_target(ids))], ids["tenant_id"]),
    "a later target": lambda cache, ids: cache.invalidate_targets(
        [Target("doc", "2"), Target(*_target(ids))], ids["tenant_id"]
    ),
    "a scope": lambda cache, ids: cache.invalidate_scope(**_of(ids, "tenant_id", "data_type", "collection_id")),
    "tags": lambda cache, ids: cache.invalidate_tags([ids["resource_id"]], tenant_id=ids["tenant_id"]),
    "set with tags": lambda cache, ids: cache.set("doc", "1", 1, ids["tenant_id"], tags=["t", ids["resource_id"]]),
    "a guard": _guarded,
    "a guard of a scope": _guarded_scope,
    "coordinated": lambda cache, ids: invalidate_coordinated(
        ids["tenant_id"], ids["data_type"], ids["resource_id"], **_of(ids, *CONTEXTS)
    ),
    "related": lambda cache, ids: invalidate_coordinated(
        ids["tenant_id"], "page", "p", [_of(ids, "data_type", "resource_id", *CONTEXTS)]
    ),
    "a resource": lambda cache, ids: invalidate_resource_cache(**ids),
    "counting": lambda cache, ids: increment_counter(ids["data_type"], **_of(ids, *IDS[1:])),
    "a count": lambda cache, ids: get_counter(ids["data_type"], **_of(ids, *IDS[1:])),
    "own metrics": lambda cache, ids: track_cache_metrics(ids["data_type"], ids["tenant_id"], ids["resource_id"]),
}
TAKES = {
    "a scope": ("tenant_id", "data_type", "collection_id"),
    "tags": ("resource_id", "tenant_id"),
    "set with tags": ("resource_id", "tenant_id"),
    "a guard of a scope": ("tenant_id", "data_type", "agent_id"),
    "own metrics": ("data_type", "tenant_id", "resource_id"),
}
NONE_MEANS_ALL = {("a scope", "data_type"), ("counting", "resource_id"), ("a count", "resource_id")}


def none_at(verb: str, place: str) -> list[Any]:
    """What is no id there: None, too, unless it means that none is given."""
    is_one = place in CONTEXTS or place == "tenant_id" or (verb, place) in NONE_MEANS_ALL
    return ARE_NONE if is_one else [*ARE_NONE, None]


async def refused(call: Awaitable[Any]) -> bool:
    """Whether it is, as what is no id."""
    try:
        await call
    except InvalidKey:
        return True
    return False


@pytest.mark.parametrize("verb", [*READS, *WRITES])
async def test_what_is_no_id_is_refused_warm_as_cold(cache: Cache, verb: str) -> None:
    call = {**READS, **WRITES}[verb]
    for place in TAKES.get(verb, IDS):
        for one in none_at(verb, place):
            case, ids = (place, type(one)), {**KEY, place: one}
            assert await refused(call(cache, ids)), case
            # And on the very name that a careless join of it makes, in memory and among the keys known.
            written = {**KEY, place: as_written(one)}
            await cache.set(**written, value="another's")
            for _ in range(2):
                assert await refused(call(cache, ids)), (*case, "warm")
                assert await cache.get(**written) == "another's", (*case, "and nothing was replaced")


@pytest.mark.parametrize("verb", READS)
async def test_an_id_finds_what_its_text_finds(cache: Cache, verb: str) -> None:
    """Not what it writes itself as: that is another's, and is in memory too."""
    for place, (one, text) in product(IDS, STAND_FOR):
        case, ids, plain = (place, type(one)), {**KEY, place: one}, {**KEY, place: text}
        if as_written(one) != text:
            others = {**KEY, place: as_written(one)}
            await cache.set(**others, value="another's")
            assert await cache.get(**others) == "another's"
        await cache.set(**plain, value="its own")
        for _ in range(2):  # from memory, as it was written, and as it was read
            assert await READS[verb](cache, ids) == "its own", case
            assert await cache.get(**plain) == "its own"
        cache._live().node.l1.clear()
        assert await READS[verb](cache, ids) == "its own", (*case, "from L2")
        await cache.delete(**ids)
        assert await cache.get(**plain) is None, case
        await cache.set(**ids, value="written")
        assert await cache.get(**plain) == await READS[verb](cache, ids) == "written", case


@pytest.mark.parametrize(("one", "text"), STAND_FOR, ids=[type(one).__name__ for one, _ in STAND_FOR])
async def test_every_write_reaches_what_the_text_names(cache: Cache, one: Any, text: str) -> None:
    async def filled() -> None:
        await cache.set("doc", text, 1, text, tags=[text])
        await cache.set("doc", text, 1, text, collection_id=text)
        await cache.set(text, "1", 1, text)
        await cache.set("doc", "bystander", 1, text)
        await cache.set("doc", text, 1, "bystander")
        assert await cache.get("doc", text, text) == 1

    async def left() -> list[Any]:
        return [
            await cache.get("doc", text, text),
            await cache.get("doc", text, text, collection_id=text),
            await cache.get(text, "1", text),
        ]

    guarded = {**dict.fromkeys(CONTEXTS), "data_type": "doc", "resource_id": one, "tenant_id": one}
    writes: list[tuple[Callable[[], Awaitable[Any]], list[Any]]] = [
        (lambda: cache.invalidate("doc", one, one), [None, 1, 1]),
        (lambda: cache.invalidate("doc", one, one, collection_id=one), [1, None, 1]),
        (lambda: cache.invalidate("doc", one, one, contexts="all"), [None, None, 1]),
        (lambda: cache.invalidate_targets([Target("doc", one), Target(one, 1)], one), [None, 1, None]),
        (lambda: cache.invalidate_scope(one, one), [1, 1, None]),
        (lambda: cache.invalidate_scope(one, collection_id=one), [1, None, 1]),
        (lambda: cache.invalidate_tags([one], one), [None, 1, 1]),
        (lambda: _guarded(cache, guarded), [None, 1, 1]),
        (lambda: invalidate_coordinated(one, "doc", one, [{"data_type": one, "resource_id": 1}]), [None, None, None]),
        (lambda: invalidate_resource_cache("doc", one, one), [None, None, 1]),
    ]
    for write, expected in writes:
        await filled()
        await write()
        assert await left() == expected
        assert await cache.get("doc", "bystander", text) == await cache.get("doc", text, "bystander") == 1
    await increment_counter(one, one, 3, one, one)
    assert await get_counter(text, text, text, text) == 3
    assert await cache.add("doc", one, 2, tenant_id=one)
    assert not await cache.add("doc", text, 2, tenant_id=text)


async def test_an_ambient_tenant_counts_by_what_it_is(cache: Cache) -> None:
    await cache.set("doc", "1", "its own", tenant_id="acme")
    await cache.set("doc", "1", "another's", tenant_id="Plan.ACME")
    await cache.set("doc", "1", "another's", tenant_id="other")
    for tenant in (Plan.ACME, Other("acme")):
        with Context(tenant):
            assert await cache.get("doc", "1") == "its own"
            assert (await get_with_cache_aside("doc", "1", fetch_from_db_func=_load))[0] == "its own"
        assert (await get_with_cache_aside("doc", "1", fetch_from_db_func=_load, ctx=Context(tenant)))[0] == "its own"


async def test_a_type_that_equals_system_is_not_it(cache: Cache) -> None:
    await cache.set("doc", "1", 1, "acme")
    with Context("acme"):
        assert await cache.get(Other("doc"), "1") == 1
        await cache.invalidate_scope(data_type=Other("doc"))
        assert await cache.get("doc", "1") is None


async def test_a_guards_scopes_are_types_of_any_kind_of_id(cache: Cache) -> None:
    def guard(scope: Any) -> Any:
        return cache.write_guard(scopes=[scope], tenant_id="acme", timeout_s=30.0, db_timeout_s=0.1)

    for one, text in STAND_FOR:
        async with guard(one):
            assert not (await cache.set(text, "1", 1, "acme")).stored
        assert (await cache.set(text, "1", 1, "acme")).stored
    for one in (*ARE_NONE, None):
        with pytest.raises(ValueError if type(one) is dict else InvalidKey):
            guard(one)


async def test_an_empty_tenant_is_not_the_systems(cache: Cache) -> None:
    await cache.set("system", "flags", 1)
    assert await cache.get("system", "flags") == 1
    for tenant in ("", Other("")):
        with pytest.raises(InvalidKey, match="tenant_id is empty"):
            await cache.get("system", "flags", tenant)
    with pytest.raises(TenantRequired):
        await cache.get("doc", "flags")


async def test_many_are_given_by_the_ids_asked_for(cache: Cache) -> None:
    ids = [Plan.ACME, 7, UUID(HEX), Other("x")]
    for text in ("acme", "7", HEX, "x"):
        await cache.set("doc", text, text, "acme")
    for _ in range(2):
        found = await cache.get_many("doc", [*ids, "absent"], "acme")
        assert [(type(one), value) for one, value in found.items()] == [
            (Plan, "acme"),
            (int, "7"),
            (UUID, HEX),
            (Other, "x"),
        ]
    assert list(await cache.get_many("doc", [7, "7"], "acme")) == [7, "7"]
    for one in (*ARE_NONE, None):
        with pytest.raises(InvalidKey):
            await cache.get_many("doc", ["1", 1, 0, one], "acme")
        if one is not None:
            with pytest.raises(InvalidKey):
                await cache.get_many("doc", ["1"], "acme", agent_id=one)


async def test_a_loader_is_given_the_id_as_it_was_given(cache: Cache) -> None:
    given: list[Any] = []

    async def load(resource_id: Any, tenant_id: Any) -> int:
        given.append((resource_id, tenant_id))
        return 1

    one = UUID(HEX)
    await cache.get_or_load("doc", one, load, tenant_id=one)
    await get_with_cache_aside("page", one, one, fetch_from_db_func=load)
    assert given == [(one, one), (one, one)]
    _, metrics = await get_with_cache_aside("page", one, one, fetch_from_db_func=load)
    assert metrics["level"] == "l1"
    assert metrics["resource_id"] is one


async def test_the_policy_of_a_type_is_found_by_what_the_type_is(cache: Cache) -> None:
    await cache.set(Other("copied"), "1", [1], "acme")
    first = await cache.get(Other("copied"), "1", "acme")
    assert first == [1]
    assert first is not await cache.get("copied", "1", "acme")
    found = [await cache.get_or_load(Other("copied"), "2", lambda: [1], tenant_id="acme") for _ in range(3)]
    assert found[1] is not found[2]
    assert rules_of(cache, Other("copied")) is rules_of(cache, "copied")
    cache.register(policies={Other("mine"): Policy(ttl_s=7)})
    assert rules_of(cache, "mine").ttl_s == 7
    for one in (*ARE_NONE, None):
        with pytest.raises(InvalidKey):
            rules_of(cache, one)


async def test_what_is_read_by_a_uuid_or_in_copies_stays_in_memory_as_long(cache: Cache) -> None:
    """The fast path counts its hits for eviction; so does the other one."""
    await cache.set("doc", HEX, 1, "acme")
    await cache.set("copied", "1", [1], "acme")
    for _ in range(5):
        assert await cache.get("doc", UUID(HEX), "acme") == 1
        assert await cache.get("copied", "1", "acme") == [1]
    entries = cache._live().node.l1.entries
    assert [entry.freq for entry in entries.values()] == [3, 3]


async def test_a_producer_counts_ids_by_what_they_are(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (cache,), DirectProducer.open(quick(redis_url)) as producer:
        for one, text in STAND_FOR:
            for receipt in (
                lambda one=one: producer.invalidate("doc", one, one, one),
                lambda one=one: producer.invalidate_scope(one, "doc", agent_id=one),
                lambda one=one: producer.invalidate_tags([one], one),
                lambda one=one: producer.invalidate_coordinated(one, "doc", one, agent_id=one),
            ):
                await cache.set("doc", text, 1, text, text, tags=[text])
                assert await cache.get("doc", text, text, text, after=await receipt()) is None
        for wrong in (*ARE_NONE, None):
            with pytest.raises(InvalidKey):
                await producer.invalidate("doc", wrong, "acme")
        with pytest.raises(InvalidKey):
            await producer.invalidate_tags(["t", Lazy("t")], "acme")  # type: ignore[list-item]
