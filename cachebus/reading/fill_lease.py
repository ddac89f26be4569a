"""The fill lease: the right to load one key, one holder over all nodes.

1. `ask` asks L2 for it, once. L2 may answer with a record instead, or say that another node loads.
2. While the load runs, a granted one is extended.
3. It ends by `store`, which puts what was loaded into L2; else by `cool_down`, after which who has something to serve
   leaves the source alone; else by `release`, whatever happens.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from enum import Enum
from math import inf
from typing import NamedTuple, Self

from cachebus.base.budget import Budget
from cachebus.core.ports import Change, FillLeaseOutcome, FillLeaseReply
from cachebus.core.requests import FallbackKind, FillLeaseRequest, FillRequest
from cachebus.reading.fetch import Fetcher
from cachebus.reading.freshness import Fallback, Freshness
from cachebus.reading.judge import MISSING, AsOf
from cachebus.reading.request import Found, Request
from cachebus.reading.source import GIVE_UP_S
from cachebus.wire.packing import copier
from cachebus.wire.record import VERSION, Record
from cachebus.wire.terms import terms_of

_tokens = itertools.count()


class ExpiredRecord(Enum):
    """What L2 says of an expired record that it may keep for when the source fails."""

    SENT = "it is in the reply"
    NOT_SENT = "nothing is said of it: a guard stands, or another node loads and the asker's own fallback would do"
    NONE = "there is none that would do"


class DatedReply(NamedTuple):
    """What L2 has replied to who asked for the fill lease, and as of when."""

    reply: FillLeaseReply
    as_of: AsOf

    @property
    def outcome(self) -> FillLeaseOutcome:
        """Which of the answers it is."""
        return self.reply.outcome

    @property
    def expired(self) -> ExpiredRecord:
        """What it says of an expired record; not to be asked of a hit."""
        if self.reply.record:
            return ExpiredRecord.SENT
        own_would_do = self.outcome is FillLeaseOutcome.WAIT and self.reply.record == b""
        unsaid = own_would_do or self.outcome is FillLeaseOutcome.GUARDED
        return ExpiredRecord.NOT_SENT if unsaid else ExpiredRecord.NONE


def version_of(dated: DatedReply) -> bytes:
    """That of the record that came, whatever else of it can be read."""
    return (dated.reply.record or b"")[VERSION]


class FillLease:
    """One flight's fill lease. To be entered: whatever happens inside, one that is still held is given back."""

    __slots__ = ("_budget", "_clock", "_fetch", "_held", "_lease_ms", "_node", "_request", "_timer", "_token", "stored")

    def __init__(self, fetcher: Fetcher, request: Request, lease_ms: int, budget: Budget) -> None:
        """`lease_ms`: how long L2 lets it live unless it is extended; `budget`: what the call may wait for L2."""
        self._fetch, self._node, self._clock = fetcher, fetcher.node, fetcher.clock
        self._request = request
        self._lease_ms = lease_ms
        self._budget = budget
        self._token = f"{self._node.id}-{next(_tokens):x}"
        self._timer: asyncio.TimerHandle | None = None
        self._held = False
        self.stored = False
        """Whether L2 has taken what was loaded."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    # -- asked, extended, ended -----------------------------------------------------------------------------------

    async def ask(
        self,
        tags: Sequence[str],
        *,
        refresh: bool = False,
        fallback: FallbackKind = FallbackKind.NONE,
        unreadable: bytes = b"",
    ) -> DatedReply:
        """Ask for the lease once; a granted one is extended from now on.

        `tags`: the scopes of the tags that the value will carry. `refresh`: also where L2 has a record.
        `fallback`: what the caller could serve instead, while the source is left alone. `unreadable`: the version of a
        record that this node can't read, and that is none for it. Raises `L2Unavailable`.
        """
        key, store = self._request.key, self._fetch.store
        as_of = AsOf(self._node.shards[key.shard].reserve(), self._clock())
        caller = self._node.caller(key.shard)
        request = FillLeaseRequest(self._token, self._lease_ms, refresh, fallback, tags, unreadable)
        try:
            reply = await self._budget.spent_on(store.fill_lease(key, caller, request))
        except BaseException:
            store.release(key, self._token)  # it may have been granted, and nobody would know
            raise
        self._fetch.notice(key.shard, reply.epoch)
        if reply.outcome is FillLeaseOutcome.GRANTED:
            self._held = True
            self._stop_extending()
            # A load that is given up may take a little longer, to put its things in order.
            lasts_s = self._request.patience_s + self._request.sources * GIVE_UP_S
            self._extend_later(self._clock() + lasts_s)
        return DatedReply(reply, as_of)

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
        filling = FillRequest(self._token, record, px_ms, over)
        change = await self._budget.spent_on(self._fetch.store.fill(key, caller, filling))
        self._held = False
        self._fetch.notice(key.shard, change.epoch)
        self.stored = change.done
        return change

    def release(self) -> None:
        """Give the lease back, if it is held; awaits nothing, since a cancelled load may do nothing more."""
        self._stop_extending()
        if self._held:
            self._held = False
            self._fetch.store.release(self._request.key, self._token)

    def cool_down(self, cooldown_s: float) -> None:
        """Give the lease back so that who has something to serve leaves the source alone for `cooldown_s` seconds."""
        self._stop_extending()
        if self._held and cooldown_s > 0:
            self._held = False
            self._fetch.store.cool_down(self._request.key, self._token, max(1, int(cooldown_s * 1000)))

    # -- the record that came with an answer ----------------------------------------------------------------------

    def hit(self, dated: DatedReply) -> Found | None:
        """A record that L2 found valid, as a read's result; None where it can't be decoded."""
        key, record = self._request.key, self._record(dated)
        if record is None:
            return None
        value = self._fetch.judge.decode_and_admit(key, record, dated.as_of if self._request.admits else None)
        return None if value is MISSING else Found(value, "l2", copy=copier(record, value, self._request.rules))

    def is_readable(self, dated: DatedReply) -> bool:
        """Whether the record that came, if one did, is of this node's version of the policy."""
        record = self._record(dated)
        return record is not None and record.policy_version == self._request.rules.version

    def left_and_callers_tags(self, dated: DatedReply) -> tuple[float, Sequence[str]]:
        """How long the record has until its hard expiry, in seconds, and the tags that its callers have given."""
        record = self._record(dated)
        if record is None:
            return 0.0, ()
        now_s = self._node.server_now_s(self._request.key.shard)
        tags = terms_of(record.more).split(record.tags)[0]
        return record.expires_ms / 1000 - now_s if record.expires_ms else inf, tags

    def fallback(self, dated: DatedReply) -> Fallback | None:
        """An expired record, which L2 has just validated, where fail-safe allows it."""
        key, rules = self._request.key, self._request.rules
        record = self._record(dated) if rules.fail_safe_s else None
        if record is None or not record.may_be_fallback or self._node.may_predate_lost_guards(key.shard, record):
            return None
        if self._fetch.superseded.covers(key.l1, record.created_ms):
            return None
        value = self._fetch.judge.decode_and_admit(key, record, None)
        if value is MISSING:
            return None
        fresh = Freshness(self._node.shards[key.shard], key, record.tags, dated.as_of.at_s)
        return Fallback(Found(value, "l2", is_fallback=True, copy=copier(record, value, rules)), fresh, record.version)

    def _record(self, dated: DatedReply) -> Record | None:
        data = dated.reply.record
        return None if data is None else self._fetch.judge.decoded(self._request.key, data, looked_up=True)
