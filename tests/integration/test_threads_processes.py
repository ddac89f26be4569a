"""`BlockingCache` over the life of processes: forks of all kinds, servers that fork, and how a process ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

import pytest

from cachebus import BlockingCache
from cachebus.base.clock import monotonic
from cachebus.tools.servers.daemon import free_port
from tests.support.caches import quick
from tests.support.command import ROOT, all_gone, descendants
from tests.support.threads import waited

TIMEOUT_S = 90.0
HEAD = """
import os, sys, threading
from cachebus import BlockingCache, ConfigError, L2Unavailable, Settings
settings = Settings(url=os.environ["URL"], namespace=os.environ["NAMESPACE"], close_timeout_s=2)
cache = BlockingCache.open(settings)
def threads():
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("cachebus"))
"""


@pytest.fixture
def environment(redis_url: str) -> dict[str, str]:
    """Of a program: where the cache is."""
    found = {**os.environ, "URL": redis_url, "NAMESPACE": f"t{token_hex(4)}", "PYTHONPATH": str(ROOT)}
    return {**found, "PYTHONWARNINGS": "error,ignore::DeprecationWarning"}


def ran(code: str, environment: dict[str, str], *, status: int = 0) -> list[str]:
    """What a program prints; the test fails where it says anything else, or does not end."""
    program = HEAD + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert (done.returncode, done.stderr) == (status, ""), done.stderr + done.stdout
    return done.stdout.splitlines()


def nodes(environment: dict[str, str]) -> int:
    """How many nodes are in the fleet, as L2 has it."""
    settings = quick(environment["URL"], namespace=environment["NAMESPACE"])
    with BlockingCache.open(settings) as look:
        receipt = look.invalidate("none", "x", "acme", wait="nodes")
        return len(receipt.confirmed) + len(receipt.lapsed) - 1


# -- forks -----------------------------------------------------------------------------------------------------------


def test_a_child_opens_its_own_and_the_parent_goes_on(environment: dict[str, str]) -> None:
    said = ran(
        """
        cache.set("config", "x", 1, "acme")
        assert cache.get("config", "x", "acme") == 1
        connections = lambda: {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                               if os.path.exists(f"/proc/self/fd/{fd}")}
        inherited = {name for name in connections().values() if name.startswith("socket:")}
        here, there = os.pipe()
        child = os.fork()
        if not child:
            assert cache._entries == {} and threads() == []
            assert cache.get("config", "x", "acme") == 1
            assert threads() == ["cachebus-loop"] and cache._entries
            own = {name for name in connections().values() if name.startswith("socket:")} - inherited
            assert len(own) >= 2, "sockets of its own"
            cache.set("config", "x", 2, "acme", wait="nodes")
            os.write(there, b"!")
            sys.exit()
        os.read(here, 1)
        assert cache.get("config", "x", "acme") == 2, "it has heard of the child's write"
        assert os.waitpid(child, 0)[1] == 0
        cache.set("config", "x", 3, "acme")
        assert cache.get("config", "x", "acme") == 3
        print("ended", cache.health().degraded)
        """,
        environment,
    )
    assert said == ["ended ()"]
    assert nodes(environment) == 0, "both have left the fleet"


def test_a_child_that_was_forked_while_threads_read_and_load(environment: dict[str, str]) -> None:
    """Whatever lock a thread of the parent's holds at that moment."""
    said = ran(
        """
        import random, traceback
        done = threading.Event()
        def work(number):
            dice = random.Random(number)
            while not done.is_set():
                cache.get_or_load("config", dice.randrange(50), lambda: 1, "acme")
                cache.invalidate("config", dice.randrange(50), "acme")
        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for _ in range(8):
            child = os.fork()
            if not child:
                code = 1
                try:
                    assert cache.get_or_load("config", "mine", lambda: 7, "acme") == 7
                    cache.close()
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            failed = os.waitpid(child, 0)[1]
            if failed:
                break
        done.set()
        for worker in workers:
            worker.join()
        print("failed" if failed else "ended")
        """,
        environment,
    )
    assert said == ["ended"]


