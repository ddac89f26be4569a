"""The check finds every stale read, dates it, and finds no other; lags are measured where they belong."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cachebus.tools.demo.history import APPLIED, READ, WRITE, Applied, DemoCheck, DemoLog, DemoWrite, records
from cachebus.tools.demo.lag import Outage, lags, quantile


def write(
    word: int, version: int, returned_s: float, *, called_s: float = 0.0, epoch: int = 1, seq: int = 1
) -> DemoWrite:
    return DemoWrite(word, version, called_s, returned_s, epoch, seq)


def checked(writes: list[DemoWrite], *reads: tuple[int, int, float], bound_s: float = 2.0) -> DemoCheck:
    check = DemoCheck(writes, bound_s)
    check.add(reads)
    return check


def test_fresh_reads_are_fresh() -> None:
    writes = [write(1, 2, 10.0), write(1, 3, 20.0)]
    check = checked(writes, (1, 1, 9.9), (1, 2, 10.1), (1, 2, 19.9), (1, 3, 20.1), (1, 3, 5.0), (2, 1, 99.0))
    assert (check.reads, check.stale, check.stale_beyond, check.oldest_s) == (6, 0, 0, 0.0)


def test_a_read_that_began_with_the_return_is_not_stale() -> None:
    assert checked([write(1, 2, 10.0)], (1, 1, 10.0)).stale == 0


def test_stale_reads_are_dated_by_the_first_write_that_they_missed() -> None:
    writes = [write(1, 2, 10.0), write(1, 3, 11.0), write(1, 4, 12.5)]
    check = checked(writes, (1, 1, 11.5))
    assert (check.stale, check.stale_beyond, check.oldest_s) == (1, 0, 1.5)
    check.add([(1, 2, 14.0)])
    assert (check.stale, check.stale_beyond, check.oldest_s) == (2, 1, 3.0)


def test_the_bound_itself_is_not_beyond_it() -> None:
    assert checked([write(1, 2, 10.0)], (1, 1, 12.0)).stale_beyond == 0
    assert checked([write(1, 2, 10.0)], (1, 1, 12.5)).stale_beyond == 1


def test_invalidations_may_return_in_another_order_than_the_writes_were_made() -> None:
    writes = [write(1, 3, 10.0), write(1, 2, 15.0)]
    check = checked(writes, (1, 3, 16.0), (1, 2, 11.0))
    assert (check.stale, check.oldest_s) == (1, 1.0)


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_a_check_written_from_the_promise(seed: int) -> None:
    dice = random.Random(seed)
    writes = [write(dice.randrange(3), dice.randrange(2, 9), dice.randrange(80) / 4) for _ in range(30)]
    reads = [(dice.randrange(4), dice.randrange(1, 9), dice.randrange(100) / 4) for _ in range(200)]

    def replaced(bound_s: float) -> int:
        return sum(
            any(w.word == word and w.version > version and w.returned_s < started_s - bound_s for w in writes)
            for word, version, started_s in reads
        )

    check = checked(writes, *reads, bound_s=2.0)
    assert (check.stale, check.stale_beyond) == (replaced(0.0), replaced(2.0)), f"seed {seed}"


def test_a_spool_gives_back_what_it_was_given(tmp_path: Path) -> None:
    reads = [(0xFFFFFFFF, number, number / 8) for number in range(10_000)]
    with DemoLog(tmp_path / "reads", READ) as log:
        for read in reads:
            log.add(*read)
    assert [record for batch in records(tmp_path / "reads", READ) for record in batch] == reads


def test_a_record_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    made = write(1, 2, 3.0, epoch=2**64 - 1)
    with DemoLog(tmp_path / "writes", WRITE) as log:
        log.add(*made)
        log.add(*made)
    whole = (tmp_path / "writes").read_bytes()
    (tmp_path / "writes").write_bytes(whole[:-1])
    assert [DemoWrite(*record) for batch in records(tmp_path / "writes", WRITE) for record in batch] == [made]
    assert list(records(tmp_path / "writes", APPLIED)) != []  # of any kind, never an error


def test_lags_are_of_the_other_nodes() -> None:
    writes = {1: [write(1, 2, 1.5, called_s=1.0, seq=5)], 2: []}
    found = lags(writes, {1: [Applied(1, 5, 1.001)], 2: [Applied(1, 4, 0.5), Applied(1, 5, 1.25)]}, None)
    assert (found.pairs, found.p50_s, found.max_s, found.unheard) == (1, 0.25, 0.25, 0)


def test_a_later_event_tells_of_an_earlier_one() -> None:
    """As after a catch-up, where only the last step may be seen."""
    writes = {1: [write(1, 2, 1.5, called_s=1.0, seq=5)]}
    assert lags(writes, {2: [Applied(1, 9, 3.0)]}, None).p50_s == 2.0


def test_another_epoch_says_nothing() -> None:
    writes = {1: [write(1, 2, 1.5, called_s=1.0, epoch=1, seq=5)]}
    found = lags(writes, {2: [Applied(2, 9, 3.0)]}, None)
    assert (found.pairs, found.unheard) == (0, 1)


def test_an_outage_is_told_apart() -> None:
    outage = Outage(2, from_s=10.0, until_s=14.0)
    before, during = write(1, 2, 9.0, called_s=9.0, seq=1), write(1, 3, 11.0, called_s=11.0, seq=2)
    by_the_lost = write(2, 2, 14.0, called_s=12.0, seq=3)
    found = lags(
        {1: [before, during], 2: [by_the_lost], 3: []},
        {
            1: [Applied(1, 3, 14.0)],
            2: [Applied(1, 1, 9.5), Applied(1, 3, 13.5)],
            3: [Applied(1, 1, 9.25), Applied(1, 2, 11.25), Applied(1, 3, 14.0)],
        },
        outage,
    )
    assert (found.pairs, found.max_s, found.outage_max_s) == (3, 0.5, 2.5)


def test_quantiles() -> None:
    assert quantile([], 0.5) == 0.0
    assert [quantile(range(100), q) for q in (0.0, 0.5, 0.99, 1.0)] == [0, 50, 99, 99]
