"""What the log says of a trouble that lasts, and of lines that were not told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cachebus.base.log import AT_ONCE, MINUTE_S, Logger
from cachebus.core.ports import Store
from cachebus.listening.outages import TELL_EVERY_S, Notices, Outages
from cachebus.testing import FakeClock, Fleet
from tests.support.caches import parts
from tests.support.logs import told

WRONGPASS = "10.0.0.1:6379 refused: WRONGPASS invalid username-password pair"


def outages(clock: FakeClock) -> Outages:
    store: Any = SimpleNamespace(reaches=lambda shard: True)
    return Outages(store, clock, 2)


def test_a_reason_that_lasts_is_told_though_the_lines_of_its_kind_were_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Primaries that flap use up what is told in a minute; then one reason lasts for hours."""
    clock = FakeClock()
    monkeypatch.setattr("cachebus.base.log.monotonic", clock)
    with told() as lines:
        it = outages(clock)
        for _ in range(AT_ONCE + 5):
            it.lost("L2", 0, "lost 10.0.0.1:6379: connection reset")
            it.back("L2", 0)
        it.lost("L2", 0, WRONGPASS)
        assert not any("WRONGPASS" in line for line in lines)
        for _ in range(3600):
            clock.advance(1.0)
            it.lost("L2", 0, WRONGPASS)
    again = [line for line in lines if "WRONGPASS" in line]
    assert again[0] == f"L2 is still out of reach after {TELL_EVERY_S:.0f} s: {WRONGPASS}"
    assert len(again) == 3600 / TELL_EVERY_S


def test_reasons_that_take_turns_are_told_once_each_a_minute() -> None:
    clock = FakeClock()
    with told() as lines:
        it = outages(clock)
        for _ in range(50):
            it.lost("L2", 0, "no answer")
            it.lost("L2", 0, WRONGPASS)
            it.lost("L2", 1, WRONGPASS)
    assert lines == ["L2 out of reach: no answer", f"L2 out of reach: {WRONGPASS}"]


def test_after_its_end_a_reason_is_told_anew() -> None:
    clock = FakeClock()
    with told() as lines:
        it = outages(clock)
        it.lost("bus", 0, "no answer")
        it.back("bus", 0)
        clock.advance(100.0)
        it.lost("bus", 0, "no answer")
    assert lines == ["bus out of reach: no answer", "bus: all is well again", "bus out of reach: no answer"]


def test_a_notice_is_told_once_but_where_it_lasts_and_costs() -> None:
    clock = FakeClock()
    with told() as lines:
        notices = Notices(clock)
        for _ in range(121):
            notices.say("bounds", "others have a larger one")
            notices.say("heartbeat", "shards differ", lasts=True)
            clock.advance(1.0)
    assert lines.count("bounds: others have a larger one") == 1
    assert lines.count("heartbeat: shards differ") == 3


def test_how_many_lines_were_not_told_is_said_though_none_of_their_kind_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, told_by = FakeClock(), Logger()
    monkeypatch.setattr("cachebus.base.log.monotonic", clock)
    for number in range(AT_ONCE + 5):
        told_by.warning("{} is odd", number)
    told_by.warning("one is even")
    told_by.tell_withheld()
    assert len(caplog.messages) == AT_ONCE + 1
    clock.advance(MINUTE_S)
    for _ in range(2):
        told_by.tell_withheld()
    assert caplog.messages[AT_ONCE + 1 :] == ["5 lines of this kind were not told: {} is odd"]


def store_of(fleet: Fleet) -> Store:
    return parts(fleet.caches[0]).store


async def test_a_refusal_that_lasts_is_told_each_minute() -> None:
    clock = FakeClock()
    async with Fleet(1) as fleet:
        outages = Outages(store_of(fleet), clock, 2)
        with told() as lines:
            for shard in (0, 1, 0, 1):
                outages.refused(shard, "laid out otherwise")
            assert len(lines) == 1
            clock.advance(TELL_EVERY_S)
            for shard in (0, 1):
                outages.refused(shard, "laid out otherwise")
            assert len(lines) == 2
            assert lines[-1].startswith("L2: all shards refuse this node: laid out otherwise: ")
            assert outages.refusing == {0, 1}
            outages.back("L2", 0)
            assert len(lines) == 2
            outages.back("L2", 1)
            assert lines[2:] == ["L2: all is well again"]
            assert not outages.refusals()


async def test_what_is_out_of_reach_refuses_nobody() -> None:
    async with Fleet(1) as fleet:
        outages = Outages(store_of(fleet), FakeClock(), 1)
        outages.refused(0, "laid out otherwise")
        outages.lost("L2", 0, "it is gone")
        assert (outages.refusals(), outages.reasons("L2")) == ([], {"it is gone": [0]})
        outages.refused(0, "laid out otherwise")
        assert (outages.refusing, outages.reasons("L2")) == ({0}, {})