def test_a_child_inside_a_block_and_behind_a_close(environment: dict[str, str]) -> None:
    said = ran(
        """
        with cache:
            cache.set("config", "x", 1, "acme")
            child = os.fork()
            if not child:
                assert cache.get("config", "x", "acme") == 1
        if child:
            assert os.waitpid(child, 0)[1] == 0
        try:
            cache.get("config", "x", "acme")
        except ConfigError as error:
            print("closed")
            if not child:
                sys.exit()
        if not os.fork():
            try:
                cache.get("config", "x", "acme")
            except ConfigError:
                os._exit(0)
            os._exit(1)
        print(os.wait()[1])
        """,
        environment,
    )
    assert said.count("closed") == 2 and said[-1] == "0"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing(environment: dict[str, str], tmp_path: Path, method: str) -> None:
    program = HEAD + textwrap.dedent(
        """
        import multiprocessing

        def work(number):
            cache.set("config", number, number, "acme")
            return cache.get_or_load("config", number, lambda: 0, "acme")

        if __name__ == "__main__":
            if sys.argv[1] == "fork":
                cache.set("config", "x", 1, "acme")
            with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
                print(pool.map(work, range(4)))
                pool.close()
                pool.join()
        """
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), method],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[0, 1, 2, 3]\n")
    assert nodes(environment) == 0, "all have left the fleet"


# -- how a process ends ----------------------------------------------------------------------------------------------


def test_it_is_closed_at_the_exit(environment: dict[str, str]) -> None:
    assert ran("print(cache.get('config', 'x', 'acme'))", environment) == ["None"]
    assert nodes(environment) == 0


def test_an_exit_by_an_error_is_one(environment: dict[str, str]) -> None:
    assert ran("cache.set('config', 'x', 1, 'acme'); sys.exit(3)", environment, status=3) == []
    assert nodes(environment) == 0


def test_threads_that_outlive_the_main_one_go_on(environment: dict[str, str]) -> None:
    said = ran(
        """
        cache.get("config", "x", "acme")
        def work():
            threading.main_thread().join()
            for number in range(20):
                assert cache.get_or_load("config", number, lambda: number, "acme") == number
            print("worked")
        threading.Thread(target=work).start()
        """,
        environment,
    )
    assert said == ["worked"]
    assert nodes(environment) == 0


def test_a_load_that_hangs_in_a_thread_does_not_hold_up_the_exit(environment: dict[str, str]) -> None:
    said = ran(
        """
        from cachebus import blocking
        begun = threading.Event()
        def hang():
            begun.set()
            threading.Event().wait()
        def ask():
            try:
                cache.get_or_load("config", "x", blocking(hang), "acme")
            except Exception as error:
                print(type(error).__name__)
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        begun.wait()
        import atexit
        atexit.register(print, "at exit")
        import logging
        logging.disable()
        """,
        environment,
    )
    assert said[0] == "at exit"


def test_callbacks_at_the_exit_may_use_it_or_are_told(environment: dict[str, str]) -> None:
    said = ran(
        """
        import atexit
        def late():
            try:
                cache.get("config", "x", "acme")
            except ConfigError as error:
                print(error)
        atexit.register(late)
        cache.get("config", "x", "acme")
        atexit.register(lambda: print(cache.get("config", "x", "acme", default="there")))
        """,
        environment,
    )
    assert said[0] == "there" and "is closed" in said[1]


def test_ctrl_c_while_it_waits(environment: dict[str, str]) -> None:
    """The call ends at once; nothing is left of it, and the cache goes on."""
    said = ran(
        """
        import asyncio, logging, signal
        from cachebus import blocking
        logging.disable()  # what goes on in its thread is told
        begun = threading.Event()
        async def hang():
            begun.set()
            await asyncio.sleep(3600)
        def interrupt():
            begun.wait()
            os.kill(os.getpid(), signal.SIGINT)
        for way in (hang, blocking(lambda: (begun.set(), threading.Event().wait(2)) and None)):
            begun.clear()
            threading.Thread(target=interrupt).start()
            try:
                cache.get_or_load("config", "x", way, "acme")
            except KeyboardInterrupt:
                print("interrupted")
        def on_this_thread():
            begun.set()
            threading.Event().wait(60)
        begun.clear()
        threading.Thread(target=interrupt).start()
        try:
            cache.get_or_load("config", "x", on_this_thread, "acme")
        except KeyboardInterrupt:
            print("interrupted")
        print(cache.get_or_load("config", "x", lambda: "new", "acme"))
        """,
        {**environment, "PYTHONWARNINGS": "default"},
    )
    assert said == ["interrupted"] * 3 + ["new"]
    assert nodes(environment) == 0


