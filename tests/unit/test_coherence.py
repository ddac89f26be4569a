"""The pure core, by properties: whatever comes in whatever order, it believes no more than it has been told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachebus.core.answers import BEYOND, NEVER, Heard, Probed, Reservation
from cachebus.core.invalidated import PRUNED_AT_ONCE, InvalidatedScopes
from cachebus.core.ports import Invalidated
from cachebus.core.shard import AHEAD_MAX, EPOCHS_MAX, PENDING_PROBES_MAX, Shard
from cachebus.keys.key import ALL_TENANTS, Keyspace, bucket_of
from cachebus.wire.event import NONE_RAISED, LowWatermark

BOUND_S = 2.0
EPOCH, OTHER = b"a" * 16, b"b" * 16
unhurried = settings(deadline=None)
"""These tests share a machine with others, and are not about time."""
ACME = [Keyspace(1).key("doc", number, "acme") for number in range(3)]
KEYS = tuple(key.l1 for key in ACME)
WITHOUT_CONTEXT = Keyspace(1).key("doc", 7, "acme")
IN_CONTEXT = Keyspace(1).key("doc", 7, "acme", agent_id="a")
BUCKET = bucket_of("acme")
NAMES = ("T\x1facme", "G\x1facme\x1ftag")
WIDE = "N"
ELSEWHERE = "T\x1fother"
PASSING = "I\x1facme\x1fdoc\x1f7"
NONE_INVALIDATED = Invalidated({}, {})


def entered(seq: int = 0, *, recent_drops_max: int = 16_384) -> Shard:
    """A shard whose node has begun at `seq`, at time 0."""
    shard = Shard(0, BOUND_S, recent_drops_max)
    shard.begin_epoch(EPOCH, seq, NONE_INVALIDATED, 0.0)
    return shard


@dataclass
class Drop:
    """An event's place and body."""

    seq: int
    keys: Sequence[str] = ()
    scopes: Sequence[str] = ()
    low: int = 0
    """The low watermark of the bucket, raised by it."""

    def into(self, shard: Shard) -> Heard:
        """Hear it, and apply it if it is new: what a node does."""
        heard = shard.hear(EPOCH, self.seq)
        if heard in (Heard.NEXT, Heard.AHEAD):
            shard.drop(
                self.seq, self.keys, self.scopes, low=LowWatermark(BUCKET, self.low) if self.low else NONE_RAISED
            )
        return heard


LONGEST = 10
_arrivals = st.lists(st.integers(1, LONGEST), max_size=LONGEST + 3)
_bodies = st.lists(st.integers(0, 63), min_size=LONGEST, max_size=LONGEST)


def history(bodies: Sequence[int]) -> list[Drop]:
    """Consecutive events, one a number, whose bits say what is in it. The low watermark rises now and then, as L2
    raises it: never to a seq that is not given out yet."""
    drops = []
    for seq, bits in enumerate(bodies, 1):
        keys = [key for i, key in enumerate(KEYS) if bits >> i & 1]
        scopes = [name for i, name in enumerate(NAMES) if bits >> (3 + i) & 1]
        drops.append(Drop(seq, keys, scopes, seq - 1 if bits >= 48 else 0))
    return drops


def deliveries() -> st.SearchStrategy[list[Drop]]:
    """What a bus makes of a history: events in any order, repeated and lost."""
    return st.builds(lambda seqs, bodies: [history(bodies)[seq - 1] for seq in seqs], _arrivals, _bodies)


@unhurried
@given(deliveries())
def test_applied_is_as_far_as_there_is_no_gap(delivered: list[Drop]) -> None:
    shard, heard = entered(), set[int]()
    for drop in delivered:
        gapless = next(n for n in range(len(heard) + 1) if n + 1 not in heard)
        got = drop.into(shard)
        expected = Heard.OLD if drop.seq in heard else Heard.NEXT if drop.seq == gapless + 1 else Heard.AHEAD
        assert got is expected
        heard.add(drop.seq)
        assert set(range(1, shard.applied + 1)) <= heard
        assert shard.applied + 1 not in heard
        assert shard.highest_seq == max(heard)
        assert shard.has_gap == (shard.highest_seq > shard.applied)


