"""What can go wrong, grouped by what the caller can do about it.

Every error of this library is a `CacheBusError`. Driver exceptions never leave it: they are mapped where the bytes
are read (`resp/`), so a caller catches these classes and no others. Cancellation is not an error and always passes.
"""

from __future__ import annotations

from typing import Any


class CacheBusError(Exception):
    """Root of every error raised by cachebus."""


class ConfigError(CacheBusError):
    """The set-up is wrong: a setting, a URL, a policy, a cascade, a loader that can't be used, or a call before
    `configure`. Mend the program."""


class ProtocolMismatch(ConfigError):
    """L2 was laid out by nodes with another protocol number, shard count or kind of bus. Names both sides."""


class InvalidKey(CacheBusError, ValueError):
    """A key part is empty, too long, of a wrong type or has control characters. The message names the part."""


class TenantRequired(InvalidKey):
    """No tenant was given and none is ambient. Only the data type `system` may go without."""


class NotSerializable(CacheBusError, TypeError):
    """The value holds something that the codec cannot carry without loss. The message names the type."""

    in_log = ""
    """What the log says in the message's place, where that names keys of dicts: they are data."""


class ValueTooLarge(CacheBusError, ValueError):
    """The encoded value is larger than the policy's `max_value_bytes`."""


class L2Unavailable(CacheBusError, ConnectionError):
    """The shared store was silent for `l2_timeout_s`, refused, or is not connected. Retry later, or go without."""


class BusUnavailable(CacheBusError, ConnectionError):
    """The bus could not be reached where its answer is needed (at start)."""


class InvalidationFailed(CacheBusError):
    """The invalidation did not happen, or nobody knows whether it did: other nodes may go on serving the old value
    until it expires. Call it again until it returns; twice does no harm. The staleness bound counts from the call that
    returned."""

    receipt: Any = None
    """Of an invalidation of several shards that has happened in some: its `Receipt`, which names what has `failed`."""


class LoadTimeout(CacheBusError, TimeoutError):
    """A load took longer than its policy's hard limit."""
