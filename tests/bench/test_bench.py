"""The benchmark runs and finds a figure for every question. How good the figures are is no matter of tests."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.postgres import PostgresServer
from tests.bench.__main__ import NAMES, arguments
from tests.bench.report import chart, plain
from tests.bench.rows import Goal, Row, at_least, at_most, shown
from tests.bench.server_info import SCRIPTED, Cost, Work, compared, cost, work
from tests.support.servers import any_binary, to_be_had

ROOT = Path(__file__).parents[2]
AIMED = {
    "hit.get",
    "hit.get_int",
    "hit.get_tenant",
    "hit.get_keywords",
    "hit.get_or_load",
    "hit.cache_aside",
    "blocking.get",
    "blocking.get_or_load",
    "blocking.invalidate",
    "blocking.load",
    "blocking.miss",
    "l2.crowd",
    "l2.crowd_bytes",
    "l2.one",
    "invalidate.call",
    "invalidate.applied_p50",
    "invalidate.applied_p99",
    "flood.applied",
    "flood.log",
    "drop.call",
    "drop.hold",
    "import",
    "memory.entry",
    "memory.entry_worst",
    "ratio.lead",
    "outbox.rows",
    "outbox.lag_p50",
    "outbox.lag_p99",
    "kafka.applied_p50",
    "kafka.applied_p99",
    "commands.rate",
    "commands.lag_p50",
    "commands.lag_p99",
    "availability.cluster_killed",
    "availability.cluster_killed_p99",
}
MAY_BE_NONE = {"ratio.lead", "availability.cluster_killed"}
TIMEOUT_S = 120


def test_a_quick_run_has_a_figure_for_every_row(tmp_path: Path) -> None:
    any_binary()
    to_be_had(PostgresServer, "PostgreSQL")
    to_be_had(KafkaServer, "Kafka")
    found = tmp_path / "found.json"
    without_traces = {name: value for name, value in os.environ.items() if name != "CACHEBUS_TRACES"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--json", str(found)],
        cwd=ROOT,
        env=without_traces,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    rows = {row["name"]: row for row in json.loads(found.read_text())["rows"]}
    assert {name for name, row in rows.items() if row["goal"] is not None} == AIMED
    for name, row in rows.items():
        figures = [row["ours"], *row["peers"].values()]
        assert all(math.isfinite(figure) for figure in figures), name
        assert row["ours"] > 0 or name in MAY_BE_NONE, name
        assert row["what"] in run.stdout
    assert {name.partition(".")[0] for name in rows} == set(NAMES)


@pytest.mark.parametrize(
    ("goal", "figure", "met"),
    [(at_most(5), 5.0, True), (at_most(5), 5.1, False), (at_least(20), 20.0, True), (at_least(20), 19.9, False)],
)
def test_a_goal_is_a_bound_in_one_direction(goal: Goal, figure: float, met: bool) -> None:
    assert Row("n", "what", figure, "x", goal).met is met


def test_figures_have_three_digits_that_mean_something() -> None:
    assert [shown(figure, "x") for figure in (0.2139, 4.6123, 93.84, 51_234.0)] == [
        "0.214 x",
        "4.61 x",
        "93.8 x",
        "51,234 x",
    ]


def test_the_table_is_aligned_and_the_chart_marks_the_goal() -> None:
    rows = [
        Row("hit.get", "a hit", 4.5, "x", at_most(5), {"another": 50.0}, "how it came about"),
        Row("l2.crowd", "a longer text", 10.0, "x", at_least(20)),
        Row("other", "no goal", 1.0, "ms"),
    ]
    head, first, second, third = plain(rows)
    assert first.index("<= 5") == head.index("goal") == second.index(">= 20")
    assert "yes" in first and "another 50.0  (how it came about)" in first
    assert "NO" in second and "NO" not in third
    drawn = "\n".join(chart(rows))
    assert "0.90" in drawn and "2.00" in drawn and "another" in drawn


def test_only_known_names_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments(["--only", "hit", "--only", "l2"]).only == ["hit", "l2"]
    with pytest.raises(SystemExit):
        arguments(["--only", "no such"])
    assert "invalid choice" in capsys.readouterr().err


# -- the server's CPU ------------------------------------------------------------------------------------

REDIS_6_CPU = (
    b"# CPU\r\nused_cpu_sys:1.500000\r\nused_cpu_user:2.250000\r\n"
    b"used_cpu_sys_children:9.000000\r\nused_cpu_user_children:9.000000\r\n"
)
REDIS_7_CPU = REDIS_6_CPU + b"used_cpu_sys_main_thread:1.250000\r\nused_cpu_user_main_thread:2.000000\r\n"
COMMANDS = (
    b"# Commandstats\r\n"
    b"cmdstat_evalsha:calls=30,usec=900,usec_per_call=30.00,rejected_calls=0,failed_calls=0\r\n"
    b"cmdstat_config|get:calls=1,usec=7,usec_per_call=7.00\r\n"
)


def test_a_servers_work_is_its_main_threads_where_it_tells_that() -> None:
    assert work(REDIS_6_CPU, b"# Commandstats\r\n") == Work(3_750_000.0, {})
    assert work(REDIS_7_CPU, COMMANDS) == Work(3_250_000.0, {"evalsha": (30, 900.0), "config|get": (1, 7.0)})


def test_an_operation_costs_what_was_spent_meanwhile_by_the_commands_that_do_it() -> None:
    before = Work(1_000.0, {"evalsha": (10, 200.0), "set": (50, 5_000.0)})
    after = Work(1_900.0, {"evalsha": (28, 380.0), "eval": (2, 20.0), "set": (90, 9_000.0)})
    assert cost(before, after, 10, SCRIPTED) == Cost(90.0, 20.0)
    with pytest.raises(ValueError, match="30 operations, and only 20 calls of eval"):
        cost(before, after, 30, SCRIPTED)


def test_a_cost_is_told_by_medians_beside_plain_commands_of_the_same_rounds() -> None:
    costs = [Cost(20.0, 8.0), Cost(30.0, 9.0), Cost(24.0, 7.0), Cost(22.0, 8.0)]
    plain = [Cost(10.0, 1.0), Cost(15.0, 1.0), Cost(8.0, 1.0), Cost(11.0, 1.0)]
    found = compared("server.probe.path", "a probe", costs, {"SET": plain, "PUBLISH": plain[::-1]})
    assert (found.ours, found.unit, found.peers) == (23.0, "us", {"SET": 10.5, "PUBLISH": 10.5})
    assert found.detail == "2.00 x SET, 8.00 us in the command, ±17%"
