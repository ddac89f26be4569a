"""Node processes that are told what to do, line by line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Told:
    """A process that holds a cache, and what it says, gathered as it comes: its reads, each with when it began."""

    def __init__(self, code: str, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *args],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.reads: list[tuple[float, str]] = []
        self.lines = 0
        self._thread = threading.Thread(target=self._gather)
        self._thread.start()

    def _gather(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("["):
                at_s, value = json.loads(line)
                self.reads.append((at_s, value))
            self.lines += 1

    def kill(self) -> None:
        """SIGKILL, and hear what it has still said."""
        self.process.kill()
        self._thread.join()
        self.process.communicate()


@contextmanager
def running(code: str, *args: str) -> Iterator[Told]:
    """A process for as long as the block runs."""
    told = Told(code, *args)
    try:
        yield told
    finally:
        told.kill()
