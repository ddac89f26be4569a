"""Until when which node may serve what: by its answer, and by the row of one that is silent. And the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cachebus.bus.memory import MemoryBus
from cachebus.cli.operate.events import Filter, line_of
from cachebus.core.ports import About, Caller, KeyFacts, LogEntry, NodeRow
from cachebus.core.requests import WriteRequest
from cachebus.keys.key import ALL_TENANTS, Keyspace, guard_name
from cachebus.keys.words import shown
from cachebus.l2.memory import MemoryShard
from cachebus.l2.memory_store import MemoryShards, MemoryStore
from cachebus.listening.explain import KeyExplainer, _replacement
from cachebus.listening.explanation import StandingWrite, StoredValue, TouchingEvent, moment
from cachebus.listening.holders import AsSeen, Holder, Replacement, counted, holders
from cachebus.listening.inquiries import Inquiries, NodeSaid
from cachebus.listening.touching import KeyHistory, Touch, history, known_since, standing, storer
from cachebus.listening.verdict import Grounds, verdict
from cachebus.listening.worth import stored_value
from cachebus.wire.event import EventHeader, WritePart, encode_body
from cachebus.wire.inquiry import Inquiry, NodeAnswer
from cachebus.wire.record import Record

EPOCH, OTHER = b"e" * 16, b"0" * 16
NOW_S = 1_700_000_000.0
D_S = 2.0
KEY = Keyspace(1).key("price", "7", "acme")
TAG = "G\x1facme\x1ft"
NEVER = -1


def facts(**more: Any) -> KeyFacts:
    return KeyFacts(int(NOW_S * 1e6), EPOCH, 50, **more)


def row(ago_s: float, applied: int, epoch: bytes = EPOCH, *, keeps: bool = True) -> NodeRow:
    return NodeRow(applied, epoch, int((NOW_S - ago_s) * 1e6), About(int(D_S * 1000), keeps_without_l2=keeps))


def seen(replacement: Replacement, **rows: NodeRow) -> AsSeen:
    return AsSeen(facts(rows=rows), replacement, asked_s=10.0)


def only(found: tuple[Holder, ...]) -> Holder:
    assert len(found) == 1
    return found[0]


def left_s(node: Holder) -> float | None:
    return None if node.until is None else round(node.until.timestamp() - NOW_S, 3)


REPLACED = Replacement(40, NOW_S - 0.8)


# -- silent nodes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("silent", "replacement", "replaced", "until_s"),
    [
        (row(0.5, 40), REPLACED, False, 1.5),
        (row(0.5, 39), REPLACED, True, 1.2),
        (row(1.5, 39), REPLACED, True, 1.2),
        (row(1.5, 39, keeps=False), REPLACED, True, 0.5),
        (row(0.5, 39, keeps=False), REPLACED, True, 1.2),
        (row(2.5, 39, keeps=False), REPLACED, False, None),
        (row(1.0, 39), Replacement(40, NOW_S - 2.1), False, None),
        (row(0.5, 50, OTHER), REPLACED, True, 1.2),
        (row(0.5, 39), Replacement(40), True, 2.0),
        (row(0.5, 39, keeps=False), Replacement(40), True, 1.5),
        (row(0.5, 3), Replacement(), False, 1.5),
        (row(0.5, 3, OTHER), Replacement(), True, 1.5),
        (row(5.0, 3, OTHER), Replacement(), False, None),
    ],
    ids=[
        "has applied it",
        "has not; what it loads alone counts from the replacement",
        "the same, however long ago it asked",
        "has not, and keeps nothing alone: its lease counts from when it asked",
        "the same, asked since",
        "its lease is over",
        "D after the replacement",
        "is in another epoch",
        "the log does not tell when it was",
        "the same, and keeps nothing alone",
        "nothing is known to have replaced it",
        "nor in its epoch, which is over",
        "and its lease too",
    ],
)
def test_until_when_a_silent_node_may_serve(
    silent: NodeRow, replacement: Replacement, replaced: bool, until_s: float | None
) -> None:
    node = only(holders(seen(replacement, n=silent), {}))
    assert (node.answered, node.replaced, left_s(node)) == (False, replaced, until_s)
    assert node.serves is (until_s is not None)
    assert "does not answer" in node.says


def test_rows_older_than_a_minute_and_damaged_ones_are_not_waited_for() -> None:
    looked = facts(rows={"old": row(61, 1), "damaged": NodeRow(0, b"", 0), "new": row(59, 1)})
    assert counted(looked) == {"new"}


# -- nodes that answer -------------------------------------------------------------------------------------------------


def holding(**more: Any) -> NodeAnswer:
    about: dict[str, Any] = {
        "epoch": EPOCH.decode(),
        "applied": 50,
        "highest_seq": 50,
        "bound_ms": 2000,
        "lease_ms": 900,
        "holds": "value",
        "seq": 39,
        "serves_ms": 900,
        "expires_ms": NEVER,
        "fast": True,
    }
    return NodeAnswer("n", **{**about, **more})


@pytest.mark.parametrize(
    ("answer", "serves", "replaced", "until_s"),
    [
        (holding(seq=40), True, False, None),
        (holding(seq=40, expires_ms=5000), True, False, 5.25),
        (holding(), True, True, 1.2),
        (holding(expires_ms=300), True, True, 0.55),
        (holding(epoch=OTHER.decode(), seq=90), True, True, 1.15),
        (holding(why_not="replaced", serves_ms=0), False, False, None),
        (holding(holds="absent", seq=50), False, False, None),
        (holding(holds="not_found", seq=45), True, False, None),
        (holding(holds="", seq=0, serves_ms=0), False, False, None),
        (holding(alone=True, serves_ms=1100), True, True, 1.2),
        (holding(alone=True, serves_ms=1300), True, False, None),
        (holding(alone=True, serves_ms=1300, epoch=""), True, False, 1.55),
    ],
    ids=[
        "newest",
        "expires",
        "replaced",
        "expires before",
        "other epoch",
        "knows",
        "absent",
        "not found",
        "nothing",
        "loaded alone before it",
        "loaded alone after it",
        "the same, never attached",
    ],
)
def test_until_when_a_node_serves_by_its_answer(
    answer: NodeAnswer, serves: bool, replaced: bool, until_s: float | None
) -> None:
    """The answer came a quarter of a second after L2's clock had been asked for."""
    node = only(holders(seen(REPLACED, n=row(0.1, 50)), {"n": NodeSaid(answer, 10.25)}))
    assert (node.answered, node.serves, node.replaced, left_s(node)) == (True, serves, replaced, until_s)


