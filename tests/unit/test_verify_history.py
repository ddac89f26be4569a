"""Histories written by hand: each promise broken once is found, and right ones pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from cachebus.tools.harness.messages import Tick
from cachebus.tools.verify.checker.evidence import Evidence
from cachebus.tools.verify.checker.explanation import LINES_MAX
from cachebus.tools.verify.checker.judge import judge
from cachebus.tools.verify.checker.verdict import Verdict
from cachebus.tools.verify.fleet import anomalies, data_types, history_log
from cachebus.tools.verify.fleet.disturbances import ENTERED, FLUSHED, GAP, L2_FAILED, LATE, STALLED
from cachebus.tools.verify.fleet.guarded_writes import GUARDED
from cachebus.tools.verify.fleet.history_log import VERB_SHIFT, WAITED, HistoryLog
from cachebus.tools.verify.fleet.items import make_items
from cachebus.tools.verify.fleet.reading import ANY_TOKEN, GET, L2, LOAD, SESSION_TOKEN, TOKEN
from cachebus.tools.verify.fleet.setup import bound_of
from cachebus.tools.verify.fleet.writing import ADD, BY_WORKER, DELETE, EVERYTHING, KEY, SET, TAG, TENANT, TYPE
from cachebus.tools.verify.target.testbed import InjectedFault

D_S = 1.0
NEVER = 0.0


class Past:
    """A run that never was: two nodes, and what they wrote down. Times are seconds from its beginning."""

    def __init__(self, directory: Path) -> None:
        self.items = make_items()
        self._directory = directory
        self._logs: dict[tuple[str, str], HistoryLog] = {}
        self.versions = [1] * len(self.items)
        self.faults: list[InjectedFault] = []
        self.away: list[tuple[float, float]] = []
        self.not_ready: tuple[int, ...] = ()
        self.held = 0
        self.left: dict[int, str] = {}
        self.shards = 1
        self.item = self.of_type("page")

    def of_type(self, data_type: str) -> int:
        """The first item of a type."""
        return next(i.number for i in self.items[1:] if i.data_type == data_type)

    def note(self, node: str, kind: str, *fields: float) -> None:
        """A record on a node's log."""
        known = self._logs.get((node, kind))
        if known is None:
            known = self._logs[node, kind] = HistoryLog(self._directory, node, kind)
        known.add(*fields)

    def wrote(
        self,
        node: str,
        version: int,
        called_s: float,
        returned_s: float,
        *,
        verb: int = KEY,
        failed_s: float = NEVER,
        seq: int = 7,
        waited: bool = False,
    ) -> None:
        """A write of the item. `failed_s`: of one behind a guard, when that ends by itself."""
        self.versions[self.item] = max(self.versions[self.item], version)
        self.note(
            node,
            "writes",
            self.item | (verb | (WAITED if waited else 0)) << VERB_SHIFT,
            version,
            100 + called_s,
            returned_s and 100 + returned_s,
            failed_s and 100 + failed_s,
            0xAB,
            seq,
        )

    def read(self, node: str, version: int, at_s: float, verb: int = GET) -> None:
        """A read of the item."""
        self.note(node, "reads", self.item | verb << VERB_SHIFT, version, 100 + at_s)

    def loaded(self, node: str, from_s: float, until_s: float, *, ordinary: int = 1, version: int = 1) -> None:
        """A load of the item."""
        self.note(node, "loads", self.item | ordinary << VERB_SHIFT, version, 100 + from_s, until_s and 100 + until_s)

    def fault(self, name: str, node: int, from_s: float, until_s: float, shards: frozenset[int] | None = None) -> None:
        """A fault that was made."""
        self.faults.append(InjectedFault(name, node, 100 + from_s, 100 + until_s, shards))

    def refused(self, node: str, at_s: float) -> None:
        """A read of the item that L2 was away for."""
        self.note(node, "anomalies", self.item | GET << VERB_SHIFT, anomalies.UNAVAILABLE, 5, 0, 100 + at_s)

    async def verdict(self) -> Verdict:
        """The judge's."""
        evidence = Evidence(
            self._directory,
            self.items,
            dict.fromkeys(("1.1", "2.1", "3.1"), (90.0, 200.0)),
            [Tick(node=1, at_s=1.0)],
            self.faults,
            frozenset({"flushall"}),
            self.away,
            D_S,
            self.versions,
            self.not_ready,
            self.held,
            self.left,
            self.shards,
        )
        return await judge(evidence, seed=7, server="none", nodes=2, seconds=9.0)

    async def broken(self) -> dict[str, int]:
        """How often each promise was broken; that news come late is no matter of most histories."""
        return {name: count for name, count in (await self.verdict()).counts.items() if count and name != "lag"}


