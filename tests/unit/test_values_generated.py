"""Models that nobody thought of: each value comes back equal, or is refused, on every path."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings

from cachebus import NotSerializable, Policy
from cachebus.policy import Rules
from cachebus.testing import Fleet
from cachebus.values import decode
from cachebus.wire.packing import carried
from tests.support.model_values import Made, described, made, models


def stored(made: Made, **more: Any) -> tuple[Any, Any] | None:
    """What the one who stores it gets, and what others decode; None where it is refused."""
    rules = Rules("doc", Policy(model=made.kind, **more))
    try:
        codec, payload, seen = carried(made.value, rules)
    except NotSerializable:
        return None
    return seen, decode(codec, payload, rules.model)


@settings(max_examples=400, deadline=None)
@given(made())
def test_a_value_comes_back_equal_or_is_refused(made: Made) -> None:
    found = stored(made)
    assert (found is None) == made.loses
    for seen in found or ():
        assert described(seen) == described(made.value)


@settings(max_examples=100, deadline=None)
@given(models())
def test_compressed_too(made: Made) -> None:
    for seen in stored(made, compress_over_bytes=1) or ():
        assert described(seen) == described(made.value)


@settings(max_examples=100, deadline=None)
@given(models())
def test_what_gets_lost_may_be_allowed(made: Made) -> None:
    found = stored(made, lossy=True)
    assert found is not None
    assert type(found[0]) is type(found[1]) is made.kind


@settings(max_examples=30, deadline=None)
@given(models(2))
def test_on_every_path_of_a_cache(made: Made) -> None:
    async def paths(**more: Any) -> None:
        async with Fleet(2, policies={"doc": Policy(model=made.kind, **more)}) as fleet:
            loads = 0

            async def load() -> Any:
                nonlocal loads
                loads += 1
                return made.value

            for cache in (fleet.caches[0], fleet.caches[0], fleet.caches[1], fleet.caches[1]):
                value = await cache.get_or_load("doc", "x", load, tenant_id="acme")
                assert described(value) == described(made.value)
            assert loads == (4 if made.loses else 1)
            try:
                await fleet.caches[0].set("doc", "y", made.value, tenant_id="acme")
            except NotSerializable:
                assert made.loses
            else:
                for cache in fleet.caches:
                    assert described(await cache.get("doc", "y", tenant_id="acme")) == described(made.value)

    asyncio.run(paths())
    asyncio.run(paths(copy=True))