def test_a_hit_path_that_must_not_be_taken_is_cried_out() -> None:
    said = {"n": NodeSaid(holding(why_not="expired", fast=True), 10.0)}
    assert "MUST NOT" in only(holders(seen(REPLACED), said)).says
    said = {"n": NodeSaid(holding(why_not="expired", fast=False), 10.0)}
    assert "MUST NOT" not in only(holders(seen(REPLACED), said)).says


def test_control_characters_of_a_node_reach_nobody() -> None:
    evil = "\x1b]0;pwned\x07\x9b2J"
    said = {evil: NodeSaid(replace_name(holding(version=evil, epoch=evil, why_not=evil), evil), 10.0)}
    found = holders(seen(REPLACED, **{evil + "2": row(0.5, 39)}), said)
    assert len(found) == 2
    for node in found:
        for text in (node.node, node.says, node.version, node.why_not):
            assert text.isprintable(), ascii(text)


def replace_name(answer: NodeAnswer, name: str) -> NodeAnswer:
    from msgspec.structs import replace as replaced

    return replaced(answer, node=name)


# -- what L2 has -------------------------------------------------------------------------------------------------------


def record(**more: Any) -> bytes:
    about: dict[str, Any] = {"created_ms": int(NOW_S * 1000) - 5000, "epoch": EPOCH, "seq": 30, "tags": [TAG]}
    return Record(more.pop("flags", 0), 1, b"\x01", **{**about, **more}).encode(KEY.l2)