@pytest.fixture
def past(tmp_path: Path) -> Past:
    return Past(tmp_path)


# -- bounded staleness ---------------------------------------------------------------------------------------


async def test_a_read_older_than_the_bound_is_found_and_told(past: Past) -> None:
    past.note("3.1", "applied", 0xAB, 5, 101.0)
    past.note("3.1", "applied", 0xAB, 6, 102.0)
    past.note("1.1", "applied", 0xAB, 7, 103.0)
    past.wrote("1.1", 2, 3.0, 3.1)
    past.fault("hang", 3, 2.5, 9.0)
    past.read("3.1", 1, 4.2)
    verdict = await past.verdict()
    assert not verdict.ok
    assert verdict.stale_beyond == 1
    assert verdict.worst_age_s == pytest.approx(1.1)
    (finding,) = verdict.broken
    assert finding.promise == "G1"
    story = "\n".join(finding.story)
    assert "-1.100 s node 1.1: invalidate, for version 2 of acme page" in story
    assert "node 3.1: get of acme page" in story
    assert "node 1.1 had applied 00000000000000ab.7: the write too" in story
    assert "node 3.1 had applied 00000000000000ab.6: 1 short of the write" in story
    assert "hang of node 3, until +4.800 s" in story
    with pytest.raises(AssertionError, match="seed 7"):
        verdict.raise_for_broken()


@pytest.mark.parametrize(("version", "at_s"), [(1, 4.0), (1, 3.05), (2, 9.0), (3, 3.0)])
async def test_a_read_within_the_bound_or_of_what_is_new_is_right(past: Past, version: int, at_s: float) -> None:
    past.wrote("1.1", 2, 3.0, 3.1)
    past.wrote("1.1", 3, 2.9, NEVER)
    past.read("2.1", version, at_s)
    assert await past.broken() == {}


async def test_ages_count_from_the_first_write_that_was_missed(past: Past) -> None:
    past.wrote("1.1", 2, 1.0, 1.1)
    past.wrote("1.1", 3, 1.2, 1.3)
    past.read("2.1", 2, 1.34)
    past.read("2.1", 1, 1.34)
    past.read("2.1", 3, 1.34)
    verdict = await past.verdict()
    assert verdict.ok
    assert (verdict.stale, verdict.judged) == (2, 3)
    assert verdict.worst_age_s == pytest.approx(0.24)
    assert verdict.within(0.5) == 1.0
    assert verdict.within(0.05) == pytest.approx(2 / 3)


async def test_calls_that_return_in_another_order_than_their_changes(past: Past) -> None:
    past.wrote("1.1", 3, 1.0, 1.1)
    past.wrote("2.1", 2, 0.9, 1.5)
    past.read("3.1", 2, 2.2)
    assert await past.broken() == {"G1": 1}


async def test_a_write_that_never_returned_promises_nothing(past: Past) -> None:
    past.wrote("1.1", 2, 1.0, NEVER, failed_s=1.5)
    past.read("2.1", 1, 9.0)
    assert await past.broken() == {}