@unhurried
@given(_arrivals, _bodies)
def test_the_order_of_arrival_does_not_matter_in_the_end(arrivals: list[int], bodies: list[int]) -> None:
    shard, in_order, drops = entered(), entered(), history(bodies)
    for seq in [*arrivals, *range(LONGEST, 0, -1)]:
        drops[seq - 1].into(shard)
    for drop in drops:
        drop.into(in_order)
    assert (shard.applied, shard.highest_seq, shard.low) == (in_order.applied, in_order.highest_seq, in_order.low)
    assert not shard.has_gap
    for seq in range(shard.highest_seq + 1):
        for name in NAMES:
            assert shard.hides(seq, BUCKET, [name]) == in_order.hides(seq, BUCKET, [name])


@unhurried
@given(deliveries())
def test_a_record_is_hidden_by_every_invalidation_heard_beyond_it_and_by_the_low_watermark(
    delivered: list[Drop],
) -> None:
    shard, invalidated, low = entered(), dict.fromkeys(NAMES, 0), 0
    for drop in delivered:
        drop.into(shard)
        low = max(low, drop.low)
        for name in drop.scopes:
            invalidated[name] = max(invalidated[name], drop.seq)
        assert shard.low.get(BUCKET, 0) == low
        for seq in range(LONGEST + 2):
            for scopes in ([], [NAMES[0]], [NAMES[1]], list(NAMES)):
                assert shard.hides(seq, BUCKET, scopes) == (
                    seq < low or any(invalidated[name] > seq for name in scopes)
                )
                assert not shard.hides(seq, bucket_of("other"), [ELSEWHERE]), "nor does it touch another tenant's"


def test_scopes_of_all_tenants_and_their_watermark_hide_records_of_every_bucket() -> None:
    shard = entered()
    Drop(1, scopes=[WIDE]).into(shard)
    for tenant in ("acme", "other"):
        assert shard.hides(0, bucket_of(tenant), [WIDE])
        assert not shard.hides(1, bucket_of(tenant), [WIDE])
    shard.hear(EPOCH, 2)
    shard.drop(2, (), (), low=LowWatermark(ALL_TENANTS, 2))
    assert all(shard.hides(1, bucket_of(tenant), ()) for tenant in ("acme", "other"))


def test_invalidated_scopes_below_a_low_watermark_are_forgotten_some_at_a_time() -> None:
    shard, count = entered(), 5 * PRUNED_AT_ONCE
    for seq in range(1, count + 1):
        Drop(seq, scopes=[f"G\x1facme\x1f{seq}"]).into(shard)
    assert len(shard.invalidated[BUCKET]) == count
    Drop(count + 1, low=count).into(shard)
    assert len(shard.invalidated[BUCKET]) == count - PRUNED_AT_ONCE
    for seq in range(count + 2, count + 7):
        Drop(seq, scopes=[f"G\x1facme\x1f{seq}"]).into(shard)
    assert set(shard.invalidated[BUCKET].values()) == set(range(count + 2, count + 7)), "all that are beyond it stay"


def test_a_scope_invalidated_over_and_over_takes_no_more_room_than_once() -> None:
    invalidated = InvalidatedScopes()
    for seq in range(1, 5000):
        invalidated.note("s", seq)
        invalidated.note(f"t{seq % 7}", seq)
        invalidated.prune(0, 2)
        assert len(invalidated._seqs) == len(invalidated._scopes) <= 2 * len(invalidated) + PRUNED_AT_ONCE + 2
    invalidated.prune(4998, 0)
    assert set(invalidated.values()) == {4999}


def test_an_id_that_passes_by_overtakes_what_is_under_way_and_nothing_else() -> None:
    shard = entered()
    before = shard.reserve()
    shard.hear(EPOCH, 1)
    shard.drop(1, (), (), passing=[PASSING])
    assert shard.overtaken(before, "k0", 0, PASSING)
    assert not shard.overtaken(before, "k0", 0, "I\x1facme\x1fdoc\x1f8")
    assert not shard.overtaken(before, "k0", 0)
    assert not shard.overtaken(shard.reserve(), "k0", 0, PASSING)
    assert not shard.invalidated
    assert not shard.admits(before, IN_CONTEXT, (), EPOCH, 0)
    assert shard.admits(before, WITHOUT_CONTEXT, (), EPOCH, 0)


