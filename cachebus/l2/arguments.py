"""What the scripts read as ARGV, by name: the one place that knows their order (docs/protocol.md, "The scripts").

1. Every script reads a `Prologue`. Some read a `RowArgs` or an `EventArgs` behind it, which parts of scripts share.
2. Then come a script's own. What comes in any number, such as scopes, is last.
3. `argv` gives all that follows the prologue. A class without it is all that follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cachebus.core.ports import Caller
from cachebus.keys.key import Key
from cachebus.l2.replies import row_rest


class Prologue(NamedTuple):
    """ARGV 1 to 4, of every script."""

    facts: str
    applied: int = 0
    epoch: bytes = b""
    """b"" with no seq applied: of a caller for whom it holds in whichever epoch."""
    bucket: str = ""


class RowArgs(NamedTuple):
    """ARGV 5 and 6, for the part `row`."""

    node: str
    said: bytes
    """What the node packs itself of its row."""

    @classmethod
    def of(cls, caller: Caller) -> RowArgs:
        """The row of a caller."""
        return cls(caller.node, row_rest(caller.about))


class EventArgs(NamedTuple):
    """ARGV 5 to 8, for the parts `publish` and `events`; a script's own begin with the event's body."""

    channel: str
    scopes_max: int
    log_max: int
    log_max_bytes: int


class ProbeArgs(NamedTuple):
    """Of `probe`, behind the row."""

    bound_ms: int
    guard_ms: int
    silent_us: int
    """Rows of nodes that have said nothing for so long are pruned; 0: none."""
    keeps_without_l2: int

    def argv(self, caller: Caller) -> tuple[Any, ...]:
        """Behind the caller's row."""
        return *RowArgs.of(caller), *self


class MarksArgs(NamedTuple):
    """Of `marks`, behind the row."""

    bound_ms: int
    guard_ms: int
    keeps_without_l2: int

    def argv(self, caller: Caller) -> tuple[Any, ...]:
        """Behind the caller's row."""
        return *RowArgs.of(caller), *self


class NodesArgs(NamedTuple):
    """Of `nodes`, behind the row."""

    bound_ms: int
    keeps_without_l2: int

    def argv(self, caller: Caller) -> tuple[Any, ...]:
        """Behind the caller's row."""
        return *RowArgs.of(caller), *self


class ForgetArgs(NamedTuple):
    """Of `forget`."""

    node: str
    lives: int


class ReadArgs:
    """Of `read`, behind the row: for each record the number of its key's scopes, then these."""

    @classmethod
    def argv(cls, caller: Caller, keys: Sequence[Key]) -> tuple[Any, ...]:
        """For the records of these keys."""
        return *RowArgs.of(caller), *(each for key in keys for each in (len(key.scopes), *key.scopes))


class FillLeaseArgs(NamedTuple):
    """Of `fill_lease`, behind the row; the key's scopes follow, then the tags."""

    token: str
    px_ms: int
    refresh: int | bytes
    """The version of a record that the caller can't read, or whether to load whatever is there."""
    fallback: int
    l1_name: str
    scope_count: int

    def argv(self, caller: Caller, scopes: Sequence[str], tags: Sequence[str]) -> tuple[Any, ...]:
        """Behind the caller's row."""
        return *RowArgs.of(caller), *self, *scopes, *tags


class HoldArgs(NamedTuple):
    """Of `hold`."""

    channel: str
    token: str
    px_ms: int
    """0 gives the fill lease back."""
    cools_down: int
    l1_name: str


class FillArgs(NamedTuple):
    """Of `fill`; the key's scopes follow."""

    channel: str
    token: str
    record: bytes
    px_ms: int
    over: bytes
    l1_name: str
    guard_ms: int

    def argv(self, scopes: Sequence[str]) -> tuple[Any, ...]:
        """With the key's scopes."""
        return *self, *scopes


class InvalidateArgs(NamedTuple):
    """Of `invalidate`, behind the event; the scopes follow."""

    body: bytes

    def argv(self, event: EventArgs, scopes: Sequence[str]) -> tuple[Any, ...]:
        """Behind what the shard's events have in common."""
        return *event, *self, *scopes


class GuardArgs(NamedTuple):
    """Of `guard`, behind the event; the scopes follow, then all names that are guarded."""

    body: bytes
    token: str
    px_ms: int
    guarded_max: int
    scope_count: int

    def argv(self, event: EventArgs, scopes: Sequence[str], guarded: Iterable[str]) -> tuple[Any, ...]:
        """Behind what the shard's events have in common. `guarded`: the names of keys, beside the scopes."""
        return *event, *self, *scopes, *guarded, *scopes


class WriteArgs(NamedTuple):
    """Of `write`, behind the event; the key's own scopes follow, then others."""

    body: bytes
    only: bytes
    """b"0": whatever is there; b"1": where there is no valid record; else over which version."""
    own_scope_count: int
    record_header: bytes
    """Up to its check, which the script turns."""
    record_tail: bytes
    px_ms: int
    l1_name: str
    guard_ms: int

    def argv(self, event: EventArgs, own_scopes: Sequence[str], scopes: Sequence[str]) -> tuple[Any, ...]:
        """Behind what the shard's events have in common."""
        return *event, *self, *own_scopes, *scopes


class CounterArgs(NamedTuple):
    """Of `counter`."""

    amount: int
    request: str
    expires_ms: int


class TakeoverArgs(NamedTuple):
    """Of `takeover`."""

    epoch: str
    """The new one."""
    mode: str
    bound_ms: int
    guard_ms: int
    keeps_without_l2: int
    former_epoch: bytes
    """The epoch that is over, as its server does not know."""