async def test_one_that_raised_and_was_repeated_counts_from_its_return(past: Past) -> None:
    past.wrote("1.1", 2, 1.0, 3.0, failed_s=1.5)
    past.read("3.1", 1, 3.9)
    assert await past.broken() == {}
    past.read("3.1", 1, 4.1)
    assert await past.broken() == {"G1": 1}


@pytest.mark.parametrize("verb", [SET, ADD])
@pytest.mark.parametrize("returned_s", [NEVER, 1.9])
async def test_a_value_whose_call_raised_may_come_later(past: Past, verb: int, returned_s: float) -> None:
    past.wrote("1.1", 2, 1.0, returned_s, failed_s=1.5, verb=verb)
    past.wrote("1.1", 3, 2.0, 2.1, verb=SET)
    past.read("2.1", 2, 8.0)
    verdict = await past.verdict()
    assert (verdict.ok, verdict.unsure) == (True, 1)
    past.read("2.1", 1, 8.0)
    assert await past.broken() == {"G1": 1}


async def test_an_added_value_replaces_nothing(past: Past) -> None:
    past.wrote("1.1", 2, 1.0, 1.1, verb=ADD)
    past.read("1.1", 1, 8.0)
    assert await past.broken() == {}


# -- own writes, tokens, sessions ----------------------------------------------------------------------------


async def test_a_node_that_misses_its_own_write(past: Past) -> None:
    past.wrote("1.1", 2, 1.0, 1.1)
    past.read("1.1", 1, 1.05)
    past.read("2.1", 1, 1.2)
    assert await past.broken() == {}
    past.read("1.1", 1, 1.2)
    assert await past.broken() == {"G2": 1}


@pytest.mark.parametrize(("kind", "promise"), [(ANY_TOKEN, "G3"), (SESSION_TOKEN, "I7")])
async def test_a_token_that_was_not_honoured(past: Past, kind: int, promise: str) -> None:
    mark = past.item | TOKEN << VERB_SHIFT
    past.wrote("1.1", 2, 1.0, 1.1)
    past.note("2.1", "tokens", mark, 2, 101.2, 2, kind)
    past.note("2.1", "tokens", mark, 3, 101.2, 2, kind)
    assert await past.broken() == {}
    past.note("2.1", "tokens", mark, 1, 101.2, 2, kind)
    assert await past.broken() == {promise: 1}


# -- stale fills, tenants, rest ------------------------------------------------------------------------------


async def test_what_l2_gives_after_it_was_removed(past: Past) -> None:
    past.wrote("1.1", 2, 1.0, 1.1, verb=DELETE)
    past.read("2.1", 1, 1.2, verb=LOAD)
    past.read("2.1", 1, 1.05, verb=L2)
    assert await past.broken() == {}
    past.read("2.1", 1, 1.2, verb=L2)
    assert await past.broken() == {"G5": 1}


async def test_a_mark_is_judged_by_the_reader_and_may_be_behind(past: Past) -> None:
    past.wrote("1.1", 2, 1.0, 1.1, verb=TYPE)
    past.read("2.1", 1, 1.2, verb=L2)
    assert await past.broken() == {}


async def test_every_node_has_its_own_bound(past: Past) -> None:
    past.wrote("1.1", 2, 1.0, 1.1)
    past.read("2.1", 1, 1.0 + bound_of(2, D_S))
    assert await past.broken() == {}
    past.read("2.1", 1, 1.2 + bound_of(2, D_S))
    assert await past.broken() == {"G1": 1}


async def test_a_write_that_waited_is_seen_by_all_at_once(past: Past) -> None:
    past.wrote("1.1", 2, 1.0, 1.1)
    past.read("3.1", 1, 1.2)
    assert await past.broken() == {}
    past.wrote("1.1", 3, 2.0, 2.1, waited=True)
    past.read("3.1", 2, 2.05)
    assert await past.broken() == {}
    past.read("3.1", 2, 2.2)
    assert await past.broken() == {"G4": 1}


