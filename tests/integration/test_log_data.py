"""No line of the log has values in it, nor keys of dicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from cachebus import Cache, Policy
from cachebus.base.log import REASONS_MAX, Logger, logger
from tests.support.caches import quick
from tests.support.logs import told


class Odd:
    """Of no codec."""


class Extras(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    held: Any = None


class Number(BaseModel):
    held: int


@dataclass
class Held:
    held: Any


PERSON = "alice@example.com"
DATA: list[tuple[Any, Policy, str]] = [
    ({PERSON: {41111111: Odd()}}, Policy(), "value[str][int] is of type tests."),
    ([Held({PERSON: Odd()})], Policy(), "value[0].held[str] is of type tests."),
    (Extras(**{PERSON: Odd()}), Policy(), "value.(extra) is of type tests."),
    ({(PERSON, 1): Odd()}, Policy(), "value[tuple] is of type tests."),
    ({PERSON: {1}}, Policy(model=dict[str, list[int]]), "value[str] is of type set, and comes back as list"),
    ({PERSON: "x"}, Policy(model=dict[str, int]), "does not fit"),
    ({PERSON: {"held": "x"}}, Policy(model=dict[str, Number]), "does not fit"),
    (Extras(**{PERSON: (1,)}), Policy(model=Extras), "value.(extra) is of type tuple, and comes back as list"),
]


@pytest.mark.parametrize(("value", "policy", "says"), DATA)
async def test_keys_of_dicts_are_data_and_in_no_line(value: Any, policy: Policy, says: str) -> None:
    with told() as lines:
        async with Cache(quick("memory://", policies={"config": policy})) as cache:
            await cache.get_or_load("config", "x", lambda: value, tenant_id="acme")
    [line] = [line for line in lines if "can't be cached" in line]
    assert says in line, line
    assert "alice" not in line
    assert "4111" not in line


async def test_what_a_type_holds_uses_up_no_line_of_another() -> None:
    with told("ERROR") as lines:
        async with Cache(quick("memory://")) as cache:
            for number in range(200):
                await cache.get_or_load(
                    "orders", number, lambda n=number: {f"{n}@example.com": [0] * n + [Odd()]}, "acme"
                )
            await cache.get_or_load("prices", 1, Odd, "acme")
    assert [line.split()[2] for line in lines] == ["orders", "prices"]
    assert not any("example" in why for reasons in logger._once.values() for why in reasons)


def test_of_one_type_some_reasons_are_told() -> None:
    told_by = Logger()
    assert sum(told_by.once("odd", "orders", f"reason {'x' * n}") for n in range(100)) == REASONS_MAX
    assert told_by.once("odd", "prices", "reason")
