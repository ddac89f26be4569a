"""The README's programs do what the README says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT, blocks, file

README = ROOT / "README.md"


def environment(url: str = "") -> dict[str, str]:
    """What a program of the README is started with."""
    return {**os.environ, "CACHEBUS_URL": url, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(("name", "begins"), [("first.py", "loading a7"), ("decorated.py", "loading 7")])
def test_a_program_that_needs_no_server_prints_what_is_said(tmp_path: Path, name: str, begins: str) -> None:
    program, told = (
        block.code for block in blocks(README) if block.title == name or block.code.startswith(f"{begins}\n")
    )
    (tmp_path / name).write_text(program)
    done = subprocess.run(
        [sys.executable, tmp_path / name], env=environment(), check=True, capture_output=True, text=True
    )
    assert done.stdout == told


def test_a_second_process_sees_the_firsts_invalidation(redis_url: str, tmp_path: Path) -> None:
    for name in ("reader.py", "writer.py"):
        # On a busy machine the writer may take long to start: the reader is there until it has seen all.
        (tmp_path / name).write_text(file(README, name).replace("range(20)", "range(1000)"))
    with subprocess.Popen(
        [sys.executable, tmp_path / "reader.py"], env=environment(redis_url), stdout=subprocess.PIPE, text=True
    ) as reader:
        try:
            assert reader.stdout is not None
            lines = [reader.stdout.readline().strip() for _ in range(2)]
            subprocess.run(
                [sys.executable, tmp_path / "writer.py"], env=environment(redis_url), check=True, capture_output=True
            )
            for line in reader.stdout:
                lines.append(line.strip())
                if lines.count("loading from the source") == 2 and lines[-1] != "loading from the source":
                    break
        finally:
            reader.kill()
    assert lines[:2] == ["loading from the source", "{'requests_per_minute': 100}"]
    written = lines.index("{'requests_per_minute': 500}")
    loaded_anew = lines.index("loading from the source", 1)
    assert written < loaded_anew
    assert lines[-1] == "{'requests_per_minute': 100}"


def test_it_shows_no_other_python_than_these() -> None:
    assert [block.title for block in blocks(README, "python")] == ["first.py", "reader.py", "writer.py", "decorated.py"]