@unhurried
@given(deliveries(), st.integers(0, 6), st.integers(1, 5))
def test_a_reservation_is_overtaken_by_every_later_drop_of_its_key(
    delivered: list[Drop], reserved_after: int, recent_drops_max: int
) -> None:
    shard = entered(recent_drops_max=recent_drops_max)
    for drop in delivered[:reserved_after]:
        drop.into(shard)
    reservation, late = shard.reserve(), list[Drop]()
    for drop in delivered[reserved_after:]:
        if drop.into(shard) is not Heard.OLD:
            late.append(drop)
        for key in KEYS:
            for seq in range(LONGEST + 2):
                if any(key in d.keys and d.seq > seq for d in late):
                    assert shard.overtaken(reservation, key, seq)
    assert not shard.overtaken(shard.reserve(), KEYS[0], 0)


@unhurried
@given(deliveries(), st.integers(0, 6))
def test_a_reservation_is_not_overtaken_by_drops_of_other_keys(delivered: list[Drop], reserved_after: int) -> None:
    shard = entered()
    for drop in delivered[:reserved_after]:
        drop.into(shard)
    reservation = shard.reserve()
    for drop in delivered[reserved_after:]:
        drop.into(shard)
    touched = {key for drop in delivered[reserved_after:] for key in drop.keys}
    for key in set(KEYS) - touched:
        assert not shard.overtaken(reservation, key, 0)
    assert not any(shard.overtaken(reservation, key, max((d.seq for d in delivered), default=0)) for key in KEYS)


def test_drops_that_are_forgotten_overtake_what_began_before_them() -> None:
    shard = entered(recent_drops_max=2)
    before = shard.reserve()
    Drop(1, ["k0"]).into(shard)
    after_first = shard.reserve()
    Drop(2, ["k1"]).into(shard)
    assert not shard.overtaken(before, "k2", 0)
    Drop(3, ["k2"]).into(shard)  # k0 falls out
    assert shard.overtaken(before, "k0", 0)
    assert shard.overtaken(before, "never touched", 0), "one that old can't be told from k0"
    assert not shard.overtaken(after_first, "k0", 0)
    assert shard.overtaken(after_first, "k1", 0)
    after_third = shard.reserve()
    Drop(4, ["k1"]).into(shard)  # touched again: now the youngest
    Drop(5, ["k3"]).into(shard)  # k2 falls out
    assert not shard.overtaken(after_third, "k0", 0)
    assert shard.overtaken(after_first, "k1", 0)
    assert shard.overtaken(after_first, "k0", 0)


def test_a_new_beginning_forgets_what_waited_behind_a_gap() -> None:
    shard = entered()
    Drop(5).into(shard)
    shard.begin_epoch(EPOCH, 2, NONE_INVALIDATED, 0.0)  # its marks are those of seq 2: they know nothing of event 5
    for seq in (3, 4, 5):
        assert Drop(seq).into(shard) is Heard.NEXT
        assert shard.applied == seq


def test_what_is_heard_while_a_new_beginning_is_under_way_stays_heard() -> None:
    """Over several connections the answer to an own write may overtake that of an earlier probe."""
    shard = entered()
    asked = shard.begin_asking()
    for seq in (1, 2, 3, 5):
        Drop(seq, scopes=[NAMES[1] if seq == 3 else NAMES[0]]).into(shard)
    shard.begin_epoch(EPOCH, 2, Invalidated({BUCKET: {NAMES[0]: 2}}, {}), 7.0, asked)
    assert (shard.applied, shard.highest_seq) == (3, 5)
    assert shard.invalidated == {BUCKET: {NAMES[0]: 5, NAMES[1]: 3}}
    assert shard.valid_until_s == 7.0 + BOUND_S, "the probe found 2, and that is applied"
    assert Drop(4).into(shard) is Heard.NEXT
    assert shard.applied == 5


