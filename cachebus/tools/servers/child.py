"""Child processes that end with their parent, however that one ends."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Final

from cachebus.errors import ConfigError

# Run in the child before it becomes the server: the kernel then kills it when its parent goes, even by SIGKILL. A
# program of its own and not `preexec_fn`, which may not be used in a process with threads. The parent may have gone
# before prctl: hence the second look. Another user is taken on here, and before prctl, which that would undo: that user
# need not be able to run this Python.
_TRAMPOLINE: Final = (
    "import ctypes, os, sys;"
    "parent, user, group = map(int, sys.argv[1:4]);"
    "user < 0 or (os.setgroups([]), os.setgid(group), os.setuid(user));"
    "ctypes.CDLL(None).prctl(1, 9);"
    "os.getppid() == parent or sys.exit('the parent has gone');"
    "os.execv(sys.argv[4], sys.argv[4:])"
)


def spawn(
    command: list[str], *, log: Path, env: Mapping[str, str] | None = None, user: int | None = None
) -> subprocess.Popen[bytes]:
    """Start the command with no input, its output appended to `log`. On Linux the kernel ends it with this process.

    Elsewhere whoever starts it ends it: see `end`. `env`: its whole environment, by default this one's. `user`: the
    user id to run it as, which only root may give. `OSError` where it cannot be started.
    """
    return _spawner().submit(_spawn, command, log, env, user).result()


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


def _spawn(command: list[str], log: Path, env: Mapping[str, str] | None, user: int | None) -> subprocess.Popen[bytes]:
    if sys.platform == "linux":
        who = (-1, -1) if user is None else (user, pwd.getpwuid(user).pw_gid)
        command = [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), *map(str, who), *command]
    elif user is not None:
        raise ConfigError("another user for a child process is only known on Linux: run this as an ordinary user")
    with log.open("ab") as out:
        # A session of its own: Ctrl-C in a terminal reaches only the program there, which then ends its servers.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=env
        )
