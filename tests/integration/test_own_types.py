"""Types of the user's own: functions of a policy that make plain data of a value, and the value again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest

from cachebus import Cache, ConfigError, NotSerializable, Policy, cached
from cachebus.errors import ValueTooLarge
from tests.support.caches import Source, asked, nodes
from tests.support.logs import told
from tests.support.secret_keys import keys


class Money:
    """Knows no equality, as many a class."""

    def __init__(self, cents: int) -> None:
        self.cents = cents


def encode(money: Money) -> dict[str, int]:
    return {"cents": money.cents}


def decode(plain: dict[str, int]) -> Money:
    return Money(plain["cents"])


def _of_fraction(value: Fraction) -> bytes:
    return f"{value.numerator}/{value.denominator}".encode()


def _fraction(data: bytes) -> Fraction:
    return Fraction(data.decode())


POLICIES = {
    "money": Policy(encode=encode, decode=decode),
    "copied": Policy(encode=encode, decode=decode, copy=True),
    "away": Policy(encode=encode, decode=decode, l1=False, compress_over_bytes=1, negative_ttl_s=60),
    "raw": Policy(encode=_of_fraction, decode=_fraction, codec="raw"),
    "small": Policy(encode=lambda value: b"x" * value, decode=len, codec="raw", max_value_bytes=10),
}


async def failing(value: Any) -> Any:
    raise AssertionError(value)


def later(value: Any) -> Any:
    return failing(value)


def test_a_policy_needs_both_and_no_model() -> None:
    for given in ({"encode": encode}, {"decode": decode}):
        with pytest.raises(ConfigError, match=r"needs (decode|encode)"):
            Policy(**given)
    with pytest.raises(ConfigError, match="decode and model both say"):
        Policy(encode=encode, decode=decode, model=dataclass(type("Plain", (), {"__annotations__": {"x": int}})))
    with pytest.raises(ConfigError, match="sync function"):
        Policy(encode=failing, decode=decode)
    with pytest.raises(ConfigError, match="encode"):
        Policy(encode="json", decode=decode)  # type: ignore[arg-type]


@pytest.mark.parametrize("encryption", [None, keys("k1")], ids=["plain", "encrypted"])
async def test_every_node_gives_what_is_decoded(redis_url: str, encryption: str | None) -> None:
    """The one that has stored it too: from its memory it serves what others decode from L2."""
    given = Money(7)
    async with nodes(redis_url, policies=POLICIES, encryption=encryption) as (a, b):
        for data_type in ("money", "copied", "away"):
            await a.set(data_type, "1", given, tenant_id="acme")
            loaded = await a.get_or_load(data_type, "2", lambda: given, tenant_id="acme")
            assert loaded is not given and loaded.cents == 7
            for cache in (a, b):
                for i in "12":
                    for use_memory in (True, True, False):
                        found = await cache.get(data_type, i, tenant_id="acme", use_memory=use_memory)
                        assert type(found) is Money and found is not given and found.cents == 7
        one, other = [await b.get("copied", "1", tenant_id="acme") for _ in range(2)]
        assert one is not other
        one, other = [await b.get("money", "1", tenant_id="acme") for _ in range(2)]
        assert one is other
        await a.set("raw", "1", Fraction(1, 3), tenant_id="acme")
        assert await b.get_many("raw", ["1"], tenant_id="acme") == {"1": Fraction(1, 3)}


async def test_none_goes_through_neither(redis_url: str) -> None:
    async with nodes(redis_url, policies=POLICIES) as (a, b):
        await a.set("money", "1", None, tenant_id="acme")
        assert await b.get("money", "1", tenant_id="acme", default=7) is None
        assert await a.get_or_load("away", "2", lambda: None, tenant_id="acme") is None
        with asked(b) as counts:
            assert await b.get_or_load("away", "2", lambda: Money(1), tenant_id="acme") is None
        assert not counts["fill"], "not found is known"


@pytest.mark.parametrize(
    ("encodes", "why"),
    [
        (lambda value: value.no_such, "the policy's encode raised AttributeError"),
        (lambda value: None, "the policy's encode gave None"),
        (later, "the policy's encode gave something to be awaited"),
        (lambda value: value, "Money, which codec msgpack can't carry"),
        (lambda value: {"cent": 1}, "the policy's decode raised KeyError"),
    ],
)
async def test_what_can_not_be_encoded_is_told_to_who_stores_it(
    redis_url: str, encodes: Callable[[Any], Any], why: str
) -> None:
    async with nodes(redis_url, 1, policies={"money": Policy(encode=encodes, decode=decode)}) as (cache,):
        with pytest.raises(NotSerializable, match=why):
            await cache.set("money", "1", Money(7), tenant_id="acme")
        given = Money(7)
        assert await cache.get_or_load("money", "1", lambda: given, tenant_id="acme") is given
        assert cache.stats().types["money"].serialization_errors == 1


@pytest.mark.parametrize(
    ("decodes", "why"),
    [
        (lambda plain: plain["no such secret"], "the policy's decode raised KeyError"),
        (lambda plain: None, "the policy's decode gave None"),
        (later, "the policy's decode gave something to be awaited"),
    ],
)
async def test_what_can_not_be_decoded_is_a_miss_that_is_counted_and_told_once(
    redis_url: str, decodes: Callable[[Any], Any], why: str
) -> None:
    good = {"money": Policy(encode=encode, decode=decode)}
    async with (
        nodes(redis_url, 1, policies=good) as (writer,),
        nodes(redis_url, 1, policies={"money": Policy(encode=encode, decode=decodes)}) as (reader,),
    ):
        await writer.set("money", "1", Money(7), tenant_id="acme")
        with told() as lines:
            for _ in range(3):
                assert await reader.get("money", "1", tenant_id="acme") is None
            assert await reader.get_many("money", ["1"], tenant_id="acme") == {}
            source = Source(**{"1": Money(8)})
            loaded = await reader.get_or_load("money", "1", source.load, tenant_id="acme")
            assert loaded is source.values["1"], "what its own decode refuses is given as it was loaded, and not kept"
        assert len([line for line in lines if why in line and "can't be read" in line]) == 1
        assert not [line for line in lines if "no such secret" in line]
        assert reader.stats().types["money"].serialization_errors >= 4
        assert (await writer.get("money", "1", tenant_id="acme")).cents == 7


async def test_sizes_are_those_of_what_is_stored(redis_url: str) -> None:
    async with nodes(redis_url, 1, policies=POLICIES) as (cache,):
        await cache.set("small", "1", 10, tenant_id="acme")
        with pytest.raises(ValueTooLarge):
            await cache.set("small", "1", 11, tenant_id="acme")
        assert await cache.get("small", "1", tenant_id="acme") == 10


async def test_an_annotation_takes_no_part_where_there_are_functions(redis_url: str) -> None:
    async with nodes(redis_url, 1, policies=POLICIES) as (cache,):

        @cached("money", resource_id="{cents}", tenant_id="acme", cache=cache)
        async def money(cents: int) -> list[tuple[int, int]]:
            return Money(cents)  # type: ignore[return-value]

        for _ in range(2):
            assert type(await money(5)) is Money


async def test_a_type_that_has_them_only_later(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (cache,):
        cache.register(policies={"money": POLICIES["money"]})
        await cache.set("money", "1", Money(7), tenant_id="acme")
        assert (await cache.get("money", "1", tenant_id="acme", use_memory=False)).cents == 7
        assert isinstance(cache, Cache)