def test_an_invalidation_that_was_missed_is_taken_from_the_answer_though_an_older_one_is_known() -> None:
    shard = entered()
    Drop(1, scopes=[NAMES[0]]).into(shard)
    asked = shard.begin_asking()
    Drop(4, scopes=[NAMES[1]]).into(shard)
    shard.begin_epoch(EPOCH, 3, Invalidated({BUCKET: {NAMES[0]: 2}}, {}), 7.0, asked)
    assert shard.invalidated == {BUCKET: {NAMES[0]: 2, NAMES[1]: 4}}
    assert shard.hides(1, BUCKET, [NAMES[0]])


def test_what_was_heard_before_the_question_for_a_new_beginning_is_forgotten() -> None:
    """Or an event that L2 knows nothing of would be waited for for ever."""
    shard = entered()
    Drop(1_000_000).into(shard)
    shard.hear(OTHER, 1_000_000)
    asked = shard.begin_asking()
    shard.begin_epoch(EPOCH, 2, NONE_INVALIDATED, 7.0, asked)
    assert not shard.has_gap
    assert shard.valid_until_s == 7.0 + BOUND_S
    shard.hear(OTHER, 1_000_000)
    asked = shard.begin_asking()
    shard.begin_epoch(OTHER, 3, NONE_INVALIDATED, 8.0, asked)
    assert not shard.has_gap


def test_an_answer_that_is_older_than_the_epoch_takes_nothing_of_it_back() -> None:
    """Heard in another epoch, of which more was heard: a number of that one says nothing of this one."""
    shard = entered()
    for seq in range(1, 21):
        Drop(seq).into(shard)
    asked = shard.begin_asking()
    shard.begin_epoch(OTHER, 12, NONE_INVALIDATED, 7.0, shard.begin_asking())  # a later question was answered before
    shard.hear(OTHER, 13)
    shard.drop(13, (), NAMES)
    shard.begin_epoch(OTHER, 12, NONE_INVALIDATED, 7.0, asked)
    assert shard.applied == 13
    assert shard.hides(12, BUCKET, NAMES)


def test_what_was_forgotten_stays_so_for_what_is_under_way_whatever_older_event_comes() -> None:
    """A write of unknown outcome voids it: an older event of the key says nothing of that write."""
    shard = entered()
    under_way = shard.reserve()
    shard.drop(BEYOND, ("k0",), ())
    after = shard.reserve()
    Drop(1, ("k0",)).into(shard)
    assert shard.overtaken(under_way, "k0", 1)
    assert shard.overtaken(under_way, "k0", 1_000_000)
    assert not shard.overtaken(after, "k0", 1), "what began later is judged by the event"
    assert shard.overtaken(after, "k0", 0)
    assert not shard.overtaken(shard.reserve(), "k0", 0)


def test_a_node_that_must_keep_more_invalidated_scopes_than_l2_forgets_the_older_half() -> None:
    shard = Shard(0, BOUND_S, max_invalidated_scopes=10)
    shard.begin_epoch(EPOCH, 0, NONE_INVALIDATED, 0.0)
    for seq in range(1, 200):
        raised = Drop(seq, scopes=[f"I\x1facme\x1fdoc\x1f{seq}"]).into(shard) and shard.low.get(BUCKET, 0) > 0
        assert sum(map(len, shard.invalidated.values())) <= 10
        for record in range(seq):  # what was replaced is never believed, what came after the event is
            assert shard.hides(record, BUCKET, [f"I\x1facme\x1fdoc\x1f{seq}"])
            assert shard.hides(record, BUCKET, [f"I\x1facme\x1fdoc\x1f{record + 1}"])
        assert not shard.hides(seq, BUCKET, [f"I\x1facme\x1fdoc\x1f{seq}"])
    assert raised


def test_no_lease_in_another_epoch_before_what_was_heard_of_it_is_applied() -> None:
    """An own write there is no event that could be applied yet: were there a lease, the node would not honour it."""
    shard = entered()
    asked = shard.begin_asking()
    assert shard.hear(OTHER, 6) is Heard.FOREIGN
    shard.begin_epoch(OTHER, 5, NONE_INVALIDATED, 7.0, asked)
    assert shard.has_gap
    assert shard.valid_until_s == NEVER
    assert shard.hear(OTHER, 6) is Heard.NEXT
    assert shard.valid_until_s == 7.0 + BOUND_S


