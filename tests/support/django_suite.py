"""Django's own tests of caches, from its source distribution: fetched once, as this project holds no copy of them.

They run in a process of their own, over `cachebus.django.CacheBackend` and a real server.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cachebus.tools.servers.jars import cache_folder
from tests.support.command import ROOT
from tests.support.require import require

TIMEOUT_S = 300.0
PARTS = ("tests/cache/", "tests/sessions_tests/")
"""What is taken out of the archive."""
PROGRAM = """
import json, os, sys, unittest

url, given, folder, only = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4:]
sys.path.insert(0, folder)
if given.pop("pickled"):
    import pickle
    given["SERIALIZER"] = pickle
import django
from django.conf import settings

one = {"BACKEND": "cachebus.django.CacheBackend", "LOCATION": url, "OPTIONS": given}
settings.configure(
    CACHES={"default": one},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions", "cache",
                    "sessions_tests"],
    SECRET_KEY="of tests", USE_TZ=False, MIDDLEWARE=[], ROOT_URLCONF="cache.urls_of_none",
)
django.setup()
from cache import tests as cases
from django.test import TestCase, override_settings
from django.test.runner import DiscoverRunner
from sessions_tests import tests as sessions

class Base(cases.BaseCacheTests, TestCase):
    pass

class Middleware(cases.CacheMiddlewareTest):
    pass

class Sessions(sessions.CacheSessionTests):
    pass

class DatabaseSessions(sessions.CacheDBSessionTests):
    pass

said = cases.caches_setting_for_tests(base=one, exclude={"cull", "zero_cull"})
Base = override_settings(CACHES=said)(Base)
other = {**one, "OPTIONS": {**given, "DATA_TYPE": "other"}, "TIMEOUT": "1"}
Middleware = override_settings(CACHES={"default": one, "other": other})(Middleware)

class Outcomes(unittest.TextTestResult):
    found = {}

    def startTest(self, test):
        super().startTest(test)
        self.found[self.name(test)] = "passed"

    def name(self, test):
        test = getattr(test, "test_case", test)
        return f"{type(test).__name__}.{test._testMethodName}"

    def addError(self, test, error):
        self.found[self.name(test)] = f"{error[0].__name__}: {error[1]}"

    addFailure = addError

    def addSubTest(self, test, part, error):
        if error is not None:
            self.addError(test, error)

    def addSkip(self, test, reason):
        self.found[self.name(test)] = f"skipped: {reason}"

runner = DiscoverRunner(verbosity=0, interactive=False)
runner.setup_test_environment()
databases = runner.setup_databases()
suite = unittest.TestSuite()
for each in (Base, Middleware, Sessions, DatabaseSessions):
    for test in unittest.defaultTestLoader.loadTestsFromTestCase(each):
        if not only or f"{type(test).__name__}.{test._testMethodName}" in only:
            suite.addTest(test)
unittest.TextTestRunner(stream=open(os.devnull, "w"), resultclass=Outcomes).run(suite)
runner.teardown_databases(databases)
print(json.dumps(Outcomes.found))
"""


def django_sources() -> Path:
    """A folder with the tests of the Django that is installed; skips the test loudly where they can't be had."""
    require(find_spec("django"), "Django", "pip install 'cachebus[test]'")
    require(find_spec("pip"), "pip, to fetch Django's tests with", "python -m ensurepip")
    wanted = version("django")
    folder = cache_folder() / f"django-tests-{wanted}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _fetch(wanted, folder)
    return folder


def _fetch(wanted: str, folder: Path) -> None:
    with TemporaryDirectory(dir=folder.parent) as name:
        temporary = Path(name)
        command = f"download --quiet --no-deps --no-binary :all: --dest {temporary} django=={wanted}"
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip", *command.split()],
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            why = done.stderr.strip()[-300:]
        except subprocess.TimeoutExpired:
            why = f"it took longer than {TIMEOUT_S:g} s"
        archives = list(temporary.glob("*.tar.gz"))
        # A machine without a registry is none that CI has: there it is a failure.
        require(
            archives, f"the source of Django {wanted} ({why})", f"pip {command}, where a package registry is reached"
        )
        with tarfile.open(archives[0]) as archive:
            inside = archives[0].name.removesuffix(".tar.gz")
            members = [m for m in archive if m.name.startswith(tuple(f"{inside}/{part}" for part in PARTS))]
            archive.extractall(temporary, members=members, filter="data")
        (temporary / inside / "tests").rename(folder)


def outcomes(url: str, *, only: Sequence[str] = (), pickled: bool = False, **options: Any) -> dict[str, str]:
    """By the name of each of Django's tests what came of it, with these OPTIONS. `only`: of these alone; `pickled`:
    with pickle as the serializer."""
    given = json.dumps({**options, "pickled": pickled})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, url, given, str(django_sources()), *only],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found