@pytest.mark.parametrize(
    ("looked", "state"),
    [
        (facts(record=record()), "valid"),
        (facts(), "none"),
        (facts(nonsense=True), "not_ours"),
        (facts(record=b"\x00" * 80), "damaged"),
        (facts(record=record(epoch=OTHER)), "other_epoch"),
        (facts(record=record(), is_over=True), "other_epoch"),
        (facts(record=record(), low={KEY.family.bucket: 31}), "forgotten"),
        (facts(record=record(), low={ALL_TENANTS: 31}), "forgotten"),
        (facts(record=record(), low={ALL_TENANTS: 30}), "valid"),
        (facts(record=record(), invalidated={TAG: 31}), "invalidated"),
        (facts(record=record(), invalidated={TAG: 30}), "valid"),
        (facts(record=record(expires_ms=int(NOW_S * 1000))), "expired"),
        (facts(record=record(expires_ms=int(NOW_S * 1000) + 1)), "valid"),
        (facts(record=record(flags=1)), "not_found"),
    ],
)
def test_what_the_record_is_worth(looked: KeyFacts, state: str) -> None:
    assert stored_value(KEY, looked).state == state


def test_the_last_that_invalidated_it_is_named_first() -> None:
    looked = facts(record=record(), invalidated={"N": 31, TAG: 33, "T\x1facme": 32})
    assert stored_value(KEY, looked).says.startswith("invalidated by seq 33: tag t of acme")


def test_times_and_leases_are_told() -> None:
    now_ms = int(NOW_S * 1000)
    soft = stored_value(KEY, facts(record=record(soft_ms=now_ms - 1000, expires_ms=now_ms + 9000)))
    assert "soft expiry 1.0 s ago: the next read has it loaded anew" in soft.says
    assert "expires in 9.0 s" in soft.says
    assert soft.created_at == moment(NOW_S - 5)
    assert soft.tags == ("t",)
    for letter, words in (("h", "a node loads it now"), ("w", "a node loads it now"), ("r", "is left alone")):
        assert words in stored_value(KEY, facts(fill_lease=letter.encode() + EPOCH + b"token")).says
        assert words not in stored_value(KEY, facts(fill_lease=letter.encode() + OTHER + b"token")).says


def test_what_is_cut_short_by_a_new_epoch_says_so() -> None:
    born_ms, guard_ms = int(NOW_S * 1000) - 20_000, 300_000
    about: dict[str, Any] = {"born_us": born_ms * 1000, "guard_ms": guard_ms}
    short = stored_value(KEY, facts(record=record(expires_ms=born_ms + guard_ms), **about))
    assert short.cut_short
    assert "expires in 280.0 s, sooner than its TTL says: L2 was empty or had lost its data" in short.says
    assert "guard_max_s (300 s)" in short.says
    for expires_ms in (born_ms + guard_ms - 1, born_ms + guard_ms + 1, 0):
        own = stored_value(KEY, facts(record=record(expires_ms=expires_ms), **about))
        assert not own.cut_short
        assert "sooner" not in own.says
    assert not stored_value(KEY, facts(record=record(expires_ms=born_ms), **{**about, "guard_ms": 0})).cut_short


async def test_since_when_the_log_can_tell() -> None:
    head = EventHeader(EPOCH, 7, int(NOW_S * 1e6))
    body = encode_body([WritePart([KEY.l1], [])])
    whole = LogEntry(7, head.encode(body) + body)
    born_us = int((NOW_S - 60) * 1e6)
    assert str(known_since(born_us, [whole])) == (
        "the log goes back to seq 7 of 2023-11-14 22:13:20Z; this epoch began at 2023-11-14 22:12:20Z; what was before "
        "is not told, and the log keeps the newest events only (log_max_len, log_max_bytes)"
    )
    assert str(known_since(0, [whole])).startswith("the log goes back to seq 7 of 2023-11-14 22:13:20Z; what was")
    assert str(known_since(born_us, [LogEntry(7, b"\xff" * 80)])).startswith("the log goes back to seq 7; this epoch")
    assert str(known_since(born_us, [])) == (
        "the log is empty; this epoch began at 2023-11-14 22:12:20Z; what was before is not told"
    )