# -- servers that fork -----------------------------------------------------------------------------------------------

APPLICATION = """
import json, os, threading
from cachebus import BlockingCache, Settings

cache = BlockingCache.open(Settings(url=os.environ["URL"], namespace=os.environ["NAMESPACE"], close_timeout_s=2))
if os.environ["USED"] == "1":
    cache.set("config", "x", "of the master", "acme")

def load(resource_id):
    return {"pid": os.getpid(), "thread": threading.current_thread().name}

def app(environ, start_response):
    if environ["REQUEST_METHOD"] == "PUT":
        cache.invalidate("config", "x", "acme", wait="nodes")
    told = {"pid": os.getpid(), "loaded": cache.get_or_load("config", "x", load, "acme")}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(told).encode()]
"""


@contextmanager
def gunicorn(folder: Path, environment: dict[str, str]) -> Iterator[int]:
    """The application behind the real server: its master loads it, then forks two workers of four threads."""
    (folder / "application.py").write_text(APPLICATION)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--threads", "4", "application:app"]
    with subprocess.Popen(
        [*command, "--bind", f"127.0.0.1:{port}", "--chdir", str(folder), "--log-level", "warning"],
        env={**environment, "PYTHONWARNINGS": "default::ResourceWarning"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        workers: list[int] = []
        try:
            waited(lambda: asked(port))
            workers = descendants(process.pid)
            yield port
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=30)
        assert "Traceback" not in errors, errors
        assert all_gone(workers)


def asked(port: int, method: str = "GET") -> dict[str, object] | None:
    """What it answers; None while nobody does."""
    with suppress(OSError):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            found: dict[str, object] = json.load(answer)
            return found
    return None


@pytest.mark.parametrize("used", ["0", "1"], ids=["made in the master", "used in the master"])
def test_gunicorn_that_loads_it_before_it_forks(environment: dict[str, str], tmp_path: Path, used: str) -> None:
    with gunicorn(tmp_path, {**environment, "USED": used}) as port:
        deadline_s, seen = monotonic() + TIMEOUT_S, set[object]()
        while len(seen) < 2:
            assert monotonic() < deadline_s
            told = asked(port)
            assert told is not None
            seen.add(told["pid"])
        for _ in range(20):
            written = asked(port, "PUT")
            assert written is not None and written["loaded"]["thread"].startswith("ThreadPoolExecutor"), written
            for _ in range(4):
                read = asked(port)
                assert read is not None and read["loaded"] == written["loaded"]
    assert nodes(environment) == 0, "all have left the fleet"


CELERY = """
import os
from celery import Celery
from cachebus import BlockingCache, Settings
from cachebus.threads import close_all
from celery.signals import worker_process_shutdown

app = Celery("tasks", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1)
cache = BlockingCache.open(Settings(url=os.environ["URL"], namespace=os.environ["NAMESPACE"], close_timeout_s=2))
cache.set("config", "x", "of the parent", "acme")

@worker_process_shutdown.connect
def shut(**_):
    close_all()

@app.task
def read(number):
    cache.get_or_load("config", number, lambda: number, "acme")
    return os.getpid(), cache.get("config", number, "acme")

@app.task
def write(number):
    return str(cache.set("config", number, "new", "acme", wait="nodes"))
"""


def test_celery_that_forks_its_workers(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(CELERY)
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", "--concurrency", "2"]
    environment = {**environment, "PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONWARNINGS": "ignore"}
    asking = (
        "import tasks\n"
        "said = [tasks.read.delay(n % 5) for n in range(20)]\n"
        "said = [each.get(timeout=60) for each in said]\n"
        "assert all(value == n % 5 for n, (_, value) in enumerate(said)), said\n"
        "tasks.write.delay(3).get(timeout=60)\n"
        "assert {tasks.read.delay(3).get(timeout=60)[1] for _ in range(10)} == {'new'}\n"
        "print(len({pid for pid, _ in said}))\n"
    )
    with subprocess.Popen(
        [*command, "--without-gossip", "--without-mingle", "--loglevel", "WARNING"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            done = subprocess.run(
                [sys.executable, "-c", asking],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
            assert done.stdout == "2\n"
        finally:
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
    assert "Traceback" not in said, said
    assert nodes(environment) == 0, "all have left the fleet"
