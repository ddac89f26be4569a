"""The look at what a test leaves behind sees what it must see."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

LEAVES = """
import asyncio, subprocess, sys

async def test_task():
    test_task.kept = asyncio.create_task(asyncio.sleep(60), name="forgotten")

async def test_clean():
    await asyncio.create_task(asyncio.sleep(0))

def test_process():
    test_process.kept = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

def test_end_it():
    test_process.kept.communicate(b"\\n")
"""


def test_tasks_and_processes_are_seen(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    pytester.makepyfile(LEAVES)
    pytester.makeconftest("from tests.conftest import *; from tests.conftest import _no_task_left, _no_process_left")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--asyncio-mode=auto")
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines_random(["*left tasks behind*", "*forgotten*", "*left processes behind*", "*input()*"])
