"""Numbers in settings and policies: what is accepted works, over a real server too; what can't work is refused."""

from __future__ import annotations

import asyncio
import math
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from redis.credentials import UsernamePasswordCredentialProvider

from cachebus import Cache, ConfigError, Policy, Settings
from tests.support.caches import D_S, nodes, parts

ANY_SIZE = {"pending_max", "resend_max_bytes", "l1_max_entries", "l1_max_bytes", "compress_over_bytes"}
"""Bounds of this process's own memory, and a size from which on something is done: each works, however large it is."""
BY_OTHERS = {
    "probe_interval_s": D_S / 2,
    "gap_grace_s": D_S - 0.01,
    "db_timeout_s": 59.9,
    "soft_ttl_s": 10**10 - 1,
    "load_soft_timeout_s": 10**10 - 1,
    "ttl_s": 10**10,
}
"""The largest, where another field says what that is."""
FEW = {"shards", "kafka_partitions"}
"""Of the most of these a server has to do for seconds."""
NEEDS: dict[str, dict[str, Any]] = {
    "load_soft_timeout_s": {"fail_safe_s": 60, "load_timeout_s": 10**10},
    "soft_ttl_s": {"ttl_s": 10**10},
    "reauth_interval_s": {"credential_provider": UsernamePasswordCredentialProvider("default", "any will do")},
}


def numbers(model: type[BaseModel]) -> list[str]:
    """The fields that are numbers."""
    found = []
    for name, field in model.model_fields.items():
        kinds = {field.annotation, *get_args(field.annotation)}
        kinds |= {inner for kind in kinds for inner in get_args(kind)}
        if kinds & {int, float} and bool not in kinds:
            found.append(name)
    return found


def refused(model: type[BaseModel], name: str, value: float) -> bool:
    integer = float not in {model.model_fields[name].annotation, *get_args(model.model_fields[name].annotation)}
    try:
        model(**{**NEEDS.get(name, {}), name: int(value) if integer and math.isfinite(value) else value})
    except ConfigError as error:
        assert name in str(error)
        return True
    return False


FIELDS = [(model, name) for model in (Settings, Policy) for name in numbers(model)]


@pytest.mark.parametrize(("model", "name"), FIELDS, ids=[name for _, name in FIELDS])
def test_no_number_is_without_bounds(model: type[BaseModel], name: str) -> None:
    for value in (-1, math.nan, -math.inf):
        assert refused(model, name, value), value
    if name not in ANY_SIZE:
        assert refused(model, name, 1e300)
    if name != "ttl_s":
        assert refused(model, name, math.inf)
    if name.endswith("_s") and name not in ("gap_grace_s", "close_timeout_s", "guard_max_s"):  # which may be 0
        assert refused(model, name, 0)
        assert name == "db_timeout_s" or refused(model, name, 1e-9)


def test_all_that_are_numbers_are_found() -> None:
    assert {"lease_ms", "l2_timeout_s", "log_max_len", "ttl_s", "retries", "max_value_bytes"} <= {n for _, n in FIELDS}


def most(model: type[BaseModel], name: str) -> Any:
    """The largest that is accepted."""
    if name in BY_OTHERS:
        return BY_OTHERS[name]
    bounds = [bound for data in _metadata(model, name) if (bound := getattr(data, "le", None)) is not None]
    return min(bounds) if bounds else 10**30


def _metadata(model: type[BaseModel], name: str) -> list[Any]:
    field = model.model_fields[name]
    inner = [data for kind in get_args(field.annotation) for data in getattr(kind, "__metadata__", ())]
    return [*field.metadata, *inner, *(data for info in inner for data in getattr(info, "metadata", ()))]


@pytest.mark.parametrize(
    ("model", "name"), [(m, n) for m, n in FIELDS if n not in FEW], ids=[n for _, n in FIELDS if n not in FEW]
)
async def test_the_largest_that_is_accepted_works(redis_url: str, model: type[BaseModel], name: str) -> None:
    fields = {**NEEDS.get(name, {}), name: most(model, name)}
    policies, settings = {"config": Policy(**fields)} if model is Policy else {}, fields if model is Settings else {}
    async with nodes(redis_url, 2, policies=policies, **settings) as (a, b):
        await _works(a, b)


async def _works(a: Cache, b: Cache) -> None:
    loads = 0

    async def load() -> str:
        nonlocal loads
        loads += 1
        return "value"

    both = [cache.get_or_load("config", "x", load, "acme") for cache in (a, b)]
    assert await asyncio.gather(*both) == ["value"] * 2
    assert loads == 1, "one load for both"
    await a.set("config", "y", 1, "acme", tags=["t"])
    assert await b.get("config", "y", "acme") == 1
    receipt = await a.invalidate("config", "y", "acme")
    await a.invalidate_tags(["t"], "acme")
    assert await b.get("config", "y", "acme", after=receipt) is None
    for cache in (a, b):
        stats = cache.stats()
        assert (stats.l2_errors, stats.fills_rejected, stats.flushes.get("gap")) == (0, 0, None)
    assert len(await parts(a).store.log(0, 0, 10)) == 3, "each event is in the log"
