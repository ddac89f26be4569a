"""Child processes that end with their parent, even if that is killed."""

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

# The child runs this before it becomes the server:
#
# 1. It changes to another user, if asked. That comes before prctl, which a change of user undoes. That user need not be
#    able to run this Python.
# 2. It asks the kernel, by prctl, to kill it when its parent ends, even by SIGKILL.
# 3. It looks whether the parent still lives: the parent may have ended before prctl.
#
# It is a program of its own, since `preexec_fn` must not be used in a process with threads.
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
    """Start a command without input, and append its output to `log`. On Linux the kernel ends it with this process.

    On other systems the caller must end it: see `end`. `env`: its whole environment, by default this process's. `user`:
    the user id to run it as, which only root may give. Raises `OSError` if it cannot be started.
    """
    return _spawner().submit(_spawn, command, log, env, user).result()


def end(process: subprocess.Popen[bytes], directory: Path | None = None) -> None:
    """Kill the process if it lives, wait for it, and remove its directory, if one is given."""
    if process.poll() is None:
        process.kill()  # ends a paused one too
    process.wait()
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


@cache
def _spawner() -> ThreadPoolExecutor:
    # For the kernel the parent is the thread that spawned the child, and a server may be started from a thread that
    # soon ends. This one lives as long as the process.
    return ThreadPoolExecutor(1, thread_name_prefix="cachebus-children")


def _spawn(command: list[str], log: Path, env: Mapping[str, str] | None, user: int | None) -> subprocess.Popen[bytes]:
    if sys.platform == "linux":
        who = (-1, -1) if user is None else (user, pwd.getpwuid(user).pw_gid)
        command = [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), *map(str, who), *command]
    elif user is not None:
        raise ConfigError("another user for a child process is only known on Linux: run this as an ordinary user")
    with log.open("ab") as out:
        # In a session of its own Ctrl-C does not reach the server: the program gets it, and ends its servers.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=env
        )
