"""A small campaign on every kind of server, and what it remembers when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from cachebus.tools.servers.redis import find_servers
from cachebus.tools.verify.checker.verdict import Finding, Verdict
from tests.campaign.state import Row, loaded, save, table
from tests.support.command import ROOT
from tests.support.servers import KINDS, any_binary

SMALL = ("--rate", "800", "--write-rate", "25", "--bound-s", "0.5", "--nodes", "3")


def started(state: Path, *arguments: str) -> subprocess.Popen[str]:
    """The campaign as a process."""
    folder = state.parent / "temporary"
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.campaign", *SMALL, "--state", str(state), *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_leg_on_every_way_to_run_a_server(tmp_path: Path) -> None:
    here = [kind.name for kind in KINDS if kind.origin in {binary.origin for binary in find_servers()}]
    any_binary()
    ways = [here[0], "sentinel", "cluster"]
    state, markdown = tmp_path / "state.json", tmp_path / "table.md"
    with started(
        state, "--reads", "1000", "--invalidations", "30", "--leg-s", "4", "--markdown", str(markdown), "--only", *ways
    ) as process:
        out, errors = process.communicate(timeout=200)
    assert process.returncode == 0, out + errors
    rows = loaded(state)
    assert set(rows) == set(ways)
    for row in rows.values():
        assert row.done(1000 // len(rows), 30 // len(rows))
        assert (row.sums["stale_beyond"], row.sums["foreign"], row.broken) == (0, 0, [])
        assert row.server in markdown.read_text()
    assert markdown.read_text() in out
    assert list((tmp_path / "temporary").iterdir()) == []


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    any_binary()
    state = tmp_path / "state.json"
    with started(state, "--reads", "100000000", "--leg-s", "1.5") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "leg 2" in line:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "to go on, run the same again" in errors
    (row,) = loaded(state).values()
    assert (row.legs, row.seeds) == (1, [1])


def test_a_table_of_its_rows(tmp_path: Path) -> None:
    row = Row("valkey-8.1")
    row.add(Verdict(4, "valkey-8.1.8", 2, 1.0, 0.5, judged=1_000_000, writes=10, faults={"hang": 2}))
    row.add(Verdict(5, "valkey-8.1.8", 2, 1.0, 0.5, judged=1, stale_beyond=1, broken=(Finding("G1", "so"),)))
    save(tmp_path / "a.json", {"valkey-8.1": row})
    again = loaded(tmp_path / "a.json")["valkey-8.1"]
    assert vars(again) == vars(row)
    text = table([again])
    assert "| valkey-8.1.8 | 1,000,001 | 10 | 2 | 1 | 1 | 0 | 0 | 0 ms | 99.9999000% | 2 | 4, 5 |" in text
    assert "| all | 1,000,001 |" in text
    assert again.done(1_000_000, 10)
    assert not again.done(1_000_002, 10)
    assert again.broken[0].startswith("seed 5: G1 (")
