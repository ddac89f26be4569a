"""Several findings of one subject: none of them hides what another says, stops, or misses."""

from __future__ import annotations

from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.worker.assumptions import Assumptions
from cachebus.consumers.worker.source import Finding
from tests.support.logs import told

WARNS = Finding("slot", "s", "another program reads it")
MISSED = Finding("slot", "s", "it is further than any worker has gone", missed=True, over=True)
STOPS = Finding("slot", "s", "wal_level must be logical", stops=True)
LASTS = Finding("slot", "s", "it is compacted", missed=True)


def watched() -> tuple[Assumptions, WorkerHealth]:
    health = WorkerHealth("test", ("slot",))
    return Assumptions("test", ["slot"], health), health


def why(health: WorkerHealth) -> str:
    return str(health.as_dict()["parts"]["slot"]["why"])


def test_a_warning_hides_nothing_that_is_missed() -> None:
    for findings in ([MISSED, WARNS], [WARNS, MISSED]):
        assumptions, health = watched()
        assert assumptions.update(findings) == [MISSED]
        assert why(health) == str(WARNS), "what is over is made up for, and no part of it"


def test_what_is_missed_once_more_behind_a_warning_is_due_once_more() -> None:
    assumptions, _ = watched()
    assumptions.update([MISSED, WARNS])
    assumptions.made_up([MISSED])
    assert not assumptions.update([WARNS])
    assert assumptions.update([MISSED, WARNS]) == [MISSED]


def test_a_warning_that_changes_makes_nothing_due() -> None:
    assumptions, _ = watched()
    assert assumptions.update([MISSED, WARNS]) == [MISSED]
    assert not assumptions.update([MISSED, WARNS._replace(problem="two programs read it")])


def test_what_stops_does_so_behind_another() -> None:
    for findings in ([STOPS, WARNS], [WARNS, STOPS], [STOPS, MISSED], [MISSED, STOPS]):
        assumptions, health = watched()
        assumptions.update(findings)
        assert assumptions.stopped
        assert STOPS.problem in why(health)


def test_all_that_is_wrong_with_one_subject_is_told() -> None:
    assumptions, health = watched()
    assumptions.update([WARNS, STOPS, LASTS])
    assert all(one.problem in why(health) for one in (WARNS, STOPS, LASTS))


def test_what_lasts_and_what_is_over_are_both_due() -> None:
    assumptions, _ = watched()
    assert assumptions.update([LASTS, MISSED]) == [LASTS, MISSED]
    assumptions.made_up([LASTS, MISSED])
    assert assumptions.update([LASTS]) == []
    assert assumptions.update([]) == [LASTS], "it has ended: what it missed last is due"


def test_what_is_missed_no_more_is_due_though_a_warning_of_the_same_goes_on() -> None:
    assumptions, _ = watched()
    assert assumptions.update([LASTS, WARNS]) == [LASTS]
    assert assumptions.update([WARNS]) == [LASTS]


def test_it_is_in_order_again_once_nothing_is_found_of_it() -> None:
    assumptions, health = watched()
    with told() as lines:
        assumptions.update([LASTS, WARNS])
        assumptions.update([WARNS])
        assert not [line for line in lines if "in order again" in line]
        assumptions.update([])
    assert len([line for line in lines if "in order again" in line]) == 1
    assert health.ready
