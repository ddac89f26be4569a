"""What ships is tested as it ships: the wheel, installed in an environment of its own, away from this tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [name for name in ("cachebus", "producers", "consumers") if any((ROOT / name).glob("**/*.py"))]


def run(*command: str | Path, cwd: Path) -> str:
    """What the command prints; the test fails with all of it where the command fails."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel. Builds offline: with the build backend that is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel, and this one's packages (not its cachebus) as dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is searched last, and .pth files found there are not read: so an editable install in this
    # environment cannot pass for the wheel.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed")
    run(*pip, wheel, cwd=folder)
    return folder


def shipped(wheel: Path) -> set[str]:
    """The names of the files in the wheel."""
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def files_of(package: str) -> Iterator[str]:
    """The package's files in this tree that users need."""
    for pattern in ("*.py", "*.lua", "py.typed"):
        yield from (path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob(pattern))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path, package: str) -> None:
    assert set(files_of(package)) <= shipped(wheel)
    assert f"{package}/py.typed" in shipped(wheel)


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in shipped(wheel)}
    assert tops == {*PACKAGES, wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}


def test_scripts_and_license_are_in_the_wheel(wheel: Path) -> None:
    assert {"cachebus/l2/scripts/fill.lua", "cachebus/l2/scripts/write.lua"} <= shipped(wheel)
    assert any(name.endswith("/licenses/LICENSE") for name in shipped(wheel))


def test_the_installed_packages_import(environment: Path, tmp_path: Path) -> None:
    program = (
        f"import {', '.join(PACKAGES)}; print(*({', '.join(f'{name}.__file__' for name in PACKAGES)},), sep='\\n')"
    )
    places = run(environment / "bin/python", "-c", program, cwd=tmp_path).split()
    assert len(places) == len(PACKAGES)
    assert all(Path(place).is_relative_to(environment) for place in places)


def test_the_command_runs(environment: Path, tmp_path: Path) -> None:
    assert "demo" in run(environment / "bin/cachebus", "--help", cwd=tmp_path)