async def test_behind_a_guard_that_was_left_nothing_old_is_read_once_it_is_over(past: Past) -> None:
    past.wrote("1.1", 2, 1.0, NEVER, verb=GUARDED, failed_s=3.0)
    past.read("3.1", 1, 2.9)
    assert await past.broken() == {}
    past.read("3.1", 1, 3.1)
    assert await past.broken() == {"G6": 1}


async def test_a_guard_that_came_to_its_end_is_a_write_like_any_other(past: Past) -> None:
    past.wrote("1.1", 2, 1.0, 1.2, verb=GUARDED, failed_s=9.0)
    past.read("3.1", 1, 2.1)
    assert await past.broken() == {}
    past.read("3.1", 1, 2.3)
    assert await past.broken() == {"G1": 1}


@pytest.mark.parametrize("kind", sorted(anomalies.PROMISES))
async def test_what_a_node_sees_by_itself(past: Past, kind: int) -> None:
    past.note("1.1", "anomalies", past.item | GET << VERB_SHIFT, kind, past.item + 1, 4, 101.0)
    verdict = await past.verdict()
    assert verdict.counts[anomalies.PROMISES[kind]] == 1
    assert verdict.foreign == (kind == anomalies.FOREIGN)
    (finding,) = verdict.broken
    assert finding.told.startswith("node 1.1: acme page ")


async def test_what_was_lost_may_have_been_in_the_way_of_an_add(past: Past) -> None:
    past.note("1.1", "anomalies", past.item, anomalies.ADD_REFUSED, 0, 0, 101.0)
    past.fault("del-records", 0, 1.5, 1.5)
    assert await past.broken() == {}


# -- sources -------------------------------------------------------------------------------------------------


async def test_nothing_outlives_its_time_to_live_and_its_fail_safe(past: Past) -> None:
    past.item = past.of_type("quick")
    life_s = data_types.MAX_AGE_S["quick"]
    past.loaded("2.1", 1.0, 1.1)
    past.read("1.1", 1, 1.0 + life_s)
    assert await past.broken() == {}
    past.read("1.1", 1, 2.0 + life_s)
    assert await past.broken() == {"life": 1}
    past.fault("stop", 2, 1.0, 2.0)
    assert await past.broken() == {}, "it may have been stored later"


async def test_that_there_was_nothing_ends_too(past: Past) -> None:
    past.item = past.of_type("maybe")
    past.loaded("2.1", 1.0, 1.1, version=data_types.ABSENT_EVERY)
    past.note("1.1", "absent", past.item, 101.9, 101.91)
    assert await past.broken() == {}
    past.loaded("2.1", 4.0, 4.1, version=data_types.ABSENT_EVERY)
    past.note("1.1", "absent", past.item, 103.0, 104.2)
    assert await past.broken() == {}, "it may have waited for that"
    past.note("1.1", "absent", past.item, 103.0, 103.1)
    assert await past.broken() == {"life": 1}


async def test_a_source_that_has_failed_is_left_alone_by_who_has_something(past: Past) -> None:
    past.item = past.of_type("odd")
    past.loaded("1.1", 5.0, 5.1, version=0)
    past.loaded("1.1", 5.4, 5.5)
    assert await past.broken() == {}, "it may have had nothing to serve"
    past.note("1.1", "shown", past.item, 105.2, 105.45)
    assert await past.broken() == {}, "nor is that shown by who waited for the second"
    past.note("1.1", "shown", past.item, 105.2, 105.21)
    assert await past.broken() == {"rest": 1}


