"""What one node may believe of one shard. Pure: no I/O, no await; time and randomness are arguments.

The sequence counter in L2 is the truth, the bus only a fast hint. A node applies events as they come, since dropping is
always safe. It counts as up to date only as far as it has applied them without a gap. A probe of the counter that it
has reached gives it a lease of `bound_s` on its own memory, from when the probe was *sent*.

| predicate | question | who asks | promise (docs/guarantees.md) |
|---|---|---|---|
| `has_heard` | Was this event applied already? | the receiver, of what the log gives | G1 |
| `overtaken` | Was the key dropped since the reservation, by a later seq? | `admits`; joined loads | G1, G2 |
| `hides` | Was a scope invalidated, or a low watermark raised, beyond this seq? | plain gets; L1; `admits` | G1 |
| `below` | Is it a low watermark alone that hides this seq? | `hides`; for the counts | G1 |
| `unchanged` | Is all that is remembered of these scopes as it was? | joined loads | G1 |
| `admits` | May what was read under this reservation enter L1? | `Node.admit` | G1, G2, G5 |
| `serves` | May this entry be served now? | `Node.peek`, `Node.fallback` | G1 |
| `honours` | Is all applied that a receipt stands for? | reads with `after` | G3 |
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from cachebus.core.answers import BEYOND, NEVER, NO_EPOCH, Heard, HeardSoFar, Probed, Reservation, ScopeSnapshot
from cachebus.core.doubts import Doubts
from cachebus.core.invalidated import InvalidatedScopes, forget_older_half
from cachebus.core.ports import Invalidated
from cachebus.keys.key import ALL_TENANTS, TAG, Key, bucket_of_scope
from cachebus.wire.event import NO_BUCKET, NONE_RAISED, LowWatermark

AHEAD_MAX = 65_536
PENDING_PROBES_MAX = 16
MAX_INVALIDATED_SCOPES = 500_000
EPOCHS_MAX = 64
"""Epochs known not to be this shard's any more, or never; and others that were heard of and may be."""