@pytest.mark.parametrize("begin", ["void", "begin_epoch", "enter another epoch"])
@unhurried
@given(delivered=deliveries(), key=st.sampled_from(KEYS), seq=st.integers(0, 20))
def test_a_new_beginning_overtakes_every_reservation_and_keeps_no_lease(
    begin: str, delivered: list[Drop], key: str, seq: int
) -> None:
    shard = entered()
    reservations = [shard.reserve()]
    for drop in delivered:
        drop.into(shard)
        reservations.append(shard.reserve())
    if begin == "void":
        shard.void()
        assert shard.valid_until_s == NEVER
    else:
        invalidated, low = {BUCKET: {NAMES[0]: 9}}, {BUCKET: 7}
        shard.begin_epoch(EPOCH if begin == "begin_epoch" else OTHER, 30, Invalidated(invalidated, low), 100.0)
        assert (shard.applied, shard.highest_seq, shard.low, shard.invalidated) == (30, 30, low, invalidated)
        assert shard.valid_until_s == 100.0 + BOUND_S
        assert not shard.has_gap
    assert all(shard.overtaken(reservation, key, seq) for reservation in reservations)
    assert not shard.overtaken(shard.reserve(), key, seq)


@unhurried
@given(deliveries(), st.data())
def test_the_lease_lasts_d_from_the_last_probe_whose_seq_is_applied(delivered: list[Drop], data: st.DataObject) -> None:
    shard = entered()
    now_s, seq, probes = 0.0, 0, [(0, 0.0)]
    for drop in delivered:
        drop.into(shard)
        if data.draw(st.booleans()):
            now_s += data.draw(st.sampled_from([0.0, 0.25, 1.0]))
            seq = max(seq, shard.highest_seq, data.draw(st.integers(0, 12)))
            probed = shard.probed(EPOCH, seq, now_s)
            probes.append((seq, now_s))
            assert (probed is Probed.RENEWED) == (shard.applied >= seq)
        reached = [sent_s for at, sent_s in probes if at <= shard.applied]
        assert shard.valid_until_s == max(reached) + BOUND_S
        assert shard.fresh_as_of_s == max(reached)


def test_a_flood_of_probes_forgets_the_oldest_first() -> None:
    shard = entered()
    for number in range(1, PENDING_PROBES_MAX + 3):
        assert shard.probed(EPOCH, number, float(number)) is Probed.BEHIND
    for seq in (1, 2):
        Drop(seq).into(shard)
        assert shard.valid_until_s == BOUND_S, "those two probes were forgotten: only the first lease stands"
    Drop(3).into(shard)
    assert shard.valid_until_s == 3.0 + BOUND_S


@unhurried
@given(deliveries(), st.integers(1, 20))
def test_an_event_of_another_epoch_changes_nothing_but_is_remembered(delivered: list[Drop], seq: int) -> None:
    shard = entered()
    for drop in delivered:
        drop.into(shard)

    def state() -> tuple[object, ...]:
        invalidated = {bucket: dict(its) for bucket, its in shard.invalidated.items()}
        return (
            shard.applied,
            shard.highest_seq,
            dict(shard.low),
            invalidated,
            shard.epoch,
            shard.valid_until_s,
            shard.drop_count,
        )

    before = state()
    assert shard.hear(OTHER, seq) is Heard.FOREIGN
    assert state() == before
    shard.begin_epoch(OTHER, 5, NONE_INVALIDATED, 0.0)
    assert shard.applied == 5
    assert shard.has_gap == (seq > 5), "what was heard before the probe's reply came was not applied"
    assert not shard.foreign


def test_an_epoch_that_a_later_probe_did_not_find_is_another_stores_and_so_is_one_that_was_left() -> None:
    shard = entered()
    assert shard.hear(OTHER, 3) is Heard.FOREIGN
    shard.probe_sent()
    assert shard.hear(b"c" * 16, 3) is Heard.FOREIGN
    assert shard.probed(EPOCH, 0, 1.0) is Probed.RENEWED
    assert shard.hear(OTHER, 4) is Heard.LEFT
    assert shard.hear(b"c" * 16, 4) is Heard.FOREIGN, "it was heard of after the probe was sent"
    shard.begin_epoch(OTHER, 5, NONE_INVALIDATED, 2.0)
    assert shard.hear(OTHER, 6) is Heard.NEXT, "it has begun all the same: the probe that found none went elsewhere"
    assert shard.hear(EPOCH, 9) is Heard.LEFT
    assert shard.epoch == OTHER