@pytest.mark.parametrize(("other_s", "broken"), [(5.15, {}), (4.9, {}), (3.5, {"rest": 1})])
async def test_that_it_has_answered_another_node_ends_that(past: Past, other_s: float, broken: dict[str, int]) -> None:
    """And so does what came to L2 after the load in vain, though the source had answered before."""
    past.item = past.of_type("odd")
    past.loaded("1.1", 5.0, 5.1, version=0)
    past.loaded("2.1", other_s, other_s + 0.03)
    past.loaded("1.1", 5.4, 5.5)
    past.note("1.1", "shown", past.item, 105.2, 105.21)
    assert await past.broken() == broken


@pytest.mark.parametrize(("later_s", "count"), [(0.2, 1), (0.5, 0)])
async def test_a_source_that_has_answered_is_left_alone_until_the_soft_expiry(
    past: Past, later_s: float, count: int
) -> None:
    past.item = past.of_type("odd")
    past.loaded("1.1", 5.0, 5.01)
    past.loaded("1.1", 5.0 + later_s, 5.01 + later_s)
    assert (await past.broken()).get("rest", 0) == count


async def test_what_was_loaded_under_a_lease_that_was_taken_away_is_not_kept(past: Past) -> None:
    past.item = past.of_type("odd")
    past.loaded("1.1", 5.0, 5.01)
    past.loaded("1.1", 5.2, 5.21)
    past.fault("del-leases", 0, 5.1, 5.12)
    assert await past.broken() == {"rest": 1}, "it had none any more"
    past.fault("del-leases", 0, 5.002, 5.004)
    assert await past.broken() == {}


async def test_what_is_loaded_in_a_young_epoch_is_kept_until_guards_that_were_lost_are_over(past: Past) -> None:
    past.item = past.of_type("odd")
    past.loaded("1.1", 9.0, 9.01)
    past.loaded("1.1", 9.2, 9.21)
    past.note("2.1", "disturbances", ENTERED, 103.0, 103.02)
    assert await past.broken() == {"rest": 1}, "it was old by then"
    past.note("2.1", "disturbances", ENTERED, 107.0, 107.02)
    assert await past.broken() == {}, "as any node tells, however long after a fault"


def _by_scope(past: Past) -> None:
    item, past.item = past.item, past.of_type("odd") + 20
    past.wrote("2.1", 2, 5.05, 5.1, verb=TENANT)
    past.item = item


def _by_everything(past: Past) -> None:
    item = past.item
    past.item = next(i.number for i in past.items[1:] if i.tenant == "b*lt" and i.cache_index == 0)
    past.wrote("2.1", 2, 5.05, 5.1, verb=EVERYTHING)
    past.item = item


@pytest.mark.parametrize(
    "excuse",
    [
        lambda past: past.wrote("2.1", 2, 5.05, 5.1),
        _by_scope,
        _by_everything,
        lambda past: past.fault("hang", 1, 4.0, 5.0),
        lambda past: past.fault("flushall", 0, 5.1, 5.1),
    ],
)
async def test_what_takes_the_value_away_explains_another_load(past: Past, excuse: Any) -> None:
    past.item = past.of_type("odd")
    past.loaded("1.1", 5.0, 5.01)
    past.loaded("1.1", 5.2, 5.21)
    excuse(past)
    assert await past.broken() == {}


async def test_a_lease_that_nobody_gave_back(past: Past) -> None:
    past.held = 2
    assert await past.broken() == {"lease": 1}


@pytest.mark.parametrize(("l1", "l2", "count"), [(2, 2, 0), (0, 0, 0), (2, 0, 0), (1, 2, 1), (0, 1, 1), (1, 1, 2)])
async def test_at_rest_all_agree_or_hold_nothing(past: Past, l1: int, l2: int, count: int) -> None:
    past.wrote("1.1", 2, 1.0, 1.1)
    past.note("1.1", "rest", past.item, l1, l2)
    verdict = await past.verdict()
    assert (verdict.counts.get("I14", 0), verdict.looked) == (count, 1)


async def test_a_node_that_did_not_recover(past: Past) -> None:
    past.not_ready = (2,)
    assert await past.broken() == {"recovery": 1}


