"""The ambient context: whose request it is, and that no mix-up of tenants comes of it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cachebus.context import Context, current, with_context
from cachebus.errors import ConfigError, InvalidKey, TenantRequired


def test_ids_tenant_and_metrics() -> None:
    context = Context(tenant_id="acme", agent_id=7)
    context.add_metric("rows", 3)
    assert context.ids == ("acme", 7, None, None)
    assert context.metrics == {"rows": 3}
    assert context.has_tenant_id()
    assert context.get_tenant_id() == "acme"
    assert repr(context) == "Context(tenant_id='acme', agent_id=7)"
    assert not Context().has_tenant_id()
    with pytest.raises(TenantRequired):
        Context().get_tenant_id()
    with pytest.raises(AttributeError):
        context.tennant_id = "x"  # type: ignore[attr-defined]


async def test_entering_by_with_and_async_with() -> None:
    assert current() is None
    with Context("acme") as outer:
        assert current() is outer
        async with Context("acme", "a7") as inner:
            assert current() is inner
        assert current() is outer
    assert current() is None


def test_missing_ids_come_from_the_surrounding_context() -> None:
    inner = Context(collection_id="c1")
    with Context("acme", "a7", "v1"), inner as resolved:
        assert resolved.ids == ("acme", "a7", "v1", "c1")
        assert current() is resolved
        resolved.add_metric("n", 1)
    assert inner.ids == (None, None, None, "c1"), "the object itself stays as it was made"
    assert inner.metrics == {"n": 1}


def test_one_object_entered_under_two_tenants_takes_nothing_along() -> None:
    inner = Context(agent_id="a7")
    for tenant in ("acme", "beta"):
        with Context(tenant), inner as resolved:
            assert resolved.tenant_id == tenant
    with inner as alone:
        assert not alone.has_tenant_id()


def test_ids_of_another_tenant_are_not_taken_over() -> None:
    with Context("acme", "a7"), Context("beta") as inner:
        assert inner.ids == ("beta", None, None, None)
    with Context(7, "a7"), Context("7") as same:
        assert same.agent_id == "a7", "7 and '7' are one tenant"


def test_entered_again_inside_itself() -> None:
    context = Context("acme")
    with context, context, context:
        assert current() is context
    assert current() is None


def test_an_exception_passes_and_leaves_the_context() -> None:
    with pytest.raises(KeyError), Context("acme"):
        raise KeyError
    assert current() is None


async def test_one_object_in_tasks_that_interleave() -> None:
    shared, entered, leave = Context("acme"), asyncio.Event(), asyncio.Event()

    async def first() -> None:
        with shared:
            entered.set()
            await leave.wait()
            assert current() is shared
        assert current() is None

    async def second() -> None:
        await entered.wait()
        with shared:
            leave.set()
            await asyncio.sleep(0)
            assert current() is shared
        assert current() is None

    await asyncio.gather(first(), second())


async def test_a_background_task_keeps_what_surrounded_its_start() -> None:
    go = asyncio.Event()

    async def background() -> Any:
        await go.wait()
        found = current()
        assert found is not None
        return found.ids

    with Context("acme"), Context(agent_id="a7"):
        task = asyncio.create_task(background())
    with Context("beta"):
        go.set()
        assert await task == ("acme", "a7", None, None)


async def test_left_in_another_task_than_entered() -> None:
    context = Context("acme")
    await asyncio.create_task(context.__aenter__())
    await context.__aexit__(None, None, None)
    assert current() is None


# -- with_context -----------------------------------------------------------------------------------------------------


@with_context()
async def tenant_only(value: int, tenant_id: str | None = None, ctx: Context | None = None) -> Any:
    """Doc."""
    assert ctx is current()
    return value, tenant_id, None if ctx is None else ctx.ids


async def test_the_tenant_of_an_argument_or_of_the_surroundings() -> None:
    assert await tenant_only(1, "acme") == (1, "acme", ("acme", None, None, None))
    assert await tenant_only(1, tenant_id="acme") == (1, "acme", ("acme", None, None, None))
    with Context("acme", "a7"):
        assert await tenant_only(1) == (1, None, ("acme", "a7", None, None))
        assert await tenant_only(1, "acme") == (1, "acme", ("acme", "a7", None, None))
    assert current() is None


async def test_a_missing_tenant_is_named() -> None:
    with pytest.raises(TenantRequired, match="tenant_only needs tenant_id: give it as an argument, or call it inside"):
        await tenant_only(1)
    with pytest.raises(TenantRequired):
        await tenant_only(1, tenant_id=None)


async def test_a_contradicting_tenant_raises() -> None:
    with Context("acme"):
        with pytest.raises(InvalidKey, match=r"tenant_id of tenant_only contradicts the surrounding context"):
            await tenant_only(1, "beta")
        with pytest.raises(InvalidKey, match="the ctx given to tenant_only contradicts the surrounding tenant"):
            await tenant_only(1, ctx=Context("beta"))
    with pytest.raises(InvalidKey, match="contradicts"):
        await tenant_only(1, "beta", ctx=Context("acme"))


@pytest.mark.parametrize("tenant", ["", True, 1.5, object()])
async def test_a_tenant_that_is_none(tenant: Any) -> None:
    with pytest.raises(InvalidKey, match=r"tenant_id of tenant_only (is empty|must be str, int or UUID)"):
        await tenant_only(1, tenant)


def test_without_validation_an_argument_changes_the_tenant() -> None:
    @with_context(validate_tenant=False)
    def ids(tenant_id: str) -> Any:
        found = current()
        return found and (tenant_id, found.ids)

    with Context("acme", "a7"):
        assert ids("beta") == ("beta", ("beta", None, None, None))
        assert ids("acme") == ("acme", ("acme", "a7", None, None))


def test_ids_that_are_asked_for_are_required() -> None:
    @with_context(tenant=False, agent=True, conversation=True, collection=True)
    def ids(agent_id: str | None = None, *, conversation_id: int | None = None, collection_id: str = "default") -> Any:
        found = current()
        return found and found.ids

    with Context("acme", collection_id="c1"):
        assert ids("a7", conversation_id=3) == ("acme", "a7", 3, "c1")
        with pytest.raises(InvalidKey, match="needs agent_id") as caught:
            ids(conversation_id=3)
        assert not isinstance(caught.value, TenantRequired)
    with pytest.raises(InvalidKey, match="needs collection_id"):
        ids("a7", conversation_id=3)
    assert ids("a7", conversation_id=3, collection_id="x") == (None, "a7", 3, "x")


def test_ids_that_are_not_asked_for_are_left_alone() -> None:
    @with_context()
    def ids(tenant_id: str, agent_id: str) -> Any:
        found = current()
        return agent_id, found and found.ids

    assert ids("acme", "mine") == ("mine", ("acme", None, None, None))


def test_ids_among_further_keywords() -> None:
    @with_context(agent=True)
    def ids(*args: Any, **rest: Any) -> Any:
        found = current()
        return args, rest, found and found.ids

    assert ids(1, tenant_id="acme", agent_id="a7", x=2) == (
        (1,),
        {"tenant_id": "acme", "agent_id": "a7", "x": 2},
        ("acme", "a7", None, None),
    )


def test_ctx_is_passed_only_where_it_is_taken_and_was_not_given() -> None:
    @with_context()
    def wants(ctx: Context, /, n: int, tenant_id: str | None = None) -> Any:
        return ctx, n

    @with_context()
    def wants_by_name(*, ctx: Any = None) -> Any:
        return ctx

    @with_context()
    def swallows(**ctx: Any) -> Any:
        return ctx

    given = Context("acme")
    assert wants(given, 2) == (given, 2)
    assert wants_by_name(ctx=given) is given
    assert swallows(tenant_id="acme") == {"tenant_id": "acme"}
    with given:
        assert wants_by_name() is given
        assert wants_by_name(ctx="something else") == "something else"
        assert swallows() == {}


def test_metrics_belong_to_the_request_that_surrounds() -> None:
    @with_context()
    def work(tenant_id: str, ctx: Context | None = None) -> None:
        assert ctx is not None
        ctx.add_metric("work", 1)

    with Context("acme") as request:
        work("acme")
    assert request.metrics == {"work": 1}
    given = Context("acme", "a7")
    work("acme", ctx=given)
    assert given.metrics == {"work": 1}


def test_a_given_ctx_is_completed_by_the_surroundings() -> None:
    @with_context()
    def ids(ctx: Context | None = None) -> Any:
        found = current()
        return found and found.ids

    with Context("acme"):
        assert ids(Context(agent_id="a7")) == ("acme", "a7", None, None)


async def test_what_the_function_looks_like_and_raises() -> None:
    assert tenant_only.__name__ == "tenant_only"
    assert tenant_only.__doc__ == "Doc."
    assert inspect.iscoroutinefunction(tenant_only)

    @with_context()
    def fails(tenant_id: str, needed: int) -> None:
        raise KeyError(needed)

    with pytest.raises(KeyError):
        fails("acme", 1)
    with pytest.raises(TypeError, match="needed"):
        fails("acme")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="nope"):
        fails("acme", 1, nope=2)  # type: ignore[call-arg]
    assert current() is None


async def test_cancellation_passes() -> None:
    @with_context()
    async def waits(tenant_id: str) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(waits("acme"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_generators_are_refused() -> None:
    def numbers(tenant_id: str) -> Iterator[int]:
        yield 1

    async def later(tenant_id: str) -> AsyncIterator[int]:
        yield 1

    for function in (numbers, later):
        with pytest.raises(ConfigError, match="a generator; enter a Context inside it"):
            with_context()(function)
