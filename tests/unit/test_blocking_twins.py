"""Every verb of `Cache` has a twin in `BlockingCache`, with the same parameters and result, overload by overload."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_overloads

import pytest

from cachebus import BlockingCache, Cache
from cachebus.producers import BlockingProducer, DirectProducer

OTHERWISE = {"aclose": "close"}
"""What has another name."""
RESULTS = {"WriteGuard": "BlockingWriteGuard", "Awaitable[T]": "T"}
"""What stands in the place of a result."""
LIMITED = {"open"}
"""What takes a `timeout_s` besides."""
NOT_YET = {"of"}
"""What synchronous code does without: handles are async. None may be added."""
OF_WORKERS = {"beside", "goes_on_without", "identity", "probe_one", "reaches", "send", "takes_any"}
"""Of a producer: what workers ask, which are no synchronous code."""
HOW = (
    "{name} of {ours} and of {theirs} differ. Each verb is written out in cachebus/threads/ (reading and loading in "
    "cache.py, writing in writes.py, many at once in batches.py, all else in life.py), as "
    "`self._ask(lambda cache: cache.{name}(...))`, or by `self._load` where it takes a loader"
)


def public(cls: type) -> dict[str, Any]:
    """What a class offers, by name."""
    return {name: inspect.getattr_static(cls, name) for name in dir(cls) if not name.startswith("_")}


def plain(member: Any) -> Any:
    """What is called, out of its wrapping."""
    return getattr(member, "__func__", member)


def shape(function: Callable[..., Any]) -> tuple[list[tuple[Any, ...]], Any]:
    """Its parameters, and what it gives."""
    found = inspect.signature(function)
    result = RESULTS.get(found.return_annotation, found.return_annotation)
    parameters = [(p.name, p.kind, p.default, p.annotation) for p in found.parameters.values()]
    return [p for p in parameters if p[0] != "timeout_s" or function.__name__ not in LIMITED], result


@pytest.mark.parametrize(("theirs", "ours"), [(Cache, BlockingCache), (DirectProducer, BlockingProducer)])
def test_each_verb_has_its_twin(theirs: type, ours: type) -> None:
    there = public(ours)
    for name, member in public(theirs).items():
        if name in (OF_WORKERS if theirs is DirectProducer else NOT_YET):
            continue
        how = HOW.format(name=name, ours=ours.__name__, theirs=theirs.__name__)
        twin = there.get(OTHERWISE.get(name, name))
        assert twin is not None, how
        assert type(twin) is type(member) or inspect.isfunction(member), how
        if isinstance(member, property):
            assert (member.fset is None) == (twin.fset is None), how
            continue
        member, twin = plain(member), plain(twin)
        assert not inspect.iscoroutinefunction(twin), how
        assert shape(twin) == shape(member), how
        assert list(map(shape, get_overloads(twin))) == list(map(shape, get_overloads(member))), how


@pytest.mark.parametrize("ours", [BlockingCache, BlockingProducer])
def test_nothing_is_made_up_when_it_is_imported(ours: type) -> None:
    """What type checkers see is what there is."""
    bases = [base for base in ours.__mro__ if base.__module__.startswith("cachebus.")]
    for name in public(ours):
        assert any(name in vars(base) for base in bases), name
    assert not any("__getattr__" in vars(base) for base in bases)
