"""`@cached`, loaders and `with_context` take functions whose annotations can't be read yet: since Python 3.14 there are
such also without `from __future__ import annotations`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cachebus import lifespan
from cachebus.testing import override_settings

AS_TEXT = "from __future__ import annotations\n"
MODULE = """
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cachebus import cached, with_context

if TYPE_CHECKING:
    from nowhere import Session


@cached("late", resource_id="{n}", tenant_id="acme", ignore=("session",))
async def later(n: int, session: Session | None = None) -> Row:
    return Row(n)


@with_context(tenant=True)
async def of_tenant(tenant_id: str, session: Session | None = None) -> Row:
    return Row(7)


async def load(resource_id: str, session: Session | None = None) -> Row:
    return Row(int(resource_id))


@dataclass
class Row:
    amount: int

    @cached("late", resource_id="own-{self.amount}", tenant_id="acme")
    async def own(self) -> Row:
        return self

    @cached("late-list", resource_id="{self.amount}", tenant_id="acme")
    async def several(self) -> list[Self]:
        return [self]
"""
BEGINNINGS = [AS_TEXT, ""] if sys.version_info >= (3, 14) else [AS_TEXT]  # else they are read at once


@pytest.fixture(autouse=True)
def _nothing_declared() -> Iterator[None]:
    with override_settings():
        yield


@pytest.mark.parametrize("begin", BEGINNINGS)
async def test_what_is_not_there_yet_may_be_named(begin: str) -> None:
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(begin + MODULE, __file__, "exec", dont_inherit=True), names)
    row = names["Row"]
    async with lifespan("memory://") as cache:
        for _ in range(2):
            assert await names["later"](1) == row(1)
            assert await row(2).own() == row(2)
            assert await row(3).several() == [row(3)]
            assert await names["of_tenant"]("acme") == row(7)
            assert await cache.get_or_load("late", 4, names["load"], "acme") == row(4)