class Shard:
    """One node's view of one shard's history."""

    __slots__ = (
        "_ahead",
        "_invalidated_count",
        "_pending_probes",
        "_recent_drops",
        "_recent_drops_low",
        "_recent_drops_max",
        "_suspects",
        "applied",
        "bound_s",
        "doubts",
        "drop_count",
        "epoch",
        "foreign",
        "former_epochs",
        "highest_seq",
        "index",
        "invalidated",
        "low",
        "max_invalidated_scopes",
        "tags_dropped",
        "valid_until_s",
    )

    def __init__(
        self,
        index: int,
        bound_s: float,
        recent_drops_max: int = 16_384,
        max_invalidated_scopes: int = MAX_INVALIDATED_SCOPES,
    ) -> None:
        self.index = index
        self.max_invalidated_scopes = max_invalidated_scopes
        """How many invalidated scopes are kept at most. L2 leaves out those that it can do without; a node keeps them
        where it can't know which they are."""
        self._invalidated_count = 0
        self.bound_s = bound_s
        self.epoch = NO_EPOCH
        self.applied = 0
        """How far events have been applied without a gap."""
        self.highest_seq = 0
        """The highest seq heard of in this epoch."""
        self.low: dict[str, int] = {}
        """By bucket: its low watermark. Nothing older is believed, as older invalidations are forgotten."""
        self.invalidated: dict[str, InvalidatedScopes] = {}
        """By bucket: the seq of the last invalidation of each scope and tag."""
        self.valid_until_s = NEVER
        """Until when this node may serve its memory of the shard, on its own monotonic clock."""
        self.drop_count = 0
        """Drops applied, of any kind, in the order of this node."""
        self.tags_dropped: dict[str, int] = {}
        """By bucket: the count of the latest drop of any tag in it. A load may turn out to carry that tag."""
        self.doubts = Doubts()
        """Invalidations of which nobody knows whether they happened."""
        self.foreign: dict[bytes, int] = {}
        """Epochs that events have named and that may have begun since, with the highest seq heard of in each."""
        self.former_epochs: dict[bytes, None] = {}
        """Epochs that this shard is not in any more, or never was: L2 has said so since they were heard of. A server
        may be in one, as a primary that was deposed and is the primary again: another epoch is begun there then (see
        `Caller`)."""
        self._suspects: tuple[bytes, ...] = ()
        self._ahead: set[int] = set()
        self._pending_probes: deque[tuple[int, float]] = deque(maxlen=PENDING_PROBES_MAX)
        self._recent_drops: OrderedDict[str, tuple[int, int, int]] = OrderedDict()
        """By name: the count of its latest drop, the highest seq that dropped it, and when it was last forgotten."""
        self._recent_drops_low = 0
        self._recent_drops_max = recent_drops_max

    # -- events -------------------------------------------------------------------------------------------------

    def has_heard(self, epoch: bytes, seq: int) -> bool:
        """Whether an event at this position was applied already, so that nothing in it matters any more."""
        return epoch == self.epoch and (seq <= self.applied or seq in self._ahead)

    def has_left(self, epoch: bytes) -> bool:
        """Whether this epoch is known not to be the shard's: of the latest such ones."""
        return epoch in self.former_epochs

    def hear(self, epoch: bytes, seq: int) -> Heard:
        """Place an event in the history. NEXT and AHEAD must then be applied with `drop`.

        One of another epoch changes nothing, since anybody may have sent it: another store, or a log that is replayed.
        Only a probe moves a node there, and the lease of this epoch ends by itself.
        """
        if epoch != self.epoch:
            if self.has_left(epoch):
                return Heard.LEFT
            if epoch in self.foreign or len(self.foreign) < EPOCHS_MAX:
                self.foreign[epoch] = max(seq, self.foreign.get(epoch, 0))
            return Heard.FOREIGN
        if seq <= self.applied or seq in self._ahead:
            return Heard.OLD
        if seq > self.highest_seq:
            self.highest_seq = seq
        if seq != self.applied + 1:
            self._ahead.add(seq)
            return Heard.AHEAD
        self.applied = seq
        while self._ahead and self.applied + 1 in self._ahead:
            self.applied += 1
            self._ahead.remove(self.applied)
        if self._pending_probes:
            self._renew()
        return Heard.NEXT

    def drop(
        self,
        seq: int,
        keys: Iterable[str],
        scopes: Iterable[str],
        *,
        passing: Iterable[str] = (),
        low: LowWatermark = NONE_RAISED,
    ) -> bool:
        """Apply an event's body: from now on nothing that it replaced is believed.

        `passing`: scopes that only overtake what is under way: nothing that is stored lies in them, or it is doubted.
        `low`: a low watermark that it has raised. Gives whether any low watermark was raised.
        """
        self.drop_count += 1
        recent_drops = self._recent_drops
        for key in (*keys, *passing):
            before = recent_drops.pop(key, None)  # re-inserted last, so that the oldest fall out first
            highest, forgotten = (0, 0) if before is None else before[1:]
            if seq == BEYOND:  # whatever is under way is void; what begins later is not
                forgotten = self.drop_count
            elif seq > highest:
                highest = seq
            recent_drops[key] = (self.drop_count, highest, forgotten)
        while len(recent_drops) > self._recent_drops_max:
            self._recent_drops_low = max(self._recent_drops_low, recent_drops.popitem(last=False)[1][0])
        self.tags_dropped.update((bucket_of_scope(s), self.drop_count) for s in (*scopes, *passing) if s[0] == TAG)
        touched: dict[str, int] = {}
        for scope in scopes:
            its = bucket_of_scope(scope)
            touched[its] = touched.get(its, 0) + 1
            invalidated = self.invalidated.get(its)
            if invalidated is None:
                invalidated = self.invalidated[its] = InvalidatedScopes()
            self._invalidated_count += invalidated.note(scope, seq)
        raised = low.bucket != NO_BUCKET and low.seq > self.low.get(low.bucket, 0)
        if raised:
            self.low[low.bucket] = low.seq
            touched.setdefault(low.bucket, 0)
        for its, count in touched.items():
            invalidated = self.invalidated.get(its)
            if invalidated is not None:
                self._invalidated_count -= invalidated.prune(self.low.get(its, 0), count)
                if not invalidated:
                    del self.invalidated[its]
        if self._invalidated_count > self.max_invalidated_scopes:
            forget_older_half(self.invalidated, self.low)
            self._invalidated_count = sum(map(len, self.invalidated.values()))
            return True
        return raised

    @property
    def has_gap(self) -> bool:
        """Whether events are known to be missing."""
        return self.highest_seq > self.applied

    def unheard(self, seq: int) -> int:
        """How many events up to this one were never applied, in order or behind a gap."""
        return max(0, seq - self.applied - sum(ahead <= seq for ahead in self._ahead))

    @property
    def flooded(self) -> bool:
        """Whether so many events wait behind a gap that waiting for it costs more than a flush."""
        return len(self._ahead) > AHEAD_MAX

    # -- the lease ----------------------------------------------------------------------------------------------

    def probed(self, epoch: bytes, seq: int, sent_at_s: float) -> Probed:
        """Take in a probe's reply: the shard's epoch and seq as L2 had them after `sent_at_s`."""
        if epoch != self.epoch:
            self.lapse()
            return Probed.FOREIGN
        for foreign in self._suspects:  # L2 says, later than they were heard of, that this epoch is the present one
            self.foreign.pop(foreign, None)
            self._leave(foreign)
        self._suspects = ()
        self.highest_seq = max(self.highest_seq, seq)
        self._pending_probes.append((seq, sent_at_s))
        self._renew()
        return Probed.BEHIND if self._pending_probes else Probed.RENEWED

    def _renew(self) -> None:
        """Renew the lease for every probe whose seq has been applied by now.

        Each is kept until then, not only the latest: under a flood of events a node that lags longer than the time
        between two probes would otherwise never reach the one that counts.
        """
        pending = self._pending_probes
        while pending and self.applied >= pending[0][0]:
            self.valid_until_s = max(self.valid_until_s, pending.popleft()[1] + self.bound_s)

    @property
    def fresh_as_of_s(self) -> float:
        """When the probe behind the lease was sent: what is read under the lease is at least as fresh as that."""
        return self.valid_until_s - self.bound_s

    def lapse(self) -> None:
        """Give the lease up now."""
        self.valid_until_s = NEVER
        self._pending_probes.clear()

    # -- beginnings ---------------------------------------------------------------------------------------------

    def probe_sent(self) -> None:
        """A probe is sent. An epoch that was heard of before, and that its reply does not name, is not this shard's."""
        self._suspects = tuple(self.foreign)

    def begin_asking(self) -> HeardSoFar:
        """A question is sent whose answer goes to `begin_epoch`: forget what was heard of other epochs before it.
        Returns how far this one has been heard, for `begin_epoch` to compare with."""
        self.foreign.clear()
        return HeardSoFar(self.epoch, self.highest_seq)

    def _leave(self, epoch: bytes) -> None:
        self.former_epochs.pop(epoch, None)
        self.former_epochs[epoch] = None
        if len(self.former_epochs) > EPOCHS_MAX:
            del self.former_epochs[next(iter(self.former_epochs))]

    def begin_epoch(
        self, epoch: bytes, seq: int, replied: Invalidated, sent_at_s: float, asked: HeardSoFar | None = None
    ) -> None:
        """Begin anew from a probe's reply with the invalidated scopes: at start, in another epoch, or over a trimmed
        log.

        Nothing held before is believed, and whatever is under way is overtaken. Only this moves a node into another
        epoch: an event alone does not, since it says nothing of what was invalidated before.

        The reply knows all up to `seq`. Of what the bus has brought beyond `seq`,

        1. what came before the question was sent (`asked`: what `begin_asking` gave) is forgotten: L2 knows better;
        2. what came since, of the epoch that the node is in, is applied already, and stays;
        3. what came since, of the epoch that now begins, could not be applied: no lease before it is.
        """
        self.void()
        before = self.epoch
        asked = asked or HeardSoFar(before, BEYOND)
        # Where the node has entered `before` only since the question, all that it has heard of it came since (2).
        known_when_asked = asked.highest_seq if asked.epoch == before else 0
        if epoch == before and self.highest_seq > max(seq, known_when_asked):
            replied = self._with_what_is_newer(seq, replied)
            self._ahead = {later for later in self._ahead if later > max(seq, self.applied)}
            self.applied, self.highest_seq = max(seq, self.applied), max(seq, self.highest_seq)
        else:
            self._ahead = set()
            self.applied = self.highest_seq = seq
        if before not in (NO_EPOCH, epoch):
            self._leave(before)
        self.doubts.settle(sent_at_s)
        self.epoch, self.low = epoch, dict(replied.low)
        self.invalidated = {bucket: InvalidatedScopes(its.items()) for bucket, its in replied.by_bucket.items() if its}
        self._invalidated_count = sum(map(len, self.invalidated.values()))
        must_apply = max(seq, self.foreign.pop(epoch, 0))  # (3)
        self.highest_seq = max(self.highest_seq, must_apply)
        while self.applied + 1 in self._ahead:
            self.applied += 1
            self._ahead.remove(self.applied)
        self._pending_probes.append((must_apply, sent_at_s))
        self._renew()

    def _with_what_is_newer(self, seq: int, replied: Invalidated) -> Invalidated:
        """The invalidated scopes and low watermarks of a reply that knows all up to `seq`, and those heard beyond
        it."""
        by_bucket = {bucket: dict(its) for bucket, its in replied.by_bucket.items()}
        for bucket, its in self.invalidated.items():
            by_bucket.setdefault(bucket, {}).update((name, at) for name, at in its.items() if at > seq)
        low = {bucket: max(replied.low.get(bucket, 0), self.low.get(bucket, 0)) for bucket in {*replied.low, *self.low}}
        return Invalidated(by_bucket, low)

    def void(self) -> None:
        """Overtake everything that is under way, and give up the lease."""
        self.drop_count += 1
        self._recent_drops.clear()
        self._recent_drops_low = self.drop_count
        self.lapse()

    # -- what may be believed -------------------------------------------------------------------------------------

    def tag_dropped_since(self, reservation: Reservation, bucket: str) -> bool:
        """Whether any tag of the bucket was invalidated, or doubted, since the reservation was taken."""
        return self.tags_dropped.get(bucket, 0) > reservation.drops

    def reserve(self) -> Reservation:
        """To be taken before a read, load or write begins; see `admits`."""
        return Reservation(self.epoch, self.drop_count, self.applied)

    def overtaken(self, reservation: Reservation, key: str, seq: int, everywhere: str = "") -> bool:
        """Whether an event beyond `seq` touched the key, or everything, since the reservation was taken. `everywhere`:
        the scope of its id in all contexts, where it has one."""
        if reservation.drops == self.drop_count:
            return False
        if reservation.drops < self._recent_drops_low:
            return True
        for name in (key, everywhere) if everywhere else (key,):
            drop = self._recent_drops.get(name)
            if drop is None:
                continue
            latest, highest_seq, forgotten = drop
            if latest > reservation.drops and (highest_seq > seq or forgotten > reservation.drops):
                return True
        return False

    def hides(self, seq: int, bucket: str, scopes: Iterable[str]) -> bool:
        """Whether a low watermark, or the last invalidation of one of these scopes and tags, is beyond the seq of a
        record in a key of this bucket."""
        if self.below(seq, bucket):
            return True
        for its in (bucket, ALL_TENANTS):
            invalidated = self.invalidated.get(its)
            if invalidated:
                for name in scopes:
                    if invalidated.get(name, 0) > seq:
                        return True
        return False

    def below(self, seq: int, bucket: str) -> bool:
        """Whether a record's seq is below a low watermark. It may have been replaced: nobody remembers."""
        low = self.low
        return bool(low) and (seq < low.get(bucket, 0) or seq < low.get(ALL_TENANTS, 0))

    def snapshot(self, bucket: str, scopes: Iterable[str]) -> ScopeSnapshot:
        """What is remembered of these scopes and tags now. A load that others may join notes it when it begins."""
        found = [its for its in (self.invalidated.get(bucket), self.invalidated.get(ALL_TENANTS)) if its]
        invalidated = {name: max((its.get(name, 0) for its in found), default=0) for name in scopes}
        return ScopeSnapshot((self.low.get(bucket, 0), self.low.get(ALL_TENANTS, 0)), invalidated)

    def unchanged(self, bucket: str, noted: ScopeSnapshot) -> bool:
        """Whether nothing of what was noted has been invalidated since. To compare `invalidated_at` with `applied`
        would not tell: an event that was heard behind a gap is beyond `applied`, and may be older than the note."""
        return self.snapshot(bucket, noted.invalidated_at) == noted

    def admits(self, reservation: Reservation, key: Key, scopes: Iterable[str], epoch: bytes, seq: int) -> bool:
        """Whether what was read, loaded or written under the reservation may enter L1. `scopes`: those of the key, and
        the value's tags. `epoch`, `seq`: the value's position."""
        return (
            epoch == self.epoch == reservation.epoch
            and not self.overtaken(reservation, key.l1, seq, key.everywhere)
            and not self.hides(seq, key.family.bucket, scopes)
            and not (self.doubts.scopes and self.doubts.cover(scopes, reservation.drops))
        )

    def serves(self, now_s: float, expires_s: float, read_until_s: float) -> bool:
        """The serving rule of L1: unexpired, and either under the lease or within the bound of its own reading."""
        return now_s < expires_s and (now_s < self.valid_until_s or now_s < read_until_s)

    def honours(self, epoch: bytes, seq: int) -> bool:
        """Whether this node has applied all that a session token stands for."""
        return epoch == self.epoch and self.applied >= seq
