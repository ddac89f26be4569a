"""Ids that are not plain: some stand for a plain one, some are none, whatever they say of themselves."""

from __future__ import annotations

from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

from asyncpg.pgproto import pgproto

HEX = "00000000-0000-0000-0000-00000000002a"


class Word(StrEnum):
    """Its format is its text."""

    ACME = "acme"


class Plan(str, Enum):  # noqa: UP042 (services have these: their format() and their text differ)
    """Its format is "Plan.ACME", and in some versions of Python its text is, too."""

    ACME = "acme"


class Other(str):
    """A str that writes itself as somebody else's, and equals everything."""

    __slots__ = ()

    def __str__(self) -> str:
        return "other"

    __repr__ = __format__ = __str__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return hash("other")


class Number(int, Enum):
    """Its format is "Number.SEVEN"."""

    SEVEN = 7


class Whole(IntEnum):
    """Its format is its digits."""

    SEVEN = 7


class OtherNumber(int):
    """An int that writes itself as another."""

    __slots__ = ()

    def __str__(self) -> str:
        return "8"

    __repr__ = __format__ = __str__  # type: ignore[assignment]

    def __lt__(self, other: object) -> bool:
        return True

    __gt__ = __lt__


class OtherUUID(UUID):
    """A UUID that writes itself as somebody else's."""

    def __str__(self) -> str:
        return "other"

    __repr__ = __format__ = __str__  # type: ignore[assignment]


STAND_FOR: list[tuple[Any, str]] = [
    (Word.ACME, "acme"),
    (Plan.ACME, "acme"),
    (Other("acme"), "acme"),
    (7, "7"),
    (Number.SEVEN, "7"),
    (Whole.SEVEN, "7"),
    (OtherNumber(7), "7"),
    (UUID(HEX), HEX),
    (OtherUUID(HEX), HEX),
    (pgproto.UUID(HEX), HEX),
]
"""Ids, and the text by which each is one and the same as a plain one."""


class Row:
    """An object of some database's mapper, with the name of a tenant."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name

    __repr__ = __format__ = __str__  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.name)


class Lazy(Row):
    """One that says that it is a str, as lazy objects of several libraries do."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        return str


class Unhashable(Row):
    """One that can't be a key of a dict either."""

    __hash__ = None  # type: ignore[assignment]


HUGE = 10**5_000
"""Of more digits than Python writes."""
ARE_NONE: list[Any] = [
    True,
    False,
    1.0,
    b"acme",
    bytearray(b"acme"),
    ("acme",),
    ["acme"],
    {"acme": 1},
    object(),
    str,
    Row("acme"),
    Lazy("acme"),
    Unhashable("acme"),
    HUGE,
    -HUGE,
    OtherNumber(HUGE),
    10**513,
    "",
    Other(""),
    "a\x1fb",
    Other("a\nb"),
    "a\ud800",
    "x" * 513,
]
"""What is no id. None is missing: in some places it means that no id is given."""


def as_written(one: Any) -> str:
    """What a careless f-string makes of it, or "written" where nothing that could be an id comes of that."""
    try:
        text = f"{one}"
    except (TypeError, ValueError):
        return "written"
    return text if text.isprintable() and 0 < len(text) < 100 else "written"
