"""What must be gone when a test has ended: its asyncio tasks and its child processes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from cachebus.base.clock import monotonic

GRACE_S = 0.5
"""For what is already ending: a cancelled task that closes its connection, a process that is being reaped."""
_pause = threading.Event()


def child_processes() -> set[int]:
    """The direct children of this process; empty where the system does not tell (outside Linux)."""
    pids: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        try:
            pids.update(map(int, listing.read_text().split()))
        except OSError:
            continue  # that thread has just ended
    return pids


def described(pid: int) -> str:
    """The process's id and command line, for the message."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    return f"{pid} {' '.join(words).strip() or '(ended, nobody waited for it)'}"


def children_left(known: set[int]) -> list[str]:
    """The child processes beyond those known that do not end within the grace; Python's own helpers not counted."""
    deadline = monotonic() + GRACE_S
    while True:
        left = [told for told in map(described, child_processes() - known) if "multiprocessing" not in told]
        if not left or monotonic() > deadline:
            return left
        _pause.wait(0.01)


async def tasks_left() -> list[str]:
    """The tasks of the running loop, beside the caller's own, that do not end within the grace."""
    me = asyncio.current_task()
    others = asyncio.all_tasks() - {me}
    if not others:
        return []
    _, pending = await asyncio.wait(others, timeout=GRACE_S)
    return [repr(task) for task in pending]
