"""The process and event loop in which something was opened: its sockets and tasks work nowhere else."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from cachebus.errors import ConfigError

forks = 0
"""How many forks lie between this process and the one that imported this module first."""


def in_each_child(call: Callable[[], object]) -> None:
    """Have this called in every process that is forked from this one. Where no process can be (Windows), never."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


def _forked() -> None:
    global forks
    forks += 1


in_each_child(_forked)


def name_here(node_name: str | None) -> str:
    """What this process is called in logs: what the settings say, else its host and process id."""
    return node_name or f"{socket.gethostname()}-{os.getpid()}"


class Home:
    """Where something was opened. `here` says whether that is where the caller runs."""

    __slots__ = ("forks", "loop")

    def __init__(self) -> None:
        """Of the running event loop."""
        self.loop = asyncio.get_running_loop()
        self.forks = forks

    @property
    def here(self) -> bool:
        """Whether the caller runs in that process and loop."""
        try:
            return forks == self.forks and asyncio.get_running_loop() is self.loop
        except RuntimeError:  # no loop runs in this thread
            return False

    @property
    def gone(self) -> bool:
        """Whether nothing that was opened there can be closed any more: the loop has ended."""
        return self.loop.is_closed()

    @property
    def is_stopped(self) -> bool:
        """Whether nothing goes on there now: the loop has ended, or was stopped and is not run."""
        return not self.loop.is_running()

    def elsewhere(self, name: str) -> ConfigError:
        """What to tell a caller who uses `name` from somewhere else."""
        if forks != self.forks:  # before the loop, which is another one then as well
            return ConfigError(f"this process was forked from the one that opened the {name}: open one in each process")
        return ConfigError(
            f"this {name} belongs to another event loop, where all of its calls are to be made: open one in each loop, "
            "or hand the call over by asyncio.run_coroutine_threadsafe(call, loop); for synchronous code there is "
            "BlockingCache"
        )

    def close_elsewhere(self, name: str) -> ConfigError:
        """What to tell a caller who closes `name` from somewhere else."""
        if forks != self.forks:
            return ConfigError(
                f"this process was forked from the one that opened the {name}: close it there, and leave it alone here"
            )
        if self.gone:
            return ConfigError(
                f"the event loop that opened this {name} has ended, and its tasks with it: open and close within one "
                "loop, as by one asyncio.run or one asyncio.Runner for both"
            )
        return ConfigError(
            f"this {name} belongs to another event loop: close it there, as by "
            f"asyncio.run_coroutine_threadsafe({name}.aclose(), loop).result()"
        )