# -- who stored it -----------------------------------------------------------------------------------------------------


def touch(seq: int, at_s: float, *, names: tuple[str, ...] = (), who: str = "web-1", why: str = "") -> Touch:
    part = WritePart([] if names else [KEY.l1], list(names), who, why)
    return Touch(seq, int(at_s * 1e6), part, names, "" if names else KEY.l1)


@pytest.mark.parametrize(
    ("created_s", "seq", "who", "words"),
    [
        (NOW_S - 5.001, 30, "web-1", "written by web-1"),
        (NOW_S - 5, 30, "", "written by web-1, or loaded right after that"),
        (NOW_S - 4, 30, "", "loaded after seq 30; L2 does not note by which node"),
        (NOW_S - 6, 29, "", "L2 does not note by which node"),
    ],
)
def test_who_stored_it_is_told_only_where_it_is_known(created_s: float, seq: int, who: str, words: str) -> None:
    stored = Record(0, 1, b"", created_ms=round(created_s * 1000), epoch=EPOCH, seq=seq)
    assert storer(stored, KeyHistory([touch(30, NOW_S - 5)], 1)) == (who, words)


def test_who_invalidated_a_tag_has_stored_nothing() -> None:
    stored = Record(0, 1, b"", created_ms=0, epoch=EPOCH, seq=30)
    assert storer(stored, KeyHistory([touch(30, NOW_S - 5, names=(TAG,))], 1))[0] == ""


def test_when_a_guard_was_put_up_is_told_by_the_last_event_that_named_the_same() -> None:
    told = KeyHistory(
        [touch(9, NOW_S - 1, who="c"), touch(8, NOW_S - 2, names=(TAG,), who="b"), touch(7, NOW_S - 3)], 3
    )
    ends = {guard_name(KEY): [int((NOW_S + 5) * 1e6)], TAG: [int((NOW_S + 9) * 1e6)], "N": [int((NOW_S + 7) * 1e6)]}
    assert standing(KEY, facts(guards=ends), told) == (
        StandingWrite("tag t of acme", moment(NOW_S + 9), moment(NOW_S - 2), "b"),
        StandingWrite("everything", moment(NOW_S + 7)),
        StandingWrite("this key", moment(NOW_S + 5), moment(NOW_S - 1), "c"),
    )


# -- the verdict -------------------------------------------------------------------------------------------------------

VALID = StoredValue("valid", "valid", created_at=moment(NOW_S - 5), seq=40)
SERVING = Holder("web-3", True, "", holds="value", seq=39, serves=True, replaced=True, until=moment(NOW_S + 1.2))
SILENT = Holder("web-4", False, "", serves=True, replaced=True, until=moment(NOW_S + 1.5))
FRESH = Holder("web-5", True, "", holds="value", seq=40, serves=True)
EMPTY = Holder("web-6", True, "")
GUARD = StandingWrite("this key", moment(NOW_S + 60), moment(NOW_S - 3), "web-1", "import")
FOUND = Grounds(
    AsSeen(facts(), REPLACED, 10.0),
    VALID,
    KeyHistory([touch(40, NOW_S - 0.8, why="import 17")], 9),
    (),
    (FRESH,),
    (),
    "",
)


