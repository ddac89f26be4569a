"""`cachebus replay`: a recorded trace drives the nodes; what is no trace is refused before anything is started."""

from __future__ import annotations

import json
import lzma
from itertools import islice
from pathlib import Path
from struct import pack

import pytest

from cachebus.cli.main import run
from cachebus.tools.demo import generator
from tests.support.command import ran
from tests.support.servers import any_binary

SMALL = ("--nodes", "2", "--bound", "0.5", "--duration", "2.6", "--no-compare", "--json")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A short one, made here."""
    path = tmp_path / "made.trace.xz"
    path.write_bytes(lzma.compress(b"".join(pack(">I", word) for word in islice(generator.accesses(1, 1), 4_000))))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the command may leave files."""
    made = tmp_path / "temporary"
    made.mkdir()
    return made


def test_a_trace_is_shared_by_all_nodes_and_played_to_its_end(trace: Path, folder: Path) -> None:
    any_binary()
    as_fast_as_they_can = ("--write-ratio", "0.05", "--rate", "0", "--duration", "60")  # it ends with the trace
    status, out, errors = ran("replay", str(trace), *SMALL, *as_fast_as_they_can, folder=folder)
    assert status == 0, errors
    told = json.loads(out)
    made = told["cachebus"]["reads"] + told["cachebus"]["writes"]
    assert 4_000 - 40 <= made <= 4_000  # but for writes that a node with many under way leaves out
    assert told["trace"] == str(trace)
    assert told["cachebus"]["stale_beyond"] == 0
    assert "made.trace.xz: 4,000 accesses to " in errors


def test_a_short_trace_lasts_as_long_as_it_shall(trace: Path, folder: Path) -> None:
    any_binary()
    status, out, errors = ran("replay", str(trace), *SMALL, folder=folder)
    assert status == 0, errors
    told = json.loads(out)
    assert told["cachebus"]["took_s"] == pytest.approx(2.6, abs=1.0)
    assert told["cachebus"]["reads"] > 3_000
    assert told["incident"]["lease_lapsed_after_s"] is not None


@pytest.mark.parametrize("name", ["web07.trace.xz", "orm-busy.trace.xz"])
def test_real_traces(traces: Path, folder: Path, name: str) -> None:
    any_binary()
    status, out, errors = ran("replay", str(traces / name), *SMALL, "--rate", "500", folder=folder)
    assert status == 0, errors
    told = json.loads(out)
    assert told["broken"] == []
    assert told["cachebus"]["reads"] > 1_000


@pytest.mark.parametrize("kind", ["cut", "text", "missing"])
def test_what_is_no_trace_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, trace: Path, kind: str
) -> None:
    path = tmp_path / "t.xz"
    if kind != "missing":
        path.write_bytes(b"GET /\n" if kind == "text" else trace.read_bytes()[:-100])
    monkeypatch.setattr("sys.argv", ["cachebus", "replay", str(path)])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    out, errors = capsys.readouterr()
    assert out == ""
    words = {"cut": "is cut", "text": "is not a trace", "missing": "No such file"}
    (line,) = errors.splitlines()
    assert line.startswith(f"cachebus: {path} ")
    assert words[kind] in line
