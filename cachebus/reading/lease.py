"""The right to load one key, one holder over all nodes.

1. `ask` asks L2 for it, once. L2 may answer with a record instead, or say that another node loads.
2. While the load runs, a granted lease is extended.
3. It ends by `store`, which puts what was loaded into L2; else by `rest`, after which who has something to serve leaves
   the source alone; else by `release`, whatever happens.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from math import inf
from typing import NamedTuple, Self

from cachebus.core.ports import Change, LeaseOutcome, LeaseReply, Stale
from cachebus.reading.fetch import MISSING, AsOf, Fetcher
from cachebus.reading.freshness import Fallback, Freshness
from cachebus.reading.request import Found, Request
from cachebus.reading.source import GIVE_UP_S
from cachebus.wire.packing import copier
from cachebus.wire.record import Record

_tokens = itertools.count()


class LeaseAnswer(NamedTuple):
    """What L2 answered who asked for the lease, and as of when."""

    reply: LeaseReply
    as_of: AsOf

    @property
    def outcome(self) -> LeaseOutcome:
        """Which of the answers it is."""
        return self.reply.outcome


class Lease:
    """One flight's lease. To be entered: whatever happens inside, a lease that is still held is given back."""

    __slots__ = ("_clock", "_fetch", "_held", "_lease_ms", "_node", "_request", "_timer", "_token", "budget", "stored")

    def __init__(self, fetcher: Fetcher, request: Request, lease_ms: int, spent_s: float = 0.0) -> None:
        """`lease_ms`: how long L2 lets it live unless it is extended; `spent_s`: what has been waited for L2 before."""
        self._fetch, self._node, self._clock = fetcher, fetcher.node, fetcher.clock
        self._request = request
        self._lease_ms = lease_ms
        self._token = f"{self._node.id}-{next(_tokens):x}"
        self._timer: asyncio.TimerHandle | None = None
        self._held = False
        self.budget = fetcher.budget(spent_s)
        """What is left of what the call may wait for L2."""
        self.stored = False
        """Whether L2 has taken what was loaded."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def wait_anew(self) -> None:
        """From here on it waits for another node, not for L2."""
        self.budget = self._fetch.budget()

    # -- asked, extended, ended -----------------------------------------------------------------------------------

    async def ask(self, tags: Sequence[str], *, refresh: bool = False, stale: Stale = Stale.NONE) -> LeaseAnswer:
        """Ask for the lease once; a granted one is extended from now on.

        `tags`: names of the marks of the tags that the value will carry. `refresh`: also where L2 has a record.
        `stale`: what the caller could serve instead, while the source is left alone. Raises `L2Unavailable`.
        """
        key, store = self._request.key, self._fetch.store
        as_of = AsOf(self._node.shards[key.shard].reserve(), self._clock())
        caller = self._node.caller(key.shard)
        try:
            reply = await self.budget.spent_on(
                store.lease(key, caller, self._token, self._lease_ms, refresh=refresh, stale=stale, tags=tags)
            )
        except BaseException:
            store.release(key, self._token)  # it may have been granted, and nobody would know
            raise
        self._fetch.notice(key.shard, reply.epoch)
        if reply.outcome is LeaseOutcome.GRANTED:
            self._held = True
            self._stop_extending()
            # A load that is given up may take a little longer, to put its things in order.
            lasts_s = self._request.patience_s + self._request.sources * GIVE_UP_S
            self._extend_later(self._clock() + lasts_s)
        return LeaseAnswer(reply, as_of)

    def _extend_later(self, until_s: float) -> None:
        """For no longer than a load may take: a loader that heeds no limit holds nobody up for longer."""

        def extend() -> None:
            if self._clock() < until_s:
                self._fetch.store.extend(self._request.key, self._token, self._lease_ms)
                self._extend_later(until_s)

        self._timer = asyncio.get_running_loop().call_later(self._lease_ms / 3000, extend)

    def _stop_extending(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def store(self, record: Record, px_ms: int, over: bytes) -> Change:
        """Have L2 keep a record for `px_ms`, in the place of the version `over` (b"": of any), if the lease still
        stands; it ends by that. `L2Unavailable` where that may not have happened: then it is still to be given back."""
        self._stop_extending()
        key = self._request.key
        caller = self._node.caller(key.shard)
        change = await self.budget.spent_on(self._fetch.store.fill(key, caller, self._token, record, px_ms, over))
        self._held = False
        self._fetch.notice(key.shard, change.epoch)
        self.stored = change.stored
        return change

    def release(self) -> None:
        """Give the lease back, if it is held; awaits nothing, since a cancelled load may do nothing more."""
        self._stop_extending()
        if self._held:
            self._held = False
            self._fetch.store.release(self._request.key, self._token)

    def rest(self, rest_s: float) -> None:
        """Give the lease back so that who has something to serve leaves the source alone for `rest_s` seconds."""
        self._stop_extending()
        if self._held and rest_s > 0:
            self._held = False
            self._fetch.store.rest(self._request.key, self._token, max(1, int(rest_s * 1000)))

    # -- the record that came with an answer ----------------------------------------------------------------------

    def hit(self, answer: LeaseAnswer) -> Found | None:
        """A record that L2 found valid, as a read's result; None where it can't be decoded."""
        key, record = self._request.key, self._record(answer)
        if record is None:
            return None
        value = self._fetch.decode_and_admit(key, record, answer.as_of if self._request.admits else None)
        return None if value is MISSING else Found(value, "l2", copy=copier(record, value, self._request.rules))

    def left_and_tags(self, answer: LeaseAnswer) -> tuple[float, Sequence[str]]:
        """How long the record has until its hard expiry, in seconds, and its tags."""
        record = self._record(answer)
        if record is None:
            return 0.0, ()
        now_s = self._clock() + self._node.server_clocks[self._request.key.shard].offset_s
        return record.expires_ms / 1000 - now_s if record.expires_ms else inf, record.tags

    def fallback(self, answer: LeaseAnswer) -> Fallback | None:
        """An expired record, which L2 has just validated, where fail-safe allows it."""
        key, rules = self._request.key, self._request.rules
        record = self._record(answer) if rules.fail_safe_s else None
        if record is None or not record.may_be_fallback or self._node.may_predate_lost_guards(key.shard, record):
            return None
        if self._fetch.superseded.covers(key.l1, record.created_ms):
            return None
        value = self._fetch.decode_and_admit(key, record, None)
        if value is MISSING:
            return None
        fresh = Freshness(self._node.shards[key.shard], key, record.tags, answer.as_of.at_s)
        return Fallback(Found(value, "l2", stale=True, copy=copier(record, value, rules)), fresh, record.version)

    def _record(self, answer: LeaseAnswer) -> Record | None:
        data = answer.reply.record
        return None if data is None else self._fetch.decoded(self._request.key, data)
