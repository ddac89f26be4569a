"""A worker's process collects garbage seldom, and nobody else's does."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

from cachebus.consumers.worker.worker import NEW_OBJECTS, seldom_collected

ROOT = Path(__file__).parents[2]
WORKER = """
import gc
from cachebus.cli.worker.running import run_worker
from cachebus.consumers.worker.worker import Worker

class One(Worker):
    async def run(self):
        print(gc.get_freeze_count() > 10_000, gc.get_threshold()[0])

run_worker(lambda: One("one", ()), "reads nothing", health_port=0, health_host="", drain_timeout_s=1.0)
"""


def test_a_command_that_runs_a_worker_leaves_alone_what_was_there_before_it() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == f"True {NEW_OBJECTS}\n", done.stderr


def test_it_is_as_it_was_behind_that() -> None:
    before = gc.get_threshold()
    with seldom_collected():
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold() != before
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