@pytest.mark.parametrize(
    ("found", "case", "words"),
    [
        (
            FOUND._replace(nodes=(FRESH, SERVING, SILENT), guards=(GUARD,), waiting=("w",)),
            "replaced_is_served",
            (
                "node web-3 serves seq 39 until at most 22:13:21.200Z: seq 40 replaced it 0.8 s ago, by web-1 (import "
                "17), and its lease ends by then"
            ),
        ),
        (
            FOUND._replace(nodes=(FRESH, SILENT, replace(SILENT, node="x")), guards=(GUARD,), waiting=("w",)),
            "may_be_served",
            (
                "node web-4 does not answer, and may serve what was replaced until at most 22:13:21.500Z: seq 40 "
                "replaced it 0.8 s ago, by web-1 (import 17) (and 1 other node); no node that answered does"
            ),
        ),
        (
            FOUND._replace(guards=(GUARD,), waiting=("w",)),
            "guarded",
            (
                "it is guarded by a write that began 3.0 s ago, by web-1 (import), until 22:14:20.000Z at the latest: "
                "every read asks the source, and no level keeps what that gives"
            ),
        ),
        (
            FOUND._replace(waiting=("w",)),
            "waiting",
            (
                "node w has an invalidation of it that L2 has yet to hear of: until then all other nodes serve what it "
                "replaces"
            ),
        ),
        (
            FOUND,
            "not_replaced",
            (
                "nobody serves anything that was replaced: what L2 has is 5.0 s old (of 22:13:15.000Z), and if that is "
                "wrong, the source gave it so, or nobody has told of the change since"
            ),
        ),
        (
            FOUND._replace(stored=replace(VALID, seq=44, written_by="web-2")),
            "not_replaced",
            (
                "nobody serves anything that was replaced: what L2 has is 5.0 s old (of 22:13:15.000Z), and if that is "
                "wrong, web-2 wrote it so, or nobody has told of the change since; seq 40 replaced it 0.8 s ago, by "
                "web-1 (import 17)"
            ),
        ),
        (
            FOUND._replace(stored=StoredValue("none", "nothing lies under this key")),
            "only_in_l1",
            (
                "L2 has nothing that a read is given (nothing lies under this key), and node web-5 serves seq 40, "
                "which nothing is known to have replaced, as long as its lease is renewed"
            ),
        ),
        (
            FOUND._replace(stored=StoredValue("none", ""), nodes=(EMPTY,)),
            "nothing",
            "nothing is cached under this name: the next read asks the source",
        ),
        (
            FOUND._replace(
                stored=StoredValue("none", ""), nodes=(), elsewhere=", but under type price of tenant globex"
            ),
            "nothing",
            "nothing is cached under this name, but under type price of tenant globex",
        ),
        (
            FOUND._replace(stored=StoredValue("expired", "expired 3.0 s ago"), nodes=(EMPTY,)),
            "nothing",
            "a read is given nothing of what L2 has, and asks the source: it is expired 3.0 s ago",
        ),
    ],
    ids=lambda given: given if isinstance(given, str) and " " not in given else "",
)
def test_the_verdict(found: Grounds, case: str, words: str) -> None:
    assert verdict(found) == (case, words)


def test_a_replacement_that_the_log_no_longer_has() -> None:
    gone = FOUND._replace(seen=AsSeen(facts(), Replacement(40), 10.0), history=KeyHistory(), nodes=(SERVING,))
    assert "seq 40 replaced it, which the log no longer has" in verdict(gone)[1]
    low = gone._replace(seen=AsSeen(facts(low={ALL_TENANTS: 40}), Replacement(40), 10.0))
    assert "L2 has forgotten what was invalidated up to seq 40" in verdict(low)[1]
    over = gone._replace(seen=AsSeen(facts(), Replacement(), 10.0))
    assert "L2 has begun another epoch" in verdict(over)[1]
    guarded = FOUND._replace(guards=(replace(GUARD, began_at=None),))
    assert "since when, the log no longer tells" in verdict(guarded)[1]


def test_an_event_names_only_what_concerns_the_key() -> None:
    part = WritePart([KEY.l1, "other"], ["D\x1facme\x1fprice", "T\x1fx"], "w\x1b", "why\x9b", "t")
    told = KeyHistory([Touch(7, 1_000_000, part, ("D\x1facme\x1fprice",), KEY.l1)], 1).events
    what = "acme | price | 7, all price of acme, and 2 other names"
    assert told == (TouchingEvent(7, moment(1.0), what, "w?", "why?", "t"),)