# -- loads ---------------------------------------------------------------------------------------------------


async def test_two_loads_at_a_time_are_found(past: Past) -> None:
    past.loaded("1.1", 5.0, 5.5)
    past.loaded("2.1", 5.5, 5.6)
    past.loaded("1.1", 6.0, 6.5)
    assert await past.broken() == {}
    past.loaded("2.1", 6.4, 6.6)
    verdict = await past.verdict()
    assert (verdict.counts["I13"], verdict.loads_twice) == (1, 1)


async def test_two_loads_are_told_with_what_was_around_them_however_much_that_was(past: Past) -> None:
    past.away = [(104.0, 109.0)]
    past.loaded("1.1", 6.0, 6.1)
    past.loaded("1.1", 6.5, 6.6)
    past.wrote("2.1", 2, 6.2, 6.3, verb=TYPE)
    for at in range(100):
        past.note("1.1", "disturbances", L2_FAILED, 105.9 + at / 1000, 105.9 + at / 1000)
    (finding,) = (await past.verdict()).broken
    assert finding.story[-2:] == (
        "   +0.200 s node 2.1: invalidate_scope(type) for version 2, until +0.300 s",
        "   +0.500 s node 1.1 loads, and reads version 1, until +0.600 s",
    )
    assert "   +0.000 s node 1.1 loads, and reads version 1, until +0.100 s" in finding.story
    assert sum("got no answer from L2" in line for line in finding.story) == LINES_MAX - 1


async def test_what_goes_on_is_told_in_one_line(past: Past) -> None:
    past.away = [(104.0, 109.0)]
    past.loaded("1.1", 6.0, 6.1)
    past.loaded("1.1", 6.5, 6.6)
    for at_s in (106.0, 106.125, 106.25, 106.5):
        past.note("1.1", "disturbances", L2_FAILED, at_s, at_s + 0.125)
        past.note("1.1", "disturbances", STALLED, at_s, at_s + 0.0625)
    (finding,) = (await past.verdict()).broken
    told = [line.strip() for line in finding.story if "got no answer" in line]
    spans = [("+0.000", "+0.375"), ("+0.500", "+0.625")]
    assert told == [f"{from_s} s node 1.1 got no answer from L2, until {until_s} s" for from_s, until_s in spans]


def _by_write(past: Past) -> None:
    past.wrote("1.1", 2, 6.1, 6.2)


def _by_unanswered_write(past: Past) -> None:
    past.wrote("1.1", 2, 1.0, NEVER, failed_s=1.5)


def _by_l2(past: Past) -> None:
    past.note("2.1", "disturbances", L2_FAILED, 106.3, 106.4)


def _by_network(past: Past) -> None:
    past.fault("hang", 1, 4.0, 5.0)


def _by_flush(past: Past) -> None:
    past.fault("flushall", 0, 6.1, 6.1)


@pytest.mark.parametrize("excuse", [_by_write, _by_unanswered_write, _by_l2, _by_network, _by_flush])
async def test_a_lease_that_had_ended_explains_a_second_load(past: Past, excuse: Any) -> None:
    past.loaded("1.1", 6.0, 6.5)
    past.loaded("2.1", 6.4, 6.6)
    excuse(past)
    assert await past.broken() == {}


def _mark_only(past: Past) -> None:
    past.wrote("1.1", 2, 6.1, 6.2, verb=TYPE)


def _deaf(past: Past) -> None:
    past.fault("deaf", 1, 4.0, 7.0)


def _slow(past: Past) -> None:
    past.fault("slow", 1, 4.0, 7.0)


@pytest.mark.parametrize("no_excuse", [_mark_only, _deaf, _slow])
async def test_what_ends_no_lease_explains_nothing(past: Past, no_excuse: Any) -> None:
    past.loaded("1.1", 6.0, 6.5)
    past.loaded("2.1", 6.4, 6.6)
    no_excuse(past)
    assert await past.broken() == {"I13": 1}


