"""What the verbs of a cache take besides ids, taken by functions of `@cached`: by decoration, and by `with_options`."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import pytest

from cachebus import Cache, ConfigError, Receipt, cached
from tests.support.caches import deaf, nodes, parts, until

PATIENT = 10.0
token: ContextVar[Receipt | str | None] = ContextVar("token", default=None)


async def old_on_a_deaf_node(a: Cache, b: Cache) -> Receipt:
    """`b` holds what `a` has replaced, and has not heard of it."""
    await a.set("price", 7, "old", "acme")
    assert await b.get("price", 7, "acme") == "old"
    return await a.set("price", 7, "new", "acme")


async def test_a_call_sees_the_write_of_the_receipt_that_its_argument_holds(redis_url: str) -> None:
    async with nodes(redis_url, 2, l2_timeout_s=PATIENT) as (a, b):

        @cached("price", resource_id="{number}", tenant_id="acme", cache=b, after="{receipt}")
        async def price(number: int, receipt: Receipt | str | None = None) -> str:
            return "loaded"

        with deaf(b):
            receipt = await old_on_a_deaf_node(a, b)
            assert await price(7) == "old"  # within D: as it may
            assert await price(7, receipt) == "new"
            assert await price.get(7, receipt=str(receipt)) == "new"
        assert price.key(7) == price.key(7, receipt)
        with pytest.raises(ValueError, match="receipt"):
            await price(7, "no receipt")


async def test_or_that_a_context_variable_holds_or_that_the_call_says(redis_url: str) -> None:
    async with nodes(redis_url, 2, l2_timeout_s=PATIENT) as (a, b):

        @cached("price", resource_id="{number}", tenant_id="acme", cache=b, after=token.get)
        async def price(number: int) -> str:
            return "loaded"

        with deaf(b):
            receipt = await old_on_a_deaf_node(a, b)
            assert await price(7) == "old"
            asking = price.with_options(after=receipt)
            assert await asking.get(7) == "new"
            newer = await a.set("price", 7, "newer", "acme")
            assert await asking(7) in ("new", "newer")  # as it may
            token.set(str(newer))
            assert await price(7) == "newer"
            token.set(None)


async def test_the_receipts_argument_tells_no_results_apart_where_they_are_hashed(redis_url: str) -> None:
    async with nodes(redis_url, 1, l2_timeout_s=PATIENT) as (a,):

        @cached("price", tenant_id="acme", cache=a, after="{receipt}")
        async def hashed(number: int, receipt: Receipt | None = None) -> int:
            return number

        receipt = await hashed.invalidate(7)
        assert hashed.key(7) == hashed.key(7, receipt)
        assert await hashed(7, receipt) == 7


async def test_invalidating_waits_and_gives_its_reason_as_it_was_told(redis_url: str) -> None:
    async with nodes(redis_url, 2, l2_timeout_s=PATIENT) as (a, b):

        class Shop:
            @cached("price", resource_id="{number}", tenant_id="acme", cache=a, wait="nodes", reason="repriced")
            async def price(self, number: int) -> int:
                return number

        told: list[tuple[str, int]] = []
        b.on("invalidated", lambda event: told.append((event.reason, event.seq)))
        shop = Shop()
        receipt = await shop.price.invalidate(7)
        assert parts(b).node.id in (*receipt.confirmed, *receipt.lapsed)
        assert parts(b).node.shards[receipt.shard].applied >= receipt.seq
        assert await shop.price.with_options(reason="by hand").refresh(7) == 7
        at_once = await shop.price.with_options(reason="again").with_options(wait="nodes").invalidate(7)
        assert at_once.confirmed or at_once.lapsed
        await until(lambda: len(told) == 3)
        assert [reason for reason, _ in told] == ["repriced", "by hand", "again"]


async def test_in_every_context_it_invalidates_without_the_ids_of_one(redis_url: str) -> None:
    async with nodes(redis_url, 1, l2_timeout_s=PATIENT) as (a,):

        @cached("price", resource_id="{number}", tenant_id="acme", agent_id="{agent}", cache=a)
        async def price(number: int, agent: str) -> str:
            return agent

        for agent in ("a1", "a2"):
            await price(7, agent)
        await price.with_options(contexts="all").invalidate(7, "a1")
        assert await price.get(7, "a1") is await price.get(7, "a2") is None
        await a.set("price", 7, "wide", "acme")
        assert await price.with_options(search_hierarchy=True)(7, "a3") == "wide"
        assert await price.with_options(use_memory=False).get(7, "a3") is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"after": "receipt"},
        {"after": "x{number}"},
        {"after": "{other}"},
        {"after": 7},
        {"wait": "all"},
        {"reason": ""},
        {"reason": "x" * 201},
    ],
)
def test_what_is_wrong_is_said_when_the_function_is_decorated(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="price"):

        @cached("price", resource_id="{number}", tenant_id="acme", **wrong)
        async def price(number: int) -> int:
            return number