def test_what_is_over_when_it_is_told_is_no_verdict() -> None:
    """Others were waited for meanwhile."""
    rows = {"n": row(0.5, 39)}
    late = AsSeen(facts(rows=rows), REPLACED, 10.0, took_s=1.3)
    node = only(holders(late, {}))
    assert (node.serves, node.replaced) == (False, False)
    assert "serves nothing that was replaced any more" in node.says
    assert verdict(FOUND._replace(seen=late, nodes=(SERVING,)))[0] == "not_replaced"
    soon = late._replace(took_s=1.1)
    assert only(holders(soon, {})).replaced
    assert verdict(FOUND._replace(seen=soon, nodes=(SERVING,)))[0] == "replaced_is_served"
    assert "1.9 s ago" in verdict(FOUND._replace(seen=soon, nodes=(SERVING,)))[1]


def test_the_last_replacement_is_the_latest_of_all_that_is_known() -> None:
    told = KeyHistory([touch(7, NOW_S)], 1)
    assert _replacement(facts(), told) == Replacement(7, NOW_S)
    assert _replacement(facts(invalidated={"N": 8}), told) == Replacement(8)
    assert _replacement(facts(low={ALL_TENANTS: 9}), told) == Replacement(9)
    assert _replacement(facts(), KeyHistory()) == Replacement()


def test_a_tail_shows_no_questions() -> None:
    for message in (Inquiry.about(KEY.l1).encode(), NodeAnswer("n").encode(b"0" * 16)):
        assert line_of(0, message, Filter(), as_json=True) == ""


# -- the log, and what changes while it is looked at -------------------------------------------------------------------


class OneKey(MemoryStore):
    """A store over one shard in memory, with a value in it."""

    def __init__(self) -> None:
        self.shard = MemoryShard(lambda: 100.0)
        super().__init__(MemoryShards([self.shard]))
        self._open = True
        stored = Record(0, 1, b"", created_ms=0)
        self.told(lambda body: self.shard.write(KEY, NOBODY, WriteRequest(stored, 0, body, (), (), if_absent=False)))

    def told(self, change: Callable[[bytes], object]) -> None:
        """Something that an event tells of, which names the key."""
        change(encode_body([WritePart([KEY.l1], [], "web-1")]))


NOBODY = Caller("", 0, b"")


async def test_events_of_another_epoch_and_damaged_ones_are_passed_over() -> None:
    store = OneKey()
    looked = store.shard.inspect(KEY)
    assert [touch.seq for touch in (await history(store, KEY, looked, ())).touches] == [looked.seq]
    assert (await history(store, KEY, looked._replace(epoch=OTHER), ())).touches == []
    store.shard.messages[looked.seq] = store.shard.messages[looked.seq][:-1]
    assert (await history(store, KEY, looked, ())).touches == []


async def test_what_is_replaced_while_the_nodes_are_asked_is_told() -> None:
    store = OneKey()

    class Carrying(MemoryBus):
        async def publish(self, shard: int, message: bytes) -> None:
            """Somebody is faster."""
            store.told(lambda body: store.shard.invalidate(NOBODY, [KEY], [], body))

    bus = Carrying([], lambda shard, message: None)
    bus.store_publishes, bus.connected = False, True
    explainer = KeyExplainer(store, bus, Inquiries(lambda: 100.0), lambda: 100.0)
    found = await explainer.explain(KEY)
    assert found.stored.state == "invalidated"
    assert found.stored.says.startswith(
        f"replaced by seq {found.events[0].seq} while it was looked at; before that valid"
    )
    assert len(found.events) == 2
    assert (found.case, found.cached) == ("nothing", False)
    bus.connected = False
    assert "the nodes could not be asked: it is not connected" in (await explainer.explain(KEY)).notes[0]


def test_a_node_that_nobody_could_ask_is_not_said_to_be_silent() -> None:
    _, sentence = verdict(FOUND._replace(nodes=(SILENT,), unasked=True))
    assert sentence.startswith("node web-4 could not be asked, and may serve what was replaced until at most ")
    assert "answer" not in sentence


def test_no_name_turns_the_order_of_a_line() -> None:
    assert shown("\u202egnp\x1b\n\u2066x\u2069") == "?gnp???x?"
    assert shown("שלום \u3042") == "שלום \u3042"
