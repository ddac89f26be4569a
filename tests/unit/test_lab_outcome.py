"""The demo's incident takes its course, and what came of a run is told as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from cachebus.tools.demo.figures import Figures
from cachebus.tools.demo.incident import Action, Incident, too_short
from cachebus.tools.demo.lag import Lags
from cachebus.tools.demo.plan import DemoPlan
from cachebus.tools.demo.report import as_json, printed
from cachebus.tools.demo.run import Outcome
from cachebus.tools.harness.messages import Tick

FIGURES = Figures(
    took_s=15.0,
    reads=1_000,
    failed=0,
    writes=10,
    repeated=0,
    l1_share=0.8,
    l2_share=0.1,
    loads=100,
    loads_saved=0.9,
    checked=1_000,
    stale=3,
    stale_beyond=0,
    oldest_s=0.0123,
    own_missed=0,
    lags=Lags(pairs=30, p50_s=0.0005, p99_s=0.002, max_s=0.003, outage_max_s=4.0, unheard=0),
)
OFF = replace(FIGURES, stale=500, stale_beyond=99, oldest_s=4.9, loads_saved=0.6)
OVERCOME = Incident(3, 2.0, began_s=10.0, lapsed_s=11.5, restored_s=14.0, recovered_s=14.25)


def report(outcome: Outcome) -> str:
    out = StringIO()
    printed(outcome, Console(file=out, width=100))
    return out.getvalue()


def test_the_incident_takes_its_course() -> None:
    incident = Incident(2, bound_s=2.0)
    assert incident.due(0.39, 105.0) is None
    assert incident.see(Tick(node=2, at_s=105.0), head=0) is None  # no lease yet: not the incident's doing
    assert incident.due(0.4, 106.0) is Action.HOLD
    assert incident.state() == "cut off"
    assert incident.see(Tick(node=1, at_s=107.0), head=50) is None
    assert incident.see(Tick(node=2, at_s=107.0, applied=50, lease_left_s=0.5), head=60) is None
    assert "lapsed, 1.8 s after" in (incident.see(Tick(node=2, at_s=107.8, applied=50), head=70) or "")
    assert incident.see(Tick(node=2, at_s=109.5, applied=50), head=90) is None
    assert incident.due(0.6, 109.9) is None
    assert incident.due(0.6, 110.0) is Action.RESTORE
    assert incident.state() == "catching up"
    told = incident.see(Tick(node=2, at_s=110.5, applied=95, lease_left_s=1.9), head=95) or ""
    assert "caught up on 40 missed events" in told
    assert "0.5 s after" in told
    assert incident.state() == ""
    assert incident.due(0.9, 113.0) is None


def test_a_lease_that_is_kept_too_long_is_seen() -> None:
    incident = Incident(2, bound_s=2.0)
    incident.due(0.5, 100.0)
    incident.see(Tick(node=1, at_s=103.0, lease_left_s=1.0), head=0)
    incident.see(Tick(node=2, at_s=102.0, lease_left_s=0.01), head=0)
    assert not incident.kept_lease
    incident.see(Tick(node=2, at_s=102.1, lease_left_s=0.01), head=0)
    assert incident.kept_lease


def test_an_incident_needs_room() -> None:
    assert Incident.fits(10.0, bound_s=2.0)
    assert not Incident.fits(9.9, bound_s=2.0)
    assert too_short(8.0, 2.0) == "no connection is cut: 8 s are too short for that, 10 s would do (--duration)"


def test_why_there_was_no_incident_is_told() -> None:
    assert "the run was too short for one" in report(Outcome(DemoPlan(), FIGURES, None, OFF))
    assert "none was asked for" in report(Outcome(DemoPlan(cut=False), FIGURES, None, OFF))


@pytest.mark.parametrize(
    ("figures", "incident", "line"),
    [
        (replace(FIGURES, stale_beyond=2, oldest_s=2.5), None, "2 reads gave what an invalidation had replaced"),
        (replace(FIGURES, own_missed=1), None, "1 reads missed a write that their own node had made"),
        (replace(FIGURES, failed=7), None, "7 reads failed"),
        (FIGURES, replace(OVERCOME, kept_lease=True), "node 3 kept its lease while it was cut off"),
        (FIGURES, replace(OVERCOME, recovered_s=None, ended_s=18.1), "node 3 did not recover"),
    ],
)
def test_a_broken_promise_is_told(figures: Figures, incident: Incident | None, line: str) -> None:
    outcome = Outcome(DemoPlan(), figures, incident, OFF)
    (broken,) = outcome.broken()
    assert broken.startswith(line)
    assert f"BROKEN: {line}" in report(outcome)
    assert "KEPT" not in report(outcome)
    assert json.loads(as_json(outcome))["broken"] == [broken]


UNFINISHED = replace(OVERCOME, recovered_s=None, ended_s=17.9)


@pytest.mark.parametrize("incident", [OVERCOME, None, Incident(3, 2.0), Incident(3, 2.0, began_s=10.0), UNFINISHED])
@pytest.mark.parametrize("off", [OFF, None])
def test_promises_that_were_kept_are_told(incident: Incident | None, off: Figures | None) -> None:
    outcome = Outcome(DemoPlan(), FIGURES, incident, off)
    assert outcome.broken() == []
    assert "KEPT: of 1,000 reads" in report(outcome)
    assert "BROKEN" not in report(outcome)


def test_the_report_sets_both_side_by_side() -> None:
    lines = report(Outcome(DemoPlan(), FIGURES, OVERCOME, OFF)).splitlines()
    cells = {line[:38].strip(): line[38:].split() for line in lines if line[:38].strip()}
    assert cells["stale reads, of any age"] == ["3", "500"]
    assert cells["older than the bound of 2 s"] == ["0", "99"]
    assert cells["the stalest"] == ["12", "ms", "4.9", "s"]
    assert cells["loads saved"] == ["90.0%", "60.0%"]
    assert cells["until another node knows, p99"] == ["2.00", "ms", "-"]
    assert max(map(len, lines)) <= 100


def test_json_has_what_the_table_has() -> None:
    told = json.loads(as_json(Outcome(DemoPlan(), FIGURES, OVERCOME, OFF)))
    assert told["cachebus"]["lags"]["p99_s"] == 0.002
    assert told["coherence_off"]["stale_beyond"] == 99
    assert told["incident"] == {"node": 3, "lasted_s": 4.0, "lease_lapsed_after_s": 1.5, "recovered_after_s": 0.25}
    assert told["broken"] == []


def test_json_of_a_run_that_ended_in_the_incident_is_json() -> None:
    told = json.loads(as_json(Outcome(DemoPlan(), FIGURES, Incident(3, 2.0, began_s=10.0), None)))
    assert told["incident"]["recovered_after_s"] is None
    assert told["coherence_off"] is None
