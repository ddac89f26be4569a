"""Child processes that end with their parent, however that one ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Final

# Run in the child before it becomes the server: the kernel then kills it when its parent goes, even by SIGKILL. A
# program of its own and not `preexec_fn`, which may not be used in a process with threads. The parent may have gone
# before prctl: hence the second look.
_TRAMPOLINE: Final = (
    "import ctypes, os, sys;"
    "ctypes.CDLL(None).prctl(1, 9);"
    "os.getppid() == int(sys.argv[1]) or sys.exit('the parent has gone');"
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def spawn(command: list[str], *, log: Path) -> subprocess.Popen[bytes]:
    """Start the command with no input, its output appended to `log`. On Linux the kernel ends it with this process.

    Elsewhere whoever starts it ends it: see `end`. `OSError` where it cannot be started.
    """
    return _spawner().submit(_spawn, command, log).result()


def end(process: subprocess.Popen[bytes], directory: Path | None = None) -> None:
    """Kill it if it lives, wait for it, and remove the directory it worked in, if one is given."""
    if process.poll() is None:
        process.kill()  # ends a paused one too
    process.wait()
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


@cache
def _spawner() -> ThreadPoolExecutor:
    # The kernel takes the thread that spawned a child for its parent, and a server may well be started from a worker
    # thread that soon ends. This one lives as long as the process.
    return ThreadPoolExecutor(1, thread_name_prefix="cachebus-children")


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), *command]
    with log.open("ab") as out:
        # A session of its own: Ctrl-C in a terminal reaches only the program there, which then ends its servers.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