@pytest.mark.parametrize(
    ("loads", "count"),
    [
        ([(6.0, 6.1, 1), (6.5, 6.6, 1)], 1),
        ([(6.0, 6.1, 1), (7.05, 7.1, 1)], 0),
        ([(6.0, 6.1, 1), (6.5, 6.6, 0)], 0),
        ([(2.0, 2.1, 1), (2.5, 2.6, 1)], 0),
    ],
)
async def test_without_l2_a_node_loads_once_a_bound(past: Past, loads: Sequence[Any], count: int) -> None:
    past.away = [(104.0, 109.0)]
    for from_s, until_s, ordinary in loads:
        past.loaded("1.1", from_s, until_s, ordinary=ordinary)
    assert (await past.verdict()).counts.get("I13", 0) == count


async def test_what_comes_behind_a_gap_may_take_away_what_was_loaded_without_l2(past: Past) -> None:
    past.away = [(104.0, 109.0)]
    past.loaded("1.1", 6.0, 6.1)
    past.loaded("1.1", 6.5, 6.6)
    past.note("1.1", "disturbances", GAP, 106.2, 106.22)
    assert await past.broken() == {}


@pytest.mark.parametrize(
    ("stalled", "broken"),
    [((105.7, 106.1), {}), ((105.7, 105.99), {}), ((105.98, 106.1), {"I13": 1}), ((105.2, 105.9), {"I13": 1})],
)
async def test_what_was_loaded_while_its_process_stood_still_is_as_old_as_its_question(
    past: Past, stalled: tuple[float, float], broken: dict[str, int]
) -> None:
    past.away = [(104.0, 109.0)]
    past.loaded("1.1", 6.0, 6.1)
    past.loaded("1.1", 6.85, 6.9)
    past.note("1.1", "disturbances", STALLED, *stalled)
    assert await past.broken() == broken


SAME_TYPE, OTHER_TYPE = 2, 1
"""How far it is to the next item of the same type, and to one of another."""


@pytest.mark.parametrize(
    ("verb", "node", "away", "broken"),
    [
        (KEY, "1.1", 0, {}),
        (KEY, "2.1", 0, {"I13": 1}),
        (KEY, "1.1", SAME_TYPE, {"I13": 1}),
        (TYPE, "1.1", SAME_TYPE, {}),
        (TYPE, "1.1", OTHER_TYPE, {"I13": 1}),
        (TYPE, "2.1", SAME_TYPE, {"I13": 1}),
        (TENANT, "1.1", OTHER_TYPE, {}),
        (TAG, "1.1", OTHER_TYPE, {}),
    ],
)
async def test_without_l2_an_own_write_lets_it_load_again(
    past: Past, verb: int, node: str, away: int, broken: dict[str, int]
) -> None:
    """Also one of a scope that holds it, written down under another item of that scope."""
    past.away = [(104.0, 109.0)]
    past.loaded("1.1", 6.0, 6.1)
    past.loaded("1.1", 6.5, 6.6)
    item = past.item
    past.item += away
    past.wrote(node, 2, 6.2, NEVER, verb=verb, failed_s=6.3)
    past.item = item
    assert await past.broken() == broken


@pytest.mark.parametrize(
    ("node", "at_s", "broken"),
    [("1.1", 21.0, {}), ("1.1", 25.5, {}), ("1.1", 31.0, {"G4": 1}), ("2.1", 21.0, {"G4": 1})],
)
async def test_who_began_on_an_empty_server_waits_for_those_it_has_heard_of(
    past: Past, node: str, at_s: float, broken: dict[str, int]
) -> None:
    past.fault("newborn", 1, 20.0, 20.5)
    past.fault("restart", 0, 22.0, 25.0)
    past.wrote(node, 2, at_s, at_s + 0.1, waited=True)
    past.read("3.1", 1, at_s + 0.2)
    assert await past.broken() == broken


