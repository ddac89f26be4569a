"""Commands whose output can't be written, or not in its encoding: their exit status answers what it says it does."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import IO

import pytest

from cachebus import Cache, Settings
from cachebus.cli.main import READER_GONE, UNUSABLE
from tests.support.caches import QUICK
from tests.support.command import ROOT, Typed

GET = ("get", "config", "x", "--tenant", "acme")
LOOKS = [GET, ("explain", *GET[1:]), ("log",), ("nodes",)]


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    async with Cache.open(Settings(url=redis_url, **QUICK)) as opened:
        await opened.set("config", "x", "é", tenant_id="acme", tags=["ü"])
        await opened.invalidate_tags(["ö"], tenant_id="acme", reason="ä")
        yield opened


async def ended(
    cache: Cache, *arguments: str, out: int | IO[bytes] = subprocess.PIPE, **env: str
) -> tuple[int, str, str]:
    """Exit status, output and errors of a command whose output goes there."""

    def run() -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "cachebus.cli.main", *arguments, "--url", cache.settings.url.get_secret_value()],
            cwd=ROOT,
            env=os.environ | env,
            stdout=out,
            stderr=subprocess.PIPE,
            check=False,
        )
        return done.returncode, (done.stdout or b"").decode("ascii"), done.stderr.decode()

    return await asyncio.to_thread(run)


@pytest.mark.parametrize("arguments", LOOKS, ids=[look[0] for look in LOOKS])
async def test_what_its_encoding_lacks_is_escaped(cache: Cache, arguments: tuple[str, ...]) -> None:
    status, out, errors = await ended(cache, *arguments, PYTHONIOENCODING="ascii")
    assert (status, "Traceback" in errors) == (0, False)
    escaped = {"get": r"'\xe9'", "explain": r"\xfc", "log": r"\xf6 of acme (\xe4)", "nodes": ""}
    assert escaped[arguments[0]] in out


@pytest.mark.parametrize("arguments", LOOKS, ids=[look[0] for look in LOOKS])
async def test_where_it_finds_no_room_it_could_not_be_done(cache: Cache, arguments: tuple[str, ...]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with os.fdopen(full, "wb") as nowhere:
        status, _, errors = await ended(cache, *arguments, out=nowhere)
    assert (status, errors.splitlines()[-1]) == (UNUSABLE, "cachebus: OSError: [Errno 28] No space left on device")
    assert "Traceback" not in errors and "ignored" not in errors


@pytest.mark.parametrize("arguments", LOOKS, ids=[look[0] for look in LOOKS])
async def test_where_nobody_reads_it_ends_as_by_the_signal(cache: Cache, arguments: tuple[str, ...]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "wb") as nowhere:
        status, _, errors = await ended(cache, *arguments, out=nowhere)
    assert status == READER_GONE
    assert "Traceback" not in errors and "ignored" not in errors


SAYS_WHO = ("--version",)
SHOWS = ("--help",)
UNREACHED = (*GET, "--url", "redis://127.0.0.1:1")
NEEDS_YES = ("invalidate", "--everything", "--url", "redis://127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "closed", "status", "says"),
    [
        (SAYS_WHO, ">&-", UNUSABLE, "cachebus: OSError: [Errno 9] Bad file descriptor"),
        (SHOWS, ">&-", UNUSABLE, "cachebus: OSError: [Errno 9] Bad file descriptor"),
        (SHOWS, ">/dev/full", UNUSABLE, "cachebus: OSError: [Errno 28] No space left on device"),
        (SHOWS, "2>&-", 0, ""),
        (UNREACHED, ">&-", UNUSABLE, "cachebus: "),
        (UNREACHED, "2>&-", UNUSABLE, ""),
        (UNREACHED, "<&- >&- 2>&-", UNUSABLE, ""),
        (NEEDS_YES, "<&-", UNUSABLE, "--yes"),
        (("get",), "2>&-", UNUSABLE, ""),
    ],
)
def test_a_stream_that_is_closed_makes_no_answer(
    arguments: tuple[str, ...], closed: str, status: int, says: str
) -> None:
    line = f"exec {shlex.join((sys.executable, '-m', 'cachebus.cli.main', *arguments))} {closed}"
    done = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr, "ignored" in done.stderr) == (status, False, False)
    assert says in done.stderr


def test_a_bug_is_no_answer(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise KeyError("nothing")

    monkeypatch.setattr("cachebus.cli.operate.get.settings_for", breaks)
    status, _, errors = typed(*GET)
    assert (status, "KeyError: 'nothing'" in errors) == (UNUSABLE, True)
