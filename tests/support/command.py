"""The command `cachebus` as a process of its own, with a folder for all that it may leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cachebus.base.clock import monotonic

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120.0
_pause = threading.Event()

Typed = Callable[..., tuple[int, str, str]]
"""Runs a command in this process: exit status, output, errors."""


@dataclass
class Command:
    """A running command, its output piped, its temporary files in `folder`."""

    process: subprocess.Popen[str]
    folder: Path

    def read_until(self, words: str) -> str:
        """The output up to the line that holds the words."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if words in line:
                return "".join(lines)
        raise AssertionError(f"it ended before it said {words!r}: {''.join(lines)}{self.errors()}")

    def errors(self) -> str:
        """What it says on stderr until its end."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def children(self) -> list[int]:
        """The processes that it has started, and theirs."""
        return descendants(self.process.pid)

    def signal(self, number: signal.Signals) -> tuple[int, str]:
        """Send it, and wait: the exit status, and what it still said on stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors

    def left(self) -> list[str]:
        """The files that are there now."""
        return sorted(path.name for path in self.folder.iterdir())


@contextmanager
def cachebus(*arguments: str, folder: Path, env: Mapping[str, str] | None = None) -> Iterator[Command]:
    """Start `cachebus ARGUMENTS`, with these variables besides; it is killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "cachebus.cli.main", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {}), "TMPDIR": str(folder)},
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield Command(process, folder)
        finally:
            process.kill()


def ran(*arguments: str, folder: Path, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run it to its end: exit status, output, errors. Whatever happens it leaves no file."""
    with cachebus(*arguments, folder=folder, env=env) as command:
        out, errors = command.process.communicate(timeout=DEADLINE_S)
        assert command.left() == []
        return command.process.returncode, out, errors


def descendants(pid: int) -> list[int]:
    """The ids of all processes below this one."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, listing.read_text().split()):
            found += [child, *descendants(child)]
    return found


def alive(pid: int) -> bool:
    """Whether the process runs (one that has ended and was not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids: list[int], within_s: float = 5.0) -> bool:
    """Whether all of them have ended, or do soon."""
    deadline = monotonic() + within_s
    while any(map(alive, pids)):
        if monotonic() > deadline:
            return False
        _pause.wait(0.02)
    return True
