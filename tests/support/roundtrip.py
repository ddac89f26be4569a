"""For tests of the value codec: there and back, equality that sees types, and what hypothesis may make."""

from __future__ import annotations

import math
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from cachebus.values import decode, encode

quick = settings(max_examples=80, deadline=None)


def back(value: object, codec: str = "msgpack", over: int | None = None, model: Any = None) -> Any:
    """What comes back of a value."""
    return decode(*encode(value, codec, over), model)


def same(a: Any, b: Any) -> bool:
    """Equal, of the same types all through, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, Decimal):
        return str(a) == str(b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(k, q) and same(a[k], b[q]) for k, q in zip(a, b, strict=True))
    if isinstance(a, (datetime, time)):
        return a.isoformat() == b.isoformat() and a.fold == b.fold
    return bool(a == b)


offsets = st.integers(-86_399, 86_399).map(lambda s: timezone(timedelta(seconds=s)))
folds = st.integers(0, 1)
datetimes = st.builds(
    lambda d, z, f: d.replace(tzinfo=z, fold=f), st.datetimes(), st.none() | st.just(UTC) | offsets, folds
)
times = st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.times(), st.none() | offsets, folds)
hashables = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | datetimes
    | st.dates()
    | times
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False)
)
scalars = hashables | st.floats() | st.decimals()
keys = st.recursive(hashables, lambda k: st.tuples(k, k) | st.frozensets(k, max_size=3), max_leaves=4)
anything = st.recursive(
    scalars | st.sets(keys, max_size=4) | st.frozensets(keys, max_size=4),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=20,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
)
