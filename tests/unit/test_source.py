"""A source is called with what it takes, and is not kept alive by having been called."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any

import pytest

from cachebus.errors import ConfigError
from cachebus.source import bind


class Method:
    def load(self, resource_id: str, tenant_id: str) -> Any:
        return resource_id, tenant_id

    def __call__(self, resource_id: str) -> Any:
        return resource_id


def two(resource_id: str, tenant_id: str) -> Any:
    return resource_id, tenant_id


@functools.wraps(two)
def wrapped(*args: Any) -> Any:
    return two(*args)


def by_name(resource_id: str, *, ctx: Any, other: int = 5) -> Any:
    return resource_id, ctx, other


SHAPES = [
    (lambda: "none", "none"),
    (lambda a: a, "r"),
    (two, ("r", "t")),
    (lambda a, b, c: (a, b, c), ("r", "t", "c")),
    (lambda a, b, c, d=4: (a, b, c, d), ("r", "t", "c", 4)),
    (lambda *a: a, ("r", "t", "c")),
    (lambda **k: k, {"resource_id": "r", "tenant_id": "t", "ctx": "c"}),
    (lambda a, **k: (a, k), ("r", {"tenant_id": "t", "ctx": "c"})),
    (by_name, ("r", "c", 5)),
    (wrapped, ("r", "t")),
    (Method().load, ("r", "t")),
    (Method(), "r"),
    (functools.partial(lambda x, a, b: (x, a, b), "x"), ("x", "r", "t")),
    (str, "r"),
]


@pytest.mark.parametrize(("source", "expected"), SHAPES)
def test_called_with_what_it_takes(source: Any, expected: Any) -> None:
    assert bind(source, "r", "t", "c")() == expected


def bound_and_called() -> weakref.ref[Method]:
    held = Method()
    bind(lambda resource_id: (held, resource_id), "r", "t", None)()
    bind(held.load, "r", "t", None)()
    return weakref.ref(held)


def test_a_closure_is_not_kept_alive() -> None:
    seen = bound_and_called()
    gc.collect()
    assert seen() is None


def four(resource_id: str, tenant_id: str, ctx: Any, session: Any) -> Any:
    return session


def keyword(resource_id: str, *, session: Any, tenant_id: Any) -> Any:
    return session


class Needy:
    def load(self, a: str, b: str, c: str, d: str, e: str) -> Any:
        return e

    async def __call__(self, a: str, b: str, c: str, d: str) -> Any:
        return d


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (four, "the loader four needs session too"),
        (keyword, "the loader keyword needs session too"),
        (Needy().load, "the loader Needy.load needs d, e too"),
        (Needy(), "the loader Needy needs d too"),
        (functools.partial(four, "r"), None),
        (functools.partial(keyword, session=1), None),
        (functools.partial(four, session=1), None),
        (lambda a, b, c, d=1: d, None),
        (lambda a, *, session=1: session, None),
        (lambda a, *rest, **more: a, None),
    ],
)
def test_a_source_that_needs_more_than_it_can_be_given_is_told(source: Any, said: str | None) -> None:
    if said is None:
        bind(source, "r", "t", "c")
        return
    with pytest.raises(ConfigError, match=f"^{said}: .*functools.partial"):
        bind(source, "r", "t", "c")
