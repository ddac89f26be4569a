"""Servers that refuse to run as root. If root starts one, it runs as an ordinary user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from cachebus.errors import ConfigError
from cachebus.tools.servers.daemon import Daemon

INIT_TIMEOUT_S = 60.0


class OrdinaryDaemon(Daemon):
    """A server that runs as this process's user. If that is root, it runs as the first of `users` that exists."""

    users: ClassVar[tuple[str, ...]]
    parts: ClassVar[tuple[str, ...]]
    """The folders that its programs need, besides their own."""
    tried: ClassVar[str]
    """The program whose `--version` shows whether that user can run them."""
    programs: Path
    """The folder of its programs."""

    @abstractmethod
    def _is_made(self, data: Path) -> bool:
        """Whether this folder has a server's files."""

    @abstractmethod
    def _make(self, data: Path) -> subprocess.CompletedProcess[str]:
        """Create them, by `_run`."""

    def _prepare(self) -> None:
        user = self._user()
        if user is not None:
            self._hand_over(user)
        data = self.directory / "data"
        if self._is_made(data):
            return
        done = self._make(data)
        if done.returncode:
            shutil.rmtree(data, ignore_errors=True)
            raise ConfigError(f"{self.name}'s files could not be made: {(done.stderr or done.stdout).strip()}")

    def _run(self, command: Sequence[str | Path], told: str | None = None) -> subprocess.CompletedProcess[str]:
        user = self._user()
        return subprocess.run(
            command,
            user=user,
            group=user and pwd.getpwuid(user).pw_gid,
            extra_groups=None if user is None else (),
            cwd=self.directory,
            input=told,
            capture_output=True,
            text=True,
            timeout=INIT_TIMEOUT_S,
            check=False,
        )

    def _user(self) -> int | None:
        return self._ordinary_user() if os.geteuid() == 0 else None

    def _ordinary_user(self) -> int:
        for name in self.users:
            try:
                return pwd.getpwnam(name).pw_uid
            except KeyError:
                continue
        raise ConfigError(f"{self.name} does not run as root, and there is none of {', '.join(self.users)} here")

    def _place(self) -> Path | None:
        user = self._user()
        if user is None:
            return None
        places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108 -- for a folder of random name
        return next((place for place in places if place.is_dir() and _may_enter(place, user)), None)

    def _hand_over(self, user: int) -> None:
        if not _may_enter(self.directory.parent, user):
            raise ConfigError(
                f"{self.name} refuses to run as root, so it runs as {pwd.getpwuid(user).pw_name}, who may not enter "
                f"{self.directory.parent}: give a folder elsewhere"
            )
        # That user may be unable to reach an environment below root's home.
        os.chown(self.directory, user, pwd.getpwuid(user).pw_gid)
        self.programs = self._reachable(user)

    def _reachable(self, user: int) -> Path:
        """The programs, where that user can run them: in their place, else linked or copied into the directory."""
        programs = self.programs
        tried = (
            subprocess.run(
                [programs / self.tried, "--version"],
                user=user,
                extra_groups=(),
                capture_output=True,
                cwd="/",
                check=False,
            )
            if _may_enter(programs, user)
            else None
        )
        if tried is not None and tried.returncode == 0:
            return programs
        # As they lie: programs of a wheel look for its libraries beside the package, by the way from their own folder.
        copy, package = self.directory / "programs", programs.parents[1]
        libraries = package.with_name(f"{package.name}.libs")
        here = Path(package.name, programs.parent.name)
        if not copy.exists():
            with tempfile.TemporaryDirectory(dir=self.directory) as folder:
                made = Path(folder, "programs")
                for part in (programs.name, *self.parts):
                    shutil.copytree(programs.parent / part, made / here / part, copy_function=_link, symlinks=True)
                if libraries.is_dir():
                    shutil.copytree(libraries, made / libraries.name, copy_function=_link, symlinks=True)
                made.rename(copy)
            for path in (copy, *copy.rglob("*")):
                if path.is_dir():
                    path.chmod(0o755)
        return copy / here / programs.name


def _may_enter(folder: Path, user: int) -> bool:
    """Whether the user may pass every folder on the way, as its owner or by the rights of all others."""
    return all(
        path.stat().st_mode & 0o001 or path.stat().st_uid == user for path in (folder, *folder.resolve().parents)
    )


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return target