def test_epochs_that_are_known_are_bounded() -> None:
    shard = entered()
    for number in range(3 * EPOCHS_MAX):
        assert shard.hear(b"%016x" % number, number) is Heard.FOREIGN
        if number % 3 == 0:
            shard.probe_sent()
            shard.probed(EPOCH, 0, float(number))
        assert len(shard.foreign) <= EPOCHS_MAX
        assert len(shard.former_epochs) <= EPOCHS_MAX


def test_a_probe_of_another_epoch_ends_the_lease() -> None:
    shard = entered()
    shard.probed(EPOCH, 4, 1.0)
    assert shard.probed(OTHER, 9, 1.5) is Probed.FOREIGN
    assert shard.valid_until_s == NEVER
    for seq in range(1, 5):
        Drop(seq).into(shard)
    assert shard.valid_until_s == NEVER, "a probe from before must not bring it back"
    assert shard.epoch == EPOCH


@unhurried
@given(st.binary(min_size=1, max_size=1), st.binary(min_size=1, max_size=1), deliveries(), st.integers(0, 13))
def test_what_enters_l1_is_of_this_epoch_unmarked_and_not_hidden(
    reserved_in: bytes, read_in: bytes, delivered: list[Drop], seq: int
) -> None:
    shard = entered()
    reservation = shard.reserve()._replace(epoch=(reserved_in * 16))
    for drop in delivered:
        drop.into(shard)
    for key in ACME:
        admitted = shard.admits(reservation, key, NAMES, read_in * 16, seq)
        assert not admitted or (reserved_in * 16 == EPOCH == read_in * 16)
    own = Reservation(EPOCH, *reservation[1:])
    for key in ACME:
        expected = not shard.overtaken(own, key.l1, seq) and not shard.hides(seq, BUCKET, NAMES)
        assert shard.admits(own, key, NAMES, EPOCH, seq) == expected
        assert not shard.admits(own, key, NAMES, OTHER, seq)
        assert not shard.admits(Reservation(OTHER, *own[1:]), key, NAMES, EPOCH, seq)


@unhurried
@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10), st.floats(0, 10))
def test_l1_serves_what_is_unexpired_under_the_lease_or_within_d_of_its_reading(
    now_s: float, lease_s: float, expires_s: float, read_until_s: float
) -> None:
    shard = entered()
    shard.valid_until_s = lease_s
    expected = now_s < expires_s and (now_s < lease_s or now_s < read_until_s)
    assert shard.serves(now_s, expires_s, read_until_s) == expected


@unhurried
@given(deliveries(), st.integers(0, 14))
def test_a_token_is_honoured_once_all_up_to_it_is_applied(delivered: list[Drop], seq: int) -> None:
    shard = entered()
    for drop in delivered:
        drop.into(shard)
    assert shard.honours(EPOCH, seq) == (seq <= shard.applied)
    assert not shard.honours(OTHER, seq)


def test_a_flood_behind_a_gap_is_noticed() -> None:
    shard = entered()
    for seq in range(2, AHEAD_MAX + 2):
        shard.hear(EPOCH, seq)
    assert not shard.flooded
    shard.hear(EPOCH, AHEAD_MAX + 2)
    assert shard.flooded
    shard.hear(EPOCH, 1)
    assert not shard.flooded
    assert shard.applied == AHEAD_MAX + 2


def test_a_node_that_has_never_asked_believes_nothing() -> None:
    shard = Shard(0, BOUND_S)
    assert shard.hear(EPOCH, 1) is Heard.FOREIGN
    assert shard.probed(EPOCH, 1, 0.0) is Probed.FOREIGN
    assert not shard.serves(0.0, 1.0, 0.0)
    assert not shard.admits(shard.reserve(), WITHOUT_CONTEXT, (), EPOCH, 1)
    assert not shard.honours(EPOCH, 0)
