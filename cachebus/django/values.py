"""A value of Django's cache as the bytes that a record carries, and back.

```
0  1   what it is: 0 = a value, 1 = text that is safe in HTML, 2 = a response, 3 = what the serializer has made,
       4 = a list of a value with such text inside and where that is, 5 = nothing: a `delete` has just taken it
1  1   the codec of what follows, as in a record; 0 for the serializer's
2  ... the value
```
So memory holds bytes, which nobody can change: each caller is given a value of its own, made on its own thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from http.cookies import Morsel
from typing import Any, Protocol

from django.db.models import Model, QuerySet
from django.http import HttpResponse
from django.utils.safestring import SafeString, mark_safe

from cachebus import values
from cachebus.base.log import logger
from cachebus.decided import Decided, DontCache, Fresh
from cachebus.errors import NotSerializable
from cachebus.values import UNCHANGING

PLAIN, SAFE_TEXT, RESPONSE, SERIALIZED, SAFE_INSIDE, TAKEN = range(6)
REMOVED = bytes((TAKEN, 0))
UNREADABLE = object()
Safe = bool | dict[int, Any]
_HELP = (
    "cache plain data: of a model's instance model_to_dict(instance) or its primary key, of a query set "
    "list(query_set.values(...)); or name a SERIALIZER in OPTIONS, as pickle, where whoever may write to this Redis is "
    "trusted"
)


class Serializer(Protocol):
    """What may be named in place of msgpack: the module pickle is one."""

    def dumps(self, value: Any, /) -> bytes:
        """The value as bytes."""

    def loads(self, data: bytes, /) -> Any:
        """The value again."""


def encoded(value: object, serializer: Serializer | None) -> bytes:
    """The bytes of a value; `NotSerializable`, and whatever the serializer raises."""
    if isinstance(value, Decided):
        raise NotSerializable(
            f"value is of type {type(value).__qualname__}: get_or_set alone takes it, from its default"
        )
    if serializer is not None:
        data = serializer.dumps(value)
        if not isinstance(data, bytes):
            raise NotSerializable(f"the SERIALIZER made {type(data).__name__} of a value, not bytes")
        return bytes((SERIALIZED, 0)) + data
    if isinstance(value, HttpResponse):
        return _framed(RESPONSE, _parts_of(value))
    if isinstance(value, Model | QuerySet):
        raise NotSerializable(f"value is of type {type(value).__qualname__}: {_HELP}")
    if isinstance(value, SafeString):
        return _framed(SAFE_TEXT, value)
    data = _framed(PLAIN, value)  # first: it refuses what holds itself
    safe = _safe_in(value)
    return _framed(SAFE_INSIDE, [value, safe]) if safe else data


def _safe_in(value: object) -> Safe:
    """Where in a value text is that is safe in HTML: by the places of a dict's or a list's items, True for such text
    itself. `NotSerializable` for what can't be marked again."""
    hashed: Iterable[object]
    inside: Iterable[object]
    if isinstance(value, SafeString):
        return True
    if isinstance(value, dict):
        hashed, inside = value.keys(), value.values()
    elif isinstance(value, list | tuple):
        hashed, inside = (), value
    elif isinstance(value, set | frozenset):
        hashed, inside = value, ()
    else:
        return {}
    if any(type(one) not in UNCHANGING and _safe_in(one) for one in hashed):
        raise NotSerializable("text that is marked as safe is a dict's key, or in a set, and would lose its mark")
    return {at: safe for at, one in enumerate(inside) if type(one) not in UNCHANGING and (safe := _safe_in(one))}


def _marked(value: Any, safe: Any) -> Any:
    """The value with its text marked as safe where it was."""
    if safe is True:
        return mark_safe(value)  # noqa: S308 (it was said to be safe when it was stored)
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    for at, inside in safe.items():
        key, one = items[at]
        value[key] = _marked(one, inside)
    return value


def encoded_answer(answer: Any, serializer: Serializer | None) -> Any:
    """The bytes of what a loader gives, in what it decides of them."""
    if isinstance(answer, Fresh):
        return replace(answer, value=encoded(answer.value, serializer))
    if isinstance(answer, DontCache):
        return DontCache(encoded(answer.value, serializer))
    return answer if isinstance(answer, Decided) else encoded(answer, serializer)


def _framed(kind: int, value: object) -> bytes:
    try:
        codec, payload = values.encode(value)
    except NotSerializable as error:
        raise NotSerializable(f"{error}: {_HELP}") from None
    return bytes((kind, codec)) + payload


def decoded(data: object, serializer: Serializer | None) -> Any:
    """The value in these bytes; `UNREADABLE` for what is none, or needs another serializer: it counts as absent."""
    try:
        if data == REMOVED:
            return UNREADABLE
        kind, codec, payload = data[0], data[1], data[2:]  # type: ignore[index]
        if kind == SERIALIZED:
            return UNREADABLE if serializer is None else serializer.loads(payload)
        value: Any = values.decode(codec, payload)
        if kind in (SAFE_TEXT, SAFE_INSIDE):
            return _marked(*value) if kind == SAFE_INSIDE else _marked(value, True)
        return _response_of(value) if kind == RESPONSE else value
    except Exception as error:  # noqa: BLE001 (another release's, or other people's: the source is asked in its place)
        if logger.once("can't be read", "value of Django's cache", type(error).__name__):
            logger.warning("a value of Django's cache can't be read, and counts as absent: {}", type(error).__name__)
        return UNREADABLE


def _parts_of(response: HttpResponse) -> dict[str, Any]:
    """What makes a response; one of a subclass comes back as an `HttpResponse`. Raises Django's error where it is not
    rendered."""
    cookies = [[m.key, m.value, m.coded_value, dict(m)] for m in response.cookies.values()]
    return {
        "content": response.content,
        "status": response.status_code,
        "reason": response._reason_phrase,
        "charset": response._charset,
        "headers": [list(item) for item in response.items()],
        "cookies": cookies,
    }


def _response_of(parts: dict[str, Any]) -> HttpResponse:
    response = HttpResponse(
        parts["content"],
        status=parts["status"],
        reason=parts["reason"],
        charset=parts["charset"],
        headers=dict(parts["headers"]),
    )
    for key, value, coded_value, attributes in parts["cookies"]:
        morsel: Morsel[Any] = Morsel()
        morsel.set(key, value, coded_value)
        morsel.update(attributes)
        response.cookies[key] = morsel
    return response
