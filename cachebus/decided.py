"""What a loader may decide of what it gives: how long it lives, that it isn't kept, that the old value is still right.

A loader returns its value, or one of these around it. Whoever asked for the value gets the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, Never, TypeAlias, TypeVar, final

from cachebus.base.ids import check_part
from cachebus.base.lifetimes import TTL_MAX_S, check_ttl
from cachebus.errors import ConfigError, InvalidKey

T_co = TypeVar("T_co", covariant=True)

VERSION_MAX_BYTES: Final = 1024


class Decided(Generic[T_co]):
    """What `Fresh`, `DontCache` and `NotModified` have in common: a loader gives them in place of the value."""

    __slots__ = ()


@final
@dataclass(frozen=True, slots=True)
class Fresh(Decided[T_co]):
    """A value, and how it is to be kept: `return Fresh(price, ttl_s=price.valid_s, tags=[f"sku:{price.sku}"])`.

    - `value`: None means not found, and lives for the type's `negative_ttl_s` at most
    - `ttl_s`: seconds that it lives, or `TTL_PERMANENT`; None is the type's. Where callers give a `ttl`, the shortest
      counts
    - `soft_ttl_s`: the age in seconds past which it is refreshed in the background; None is the type's
    - `tags`: names by which it is invalidated, beside those of the type and of the callers. A record takes 255: with
      more the value is given and not kept, which is counted and logged
    - `l1_ttl_s`: seconds that it lives in a node's memory; None is the type's
    - `version`: the source's own, as an ETag, of at most 1024 bytes. A loader with a parameter `previous` gets it back

    Raises `ConfigError` for what is none of this.
    """

    value: T_co
    ttl_s: float | None = None
    soft_ttl_s: float | None = None
    tags: Sequence[str] = ()
    l1_ttl_s: float | None = None
    version: str = ""

    def __post_init__(self) -> None:
        try:
            for name in ("ttl_s", "soft_ttl_s", "l1_ttl_s"):
                given = getattr(self, name)
                if given is not None:
                    object.__setattr__(self, name, check_ttl(given, name))
            self._check_soft()
            object.__setattr__(self, "tags", _checked_tags(self.tags))
        except (ValueError, InvalidKey) as error:
            raise ConfigError(f"Fresh: {error}") from None
        _check_version(self.version)

    def _check_soft(self) -> None:
        for name in ("soft_ttl_s", "l1_ttl_s"):
            if (getattr(self, name) or 0.0) > TTL_MAX_S:
                raise ValueError(f"{name} must have an end: leave it out")
        if self.soft_ttl_s is not None and self.ttl_s is not None and self.soft_ttl_s >= self.ttl_s:
            raise ValueError("soft_ttl_s must be below ttl_s")


@final
@dataclass(frozen=True, slots=True)
class DontCache(Decided[T_co]):
    """A value for those who wait for it, and for nobody else: no level keeps it, and what was kept before goes."""

    value: T_co


@final
@dataclass(frozen=True, slots=True)
class NotModified(Decided[Never]):
    """The source says that what the loader got as `previous` is still right: it lives on with a new lifetime, its old
    tags and its old version. `ConfigError` from a loader that got no `previous`."""


@dataclass(frozen=True, slots=True)
class Previous(Generic[T_co]):
    """What the cache still has while it loads: a parameter of this name has a loader be given it, or None.

    It is past its expiry or soft expiry, and nothing has invalidated it. It is shared: don't change it.
    """

    value: T_co
    version: str = ""
    """As `Fresh` said; "" where it said none."""
    age_s: float = 0.0
    """Seconds since the source was asked for it, or last said that it is right."""
    tags: tuple[str, ...] = ()


T = TypeVar("T")
Answer: TypeAlias = Fresh[T] | DontCache[T] | NotModified | T
"""What a loader of values of this type may give."""


def _checked_tags(tags: object) -> tuple[str, ...]:
    """Each tag once, as text; `ValueError`, `InvalidKey`."""
    if isinstance(tags, str | bytes) or not isinstance(tags, Sequence):
        raise ValueError("tags must be a sequence of strings")
    return tuple(dict.fromkeys(check_part("tag", tag) for tag in tags))


def _check_version(version: object) -> None:
    if not isinstance(version, str):
        raise ConfigError(f"Fresh: version must be a str, not {type(version).__name__}")
    try:
        size_bytes = len(version.encode())
    except UnicodeEncodeError:
        raise ConfigError("Fresh: version is not valid Unicode: it has a lone surrogate") from None
    if size_bytes > VERSION_MAX_BYTES:
        raise ConfigError(f"Fresh: version has {size_bytes} bytes, at most {VERSION_MAX_BYTES}")