# -- while nothing is wrong ----------------------------------------------------------------------------------


async def test_nothing_is_refused_while_nothing_is_wrong_where_it_lies(past: Past) -> None:
    past.shards = 64
    mine = crc32((past.items[past.item].tenant or "").encode()) % 64
    past.fault("failover", 0, 20.0, 22.0, frozenset({mine}))
    past.refused("1.1", 21.0)
    past.fault("failover", 0, 30.0, 32.0)
    past.refused("1.1", 31.0)
    past.fault("cut", 1, 40.0, 42.0)
    past.refused("1.1", 41.0)
    past.note("1.1", "disturbances", LATE, 170.0, 170.05)
    past.refused("1.1", 70.3)
    assert await past.broken() == {}
    past.refused("2.1", 41.0)
    past.fault("failover", 0, 50.0, 52.0, frozenset({mine + 1}))
    past.refused("1.1", 51.0)
    past.refused("1.1", 60.0)
    assert await past.broken() == {"up": 3}


async def test_what_happens_while_nothing_is_wrong_is_news_in_time_and_no_flush(past: Past) -> None:
    past.wrote("1.1", 2, 20.0, 20.1)
    past.read("2.1", 1, 20.1 + 0.45 * bound_of(2, D_S))
    past.fault("flushall", 0, 40.0, 40.1)
    past.note("2.1", "disturbances", FLUSHED, 140.2, 140.25)
    assert not any((await past.verdict()).counts.values())
    past.read("2.1", 1, 20.1 + 0.55 * bound_of(2, D_S))
    past.note("2.1", "disturbances", FLUSHED, 130.2, 130.25)
    counts = (await past.verdict()).counts
    assert (counts["lag"], counts["flush"]) == (1, 1)


async def test_a_worker_is_late_only_where_something_is_wrong_or_was_just_before(past: Past) -> None:
    past.wrote("1.1", 2, 20.0, 20.0 + 0.9 * D_S, verb=BY_WORKER)
    past.wrote("1.1", 3, 30.0, 30.0 + 1.1 * D_S, verb=KEY)
    past.fault("cut", 1, 40.0, 41.0)
    past.wrote("1.1", 4, 44.0, 44.0 + 1.1 * D_S, verb=BY_WORKER)
    assert not any((await past.verdict()).counts.values())
    past.wrote("1.1", 5, 60.0, 60.0 + 1.1 * D_S, verb=BY_WORKER)
    (finding,) = (await past.verdict()).broken
    assert "the worker of node 1.1 had acme page 0" in finding.told


async def test_what_the_own_worker_has_said_may_reach_the_own_cache_as_late_as_any(past: Past) -> None:
    past.wrote("1.1", 2, 20.0, 20.1, verb=BY_WORKER)
    past.read("1.1", 1, 20.2)
    assert await past.broken() == {}
    past.wrote("1.1", 3, 30.0, 30.1)
    past.read("1.1", 2, 30.2)
    assert await past.broken() == {"G2": 1}


async def test_what_is_left_over_is_told(past: Past) -> None:
    past.left = {2: "3 tasks and 1 sockets"}
    (finding,) = (await past.verdict()).broken
    assert finding.told == "node 2 had 3 tasks and 1 sockets more than at its start"


# -- logs ----------------------------------------------------------------------------------------------------


def test_a_tape_outgrows_its_first_file_and_may_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_log, "CHUNK", 3)
    written = HistoryLog(tmp_path, "1.1", "loads")
    places = [written.add(number, 1, 2.0, 0.0) for number in range(1, 9)]
    written.change(places[6], 7, 5, 2.0, 3.0)
    found = history_log.all_records(tmp_path, "1.1", "loads")
    assert [record[0] for record in found] == list(range(1, 9))
    assert found[6] == (7, 5, 2.0, 3.0)
    assert history_log.all_records(tmp_path, "2.1", "loads") == []
