"""The rules of coherence, and the library without one of them: each is here because a schedule breaks a promise
without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from cachebus.base.clock import WALL_S
from cachebus.core import membership
from cachebus.core.admission import Offer
from cachebus.core.answers import NEVER, Heard, Probed
from cachebus.core.details import Details
from cachebus.core.doubts import Doubts
from cachebus.core.groups import Groups
from cachebus.core.node import Node
from cachebus.core.ports import Invalidated, NodeRow
from cachebus.core.requests import FillRequest
from cachebus.core.shard import Shard
from cachebus.keys.key import ALL_TENANTS
from cachebus.l2.memory import MemoryShard
from cachebus.l2.memory_invalidated import MemoryInvalidated
from cachebus.listening.catch_up import CatchUp
from cachebus.reading import freshness, get_or_load
from cachebus.reading.fetch import Fetcher
from cachebus.reading.fill_lease import FillLease
from cachebus.reading.flight import Flight
from cachebus.reading.freshness import Fallback, Freshness
from cachebus.reading.judge import MISSING, AsOf, Judge
from cachebus.wire import event as events
from cachebus.writing.delivery import Delivery
from tests.model.frozen import BOUND, INF

Crippled = Callable[..., Any]


@dataclass(frozen=True)
class Rule:
    """A rule, how to take it away, and where that shows: the set-up and the promise that is then broken."""

    says: str
    setup: str
    breaks: str
    without: tuple[tuple[Any, str, Crippled], ...]


def _takeover_off(*operations: str) -> tuple[tuple[type, str, Crippled], ...]:
    """These scripts do not look whether the server is still the one that meta speaks of."""

    def blind(operation: str) -> Crippled:
        real = getattr(MemoryShard, operation)

        def crippled(shard: MemoryShard, *arguments: Any) -> Any:
            with patch.object(shard, "arrive", lambda caller, bucket=None: None, create=True):
                return real(shard, *arguments)

        return crippled

    return tuple((MemoryShard, operation, blind(operation)) for operation in operations)


def _hear_any_epoch(shard: Shard, epoch: bytes, seq: int, hear: Crippled = Shard.hear) -> Heard:
    return hear(shard, shard.epoch, seq)


def _probed_any_epoch(shard: Shard, epoch: bytes, seq: int, sent_s: float, probed: Crippled = Shard.probed) -> Probed:
    return probed(shard, shard.epoch, seq, sent_s)


def _hear_over_gaps(shard: Shard, epoch: bytes, seq: int, hear: Crippled = Shard.hear) -> Heard:
    heard = hear(shard, epoch, seq)
    if heard is Heard.AHEAD:
        shard.applied = seq
        shard._ahead.clear()
    return heard


def _replay_over_gaps(catch_up: CatchUp, shard: int, entries: list[Any], replay: Crippled = CatchUp._replay) -> bool:
    view = catch_up._node.shards[shard]
    for entry in entries:
        view.applied = max(view.applied, entry.seq - 1)
        replay(catch_up, shard, [entry])
    view.applied = view.highest_seq
    view._ahead.clear()
    view._renew()
    return True


def _enter_by_event(node: Node, shard: int, event: Any, hear: Crippled = Node.hear) -> Heard:
    view = node.shards[shard]
    if event.epoch > view.epoch:
        node.void(shard, "epoch")
        view.begin_epoch(event.epoch, event.seq - 1, Invalidated({}, {}), NEVER)
    return hear(node, shard, event)


def _enter_without_low(
    shard: Shard,
    epoch: bytes,
    seq: int,
    told: Invalidated,
    sent_s: float,
    asked: int,
    begin_epoch: Crippled = Shard.begin_epoch,
) -> None:
    begin_epoch(shard, epoch, seq, told._replace(low={}), sent_s, asked)


def _drop_what_passes_by(
    shard: Shard, seq: int, keys: Any, scopes: Any, *, passing: Any = (), drop: Crippled = Shard.drop, **low: Any
) -> bool:
    return drop(shard, seq, keys, scopes, **low)


def _pass_all_ids_by(groups: Groups, shard: int, scopes: Any) -> Any:
    ids = [scope for scope in scopes if scope[0] == "I"]
    return [scope for scope in scopes if scope not in ids], ids


def _wrote_anywhere(node: Node, shard: int, change: Any, body: bytes, part: Any) -> None:
    node.hear(shard, events.with_header(change.event_header, body, [part]))


def _decoded_unchecked(data: bytes, decode: Crippled = events.decode) -> Any:
    return decode(data[:46] + events._check(data[:46] + data[54:58]) + data[54:])


def _settle_all(shard: Shard) -> None:
    while shard._pending_probes:
        shard.valid_until_s = max(shard.valid_until_s, shard._pending_probes.popleft()[1] + shard.bound_s)


def _probed_on_reply(
    node: Node, shard: int, reply: Any, sent_s: float, now_s: float, probed: Crippled = Node.probed
) -> Probed:
    return probed(node, shard, reply, now_s, now_s)


def _arrive_counting_no_marks(
    shard: MemoryShard, caller: Any, *rest: Any, arrive: Crippled = MemoryShard.arrive
) -> None:
    shard.invalidated.counted = {bucket: len(its) for bucket, its in shard.invalidated.by_bucket.items()}
    arrive(shard, caller, *rest)


def _hidden_in_any_epoch(shard: MemoryShard, record: Any, key: Any, hidden: Crippled = MemoryShard.hidden) -> bool:
    with patch.object(shard, "epoch", record.epoch):
        return hidden(shard, record, key)


def _end_any_lease(shard: MemoryShard, key: Any) -> None:
    shard.fill_leases.pop(key.l2, None)


def _forget_only_records(shard: MemoryShard, keys: Any) -> None:
    for key in keys:
        shard.records.pop(key.l2, None)


def _fill_as_of_now(
    shard: MemoryShard, key: Any, caller: Any, request: FillRequest, fill: Crippled = MemoryShard.fill
) -> Any:
    request.record.seq = shard.seq
    return fill(shard, key, caller, request)


def _trim_silently(invalidated: MemoryInvalidated, excess: int, trim: Crippled = MemoryInvalidated._trim) -> Any:
    trim(invalidated, excess)
    invalidated.low.clear()
    return events.NONE_RAISED


def _hide_by_own_bucket(
    invalidated: MemoryInvalidated, seq: int, bucket: str, scopes: Any, hide: Crippled = MemoryInvalidated.hide
) -> bool:
    with patch.dict(invalidated.by_bucket, {ALL_TENANTS: {}}):
        return hide(invalidated, seq, bucket, scopes)


def _judged_in_any_epoch(judge: Judge, key: Any, data: bytes, *rest: Any, judged: Crippled = Judge.judged) -> object:
    return judged(judge, key, data[:4] + judge.node.shards[0].epoch + data[20:], *rest)


def _judge_anywhere(fetcher: Fetcher, shard: Shard, after: Any) -> bool:
    return fetcher.clock() < shard.valid_until_s and (after is None or shard.honours(after.epoch, after.seq))


def _judge_without_lease(fetcher: Fetcher, shard: Shard, after: Any) -> bool:
    return fetcher.store.checked[0] and (after is None or shard.honours(after.epoch, after.seq))


def _fresh_when_read(judge: Judge, key: Any, as_of: Crippled = Judge.as_of) -> Any:
    return AsOf(as_of(judge, key).reservation, judge.clock())


def _join_at_any_age(flight: Flight, request: Any, joinable: Crippled = Flight.joinable) -> bool:
    with patch.object(flight.fresh._shard, "valid_until_s", INF):
        return joinable(flight, request)


def _join_whatever_tags(flight: Flight, request: Any, joinable: Crippled = Flight.joinable) -> bool:
    noted = flight.fresh._snapshot
    invalidated = {name: seq for name, seq in noted.invalidated_at.items() if name in request.key.scopes}
    with (
        patch.object(flight.fresh, "_snapshot", noted._replace(invalidated_at=invalidated)),
        patch.object(Freshness, "knows", _yes),
    ):
        return joinable(flight, request)


def _join_with_any_token(flight: Flight, request: Any, joinable: Crippled = Flight.joinable) -> bool:
    return joinable(flight, request._replace(after=None))


def _take_as_answered(
    judge: Judge, key: Any, record: Any, enters: Any, data: bytes = b"", *, own: Crippled = Judge.decode_and_admit
) -> object:
    found = own(judge, key, record, enters, data)
    if found is not MISSING:
        return found
    with patch.object(Shard, "hides", _no):
        return own(judge, key, record, None, data)


def _keep_from_itself(delivery: Delivery, plan: Any, change: Any, body: bytes) -> None:
    pass


def _end_at_once(*arguments: Any, judged: Crippled = membership.judged) -> Any:
    return judged(*arguments)[0], True


def _end_with_rows_that_stand_still(
    watch: Any, reply: Any, change: Any, after_s: float, now_s: float, judged: Crippled = membership.judged
) -> Any:
    moving = {node: row for node, row in reply.rows.items() if row.at_us / 1e6 - WALL_S > now_s - BOUND}
    applied = {"nobody": NodeRow(1 << 62, reply.epoch, 0)}
    return judged(watch, reply._replace(rows=moving or applied), change, after_s, now_s)


def _trust_any_set(watch: Any, reply: Any, change: Any, *rest: Any, judged: Crippled = membership.judged) -> Any:
    watch.saw(reply.name, 0.0)
    watch.since_s = -INF
    return judged(watch, reply._replace(rows=reply.rows or {"nobody": NodeRow(1 << 62, reply.epoch, 0)}), change, *rest)


def _not_in_doubt(real: Crippled) -> Crippled:
    def crippled(its: Any, *arguments: Any, **more: Any) -> Any:
        with patch.object(Node, "may_predate_lost_guards", _no):
            return real(its, *arguments, **more)

    return crippled


def _admit_alone_as_any(node: Node, offer: Offer, admit: Crippled = Node.admit) -> bool:
    admitted = admit(node, offer)
    if admitted and not offer.fenced:
        entry = node.l1.entries[offer.key.l1]
        entry.extra = Details(fallback_until_s=entry.expires_s + offer.fallback_s)
    return admitted


def _fallback_from_now(node: Node, request: Any) -> Fallback | None:
    found = freshness.fallback_in_l1(node, request)
    if found is not None:
        found.fresh.date_from(node.clock())
    return found


def _fallback_for_ever(lease: FillLease, answer: Any, fallback: Crippled = FillLease.fallback) -> Fallback | None:
    found: Fallback | None = fallback(lease, answer)
    if found is not None:
        found.fresh.date_from(INF)
    return found


def _leased_for_long(operation: str) -> Crippled:
    """A lease lasts as long as it is asked for, whatever guards may have been lost."""
    real = getattr(MemoryShard, operation)

    def crippled(shard: MemoryShard, *arguments: Any, **more: Any) -> Any:
        with patch.object(shard, "lost_guards_end_ms", lambda *_: None, create=True):
            return real(shard, *arguments, **more)

    return crippled


_no = lambda *_, **__: False  # noqa: E731
_yes = lambda *_, **__: True  # noqa: E731

RULES = {
    "lease": Rule(
        "L1 is served only under the coherence lease, or within D of the value's own reading",
        "SMALL",
        "G1",
        ((Shard, "serves", lambda shard, now_s, expires_s, read_until_s: now_s < expires_s),),
    ),
    "behind": Rule(
        "a probe renews the lease only once its seq is applied", "SMALL", "G1", ((Shard, "_renew", _settle_all),)
    ),
    "sent": Rule("the lease runs from when the probe was sent", "LATE", "G1", ((Node, "probed", _probed_on_reply),)),
    "every row": Rule(
        "who waits for the nodes waits for each of them", "STRONG", "G4", ((membership, "judged", _end_at_once),)
    ),
    "rows that stand still": Rule(
        "... also for one whose row stands still: it may load for itself",
        "STRONG-ALONE",
        "G4",
        ((membership, "judged", _end_with_rows_that_stand_still),),
    ),
    "who may load alone": Rule(
        "... and longer, where nodes keep what they load alone",
        "STRONG-LOST-ALONE",
        "G4",
        ((membership, "complete_after_s", lambda bound_s, **_: bound_s),),
    ),
    "name of the set": Rule(
        "... and for D, where rows may have been lost", "STRONG-LOST", "G4", ((membership, "judged", _trust_any_set),)
    ),
    "largest bound": Rule(
        "D is the largest of the fleet",
        "STRONG-BOUND",
        "G4",
        (
            (membership, "first_bound_s", lambda own_s, *_: own_s),
            (membership, "largest_bound_s", lambda _, own_s: own_s),
        ),
    ),
    "event's check": Rule(
        "an event with a changed header is none", "GARBLED", "G1", ((events, "decode", _decoded_unchecked),)
    ),
    "own reply of another epoch": Rule(
        "a reply of another epoch to an own write drops all that the node holds",
        "OWN-FAILOVER",
        "G2",
        ((Node, "wrote", _wrote_anywhere),),
    ),
    "types in contexts": Rule(
        "an id in all contexts needs its mark once a lease or record of its type lies in one",
        "CONTEXTS",
        "I1/G5",
        ((MemoryShard, "note_contexts", lambda *_: None),),
    ),
    "ids that pass by": Rule(
        "an id that has no mark concerns what is under way all the same",
        "CONTEXTS-OWN",
        "G2",
        ((Shard, "drop", _drop_what_passes_by),),
    ),
    "ids held in contexts": Rule(
        "... and what this node alone holds", "CONTEXTS-OWN", "G2", ((Groups, "split", _pass_all_ids_by),)
    ),
    "scopes of all tenants": Rule(
        "a record lies in scopes of all tenants too",
        "SHAPE-Y",
        "I1/G5",
        ((MemoryInvalidated, "hide", _hide_by_own_bucket),),
    ),
    "reservation": Rule(
        "what was read, loaded or written while its key was invalidated does not enter L1",
        "SMALL",
        "G1",
        ((Shard, "overtaken", _no),),
    ),
    "own reservation": Rule("a value that the node sets is reserved too", "OWN", "G2", ((Shard, "overtaken", _no),)),
    "doubts": Rule(
        "what a write of unknown outcome may have replaced is not believed: neither what is held",
        "OWN-OUTAGE",
        "G2",
        ((Doubts, "cover", _no),),
    ),
    "doubts of plain gets": Rule(
        "... nor what a plain get brings, by marks of before it", "OWN-OUTAGE", "G2", ((Doubts, "open", _no),)
    ),
    "own events": Rule(
        "own invalidations are applied here before the call returns",
        "OWN",
        "G2",
        ((Delivery, "_apply", _keep_from_itself),),
    ),
    "epoch": Rule(
        "events and probes of another epoch are not taken for one's own",
        "SMALL",
        "G1",
        ((Shard, "hear", _hear_any_epoch), (Shard, "probed", _probed_any_epoch)),
    ),
    "enter by probe": Rule(
        "only a probe's reply, with marks, moves a node into another epoch",
        "CROSS",
        "G3",
        ((Node, "hear", _enter_by_event),),
    ),
    "takeover": Rule(
        "every script begins a new epoch on another server than meta's",
        "SMALL",
        "I1/G5",
        _takeover_off("probe", "read", "fill_lease", "fill", "invalidate", "write"),
    ),
    "takeover by reads": Rule("the reading script does so too", "SMALL", "I1/G5", _takeover_off("read")),
    "takeover by probes": Rule("the probe does so too", "SMALL", "G1", _takeover_off("probe")),
    "marks are counted": Rule(
        "lost marks begin a new epoch", "LOST", "I1/G5", ((MemoryShard, "arrive", _arrive_counting_no_marks),)
    ),
    "record fence": Rule(
        "L2 believes no record of another epoch", "SMALL", "I1/G5", ((MemoryShard, "hidden", _hidden_in_any_epoch),)
    ),
    "record fence on plain gets": Rule("nor does a node", "SMALL", "G1", ((Judge, "judged", _judged_in_any_epoch),)),
    "lease token": Rule(
        "a fill without its live lease is refused",
        "SMALL",
        "I1/G5",
        ((MemoryShard, "holds", _yes), (MemoryShard, "end_lease", _end_any_lease)),
    ),
    "whose lease": Rule(
        "a fill needs its own lease, not anyone's",
        "SECOND",
        "I1/G5",
        ((MemoryShard, "holds", lambda shard, key, token: key.l2 in shard.fill_leases),),
    ),
    "the lease goes too": Rule(
        "an invalidation of a key ends its lease",
        "SMALL",
        "I1/G5",
        ((MemoryShard, "forget_keys", _forget_only_records),),
    ),
    "seq of the lease": Rule(
        "a record carries the seq of its lease, not that of its fill",
        "SMALL",
        "I1/G5",
        ((MemoryShard, "fill", _fill_as_of_now),),
    ),
    "catch-up": Rule("a gap in the events counts as a gap", "TRIM", "G1", ((Shard, "hear", _hear_over_gaps),)),
    "contiguity": Rule(
        "the log is trimmed silently, so a gap in it counts too",
        "TRIM",
        "G1",
        ((CatchUp, "_replay", _replay_over_gaps),),
    ),
    "void on flush": Rule(
        "a flush marks every flight under way", "TRIM", "G1", ((Shard, "void", lambda shard: shard.lapse()),)
    ),
    "marks": Rule(
        "what a plain get brings is checked against the node's marks", "SMALL", "G1", ((Shard, "hides", _no),)
    ),
    "scopes in L1": Rule(
        "a scope's event makes the entries in it doubtful", "SMALL", "G1", ((Groups, "touched", lambda *_, **__: []),)
    ),
    "keys in L1": Rule("a key's event drops its entry", "SMALL", "G1", ((Node, "_drop_keys", lambda *_: None),)),
    "low watermarks": Rule(
        "a node takes the low watermarks over with the marks",
        "FLOOR",
        "G1",
        ((Shard, "begin_epoch", _enter_without_low),),
    ),
    "low watermarks in L2": Rule(
        "a mark that had to go raises its bucket's low watermark",
        "FLOOR",
        "I1/G5",
        ((MemoryInvalidated, "_trim", _trim_silently),),
    ),
    "known server": Rule(
        "plain gets only from a server that has answered a probe",
        "SMALL",
        "G1",
        ((Fetcher, "may_judge", _judge_anywhere),),
    ),
    "lease for plain gets": Rule(
        "plain gets only under the lease: else the node's marks are too old",
        "SMALL",
        "G1",
        ((Fetcher, "may_judge", _judge_without_lease),),
    ),
    "fresh as the probe": Rule(
        "what a plain get brings is as fresh as the probe behind the lease",
        "SMALL",
        "G1",
        ((Judge, "as_of", _fresh_when_read),),
    ),
    "heard meanwhile": Rule(
        "what L2 found valid is looked at again: the node may have heard more by now",
        "TAG-READ",
        "G3",
        ((Judge, "decode_and_admit", _take_as_answered), (Shard, "tag_dropped_since", _no)),
    ),
    "joining": Rule(
        "a flight is joined only while a value of its age could be served", "SMALL", "G1", ((Flight, "joinable", _yes),)
    ),
    "joining in time": Rule(
        "... and only within D of its beginning, or under the lease",
        "SMALL",
        "G1",
        ((Flight, "joinable", _join_at_any_age),),
    ),
    "joining with tags": Rule(
        "... and only while none of its tags was invalidated",
        "TAG",
        "G1",
        ((Flight, "joinable", _join_whatever_tags), (Shard, "tag_dropped_since", _no)),
    ),
    "joining with late tags": Rule(
        "... nor any tag of its tenant: it may turn out to carry that",
        "TAG-TOLD",
        "G1",
        ((Shard, "tag_dropped_since", _no),),
    ),
    "joining with tokens": Rule(
        "... and only by those whose token this node has applied",
        "SMALL",
        "G3",
        ((Flight, "joinable", _join_with_any_token),),
    ),
    "token": Rule("a node that is behind a session token asks L2 itself", "SMALL", "G3", ((Shard, "honours", _yes),)),
}

FALLBACKS = "FALLBACKS"
"""Not a set-up of the world of states: `tests.model.fallbacks`."""
RULES_OF_FALLBACKS = {
    "doubt": Rule(
        "what was loaded when a takeover may have lost a guard is no fallback",
        FALLBACKS,
        "G6",
        ((Node, "may_predate_lost_guards", _no),),
    ),
    "doubt in L1": Rule("... not from L1", FALLBACKS, "G6", ((Node, "admit", _not_in_doubt(Node.admit)),)),
    "loaded alone": Rule(
        "what was loaded without L2, which knows of guards, is no fallback",
        FALLBACKS,
        "G6",
        ((Node, "admit", _admit_alone_as_any),),
    ),
    "late fills": Rule(
        "a load that began when a lost guard might have stood, and ends later, is not stored",
        FALLBACKS,
        "G6",
        ((MemoryShard, "fill_lease", _leased_for_long("fill_lease")), (MemoryShard, "hold", _leased_for_long("hold"))),
    ),
    "joining in doubt": Rule(
        "... and is not joined later", FALLBACKS, "G6", ((Node, "lost_guards_over_s", lambda *_: NEVER),)
    ),
    "joining under guards": Rule(
        "nobody joins a load behind the time in which a guard may have stood",
        FALLBACKS,
        "G6",
        ((Freshness, "end_at", _no),),
    ),
}

FALLBACK_AGE = "FALLBACK-AGE"
"""Not a set-up of the world of states either: `tests.model.fallback_age`."""
RULES_OF_FALLBACK_AGE = {
    "age of fallbacks": Rule(
        "a fallback is given for as long as memory could serve it, however long the load goes on",
        FALLBACK_AGE,
        "G1",
        ((Fallback, "usable", _yes),),
    ),
    "age in L1": Rule(
        "... which for one in L1 counts from when it was read, not from when somebody came",
        FALLBACK_AGE,
        "G1",
        ((get_or_load, "fallback_in_l1", _fallback_from_now),),
    ),
    "age in L2": Rule(
        "... and for one in L2 from when L2 was asked",
        FALLBACK_AGE,
        "G1",
        ((FillLease, "fallback", _fallback_for_ever),),
    ),
}


@contextmanager
def without(name: str) -> Iterator[None]:
    """The library without the rule of this name; "" and "-" take none away."""
    parts = {**RULES, **RULES_OF_FALLBACKS, **RULES_OF_FALLBACK_AGE}[name].without if name.strip("-") else ()
    with ExitStack() as stack:
        for owner, attribute, crippled in parts:
            stack.enter_context(patch.object(owner, attribute, crippled))
        yield
