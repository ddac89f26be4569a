"""A real Celery worker with its pool of forked processes, over a real broker: caches in them, and tenants of tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cachebus import ConfigError, Context, TenantRequired
from cachebus.threads import BlockingCache
from tests.support.caches import QUICK
from tests.support.command import DEADLINE_S, ROOT
from tests.support.require import require

TASKS = """
import os

from celery import Celery

from cachebus import Settings
from cachebus.celery import CeleryCache

app = Celery("tasks", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(broker_connection_retry_on_startup=True, worker_send_task_events=False)
settings = Settings(url=os.environ["CACHE"], namespace="celery", **%r)
cachebus = CeleryCache(app, settings)


def load(resource_id, tenant_id):
    return {"id": resource_id, "tenant": tenant_id, "loaded_by": os.getpid()}


@app.task(name="tasks.price")
def price(product):
    return os.getpid(), cachebus.cache.get_or_load("price", product, load)


@app.task(name="tasks.relayed")
def relayed(product):
    return price.delay(product).id


@app.task(name="tasks.stats")
def stats():
    return os.getpid(), cachebus.cache._there is not None
"""


@pytest.fixture
def tasks(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the tasks, in this process, which sends them."""
    require(find_spec("celery"), "Celery", "pip install 'cachebus[test]'")
    (tmp_path / "cachebus_tasks.py").write_text(TASKS % QUICK)
    monkeypatch.setenv("BROKER", redis_url.removesuffix("/0") + "/1")
    monkeypatch.setenv("CACHE", redis_url)
    monkeypatch.syspath_prepend(tmp_path)
    module = import_module("cachebus_tasks")
    yield module
    module.cachebus.close()
    module.app.close()
    del sys.modules["cachebus_tasks"]


@contextmanager
def worker(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A worker that is ready; killed in the end if it still runs."""
    command = [sys.executable, "-m", "celery", "-A", "cachebus_tasks", "worker", "--loglevel", "INFO", *options]
    without = "--without-gossip", "--without-mingle", "--without-heartbeat"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"}
    with (
        (folder / "worker.log").open("w") as log,
        subprocess.Popen(
            [*command, *without], cwd=folder, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def stopped(process: subprocess.Popen[str], folder: Path) -> str:
    """Its log, once it has ended in order."""
    process.send_signal(signal.SIGTERM)
    status = process.wait(DEADLINE_S)
    log = (folder / "worker.log").read_text()
    assert status == 0, log
    return log


def asked(task: Any, *arguments: Any, tenant: str | None = None) -> Any:
    """What a task gives that is sent for this tenant."""
    if tenant is None:
        return task.delay(*arguments).get(timeout=DEADLINE_S)
    with Context(tenant_id=tenant):
        return task.delay(*arguments).get(timeout=DEADLINE_S)


def nodes(cache: BlockingCache) -> set[int]:
    """The processes of the other nodes that are there, each of which has just said so."""
    names = cache.invalidate("nothing", "x", "acme", wait="nodes").confirmed
    return {int(name.split("-")[-2]) for name in names} - {os.getpid()}


def test_a_pool_of_processes(tasks: Any, tmp_path: Path) -> None:
    """Each child opens a cache of its own, the parent none; a task runs in the tenant's context in which it was sent;
    what is invalidated elsewhere is loaded anew in all of them; and when the worker ends, all have left the fleet."""
    pool = "--pool", "prefork", "--concurrency", "2"
    with worker(tmp_path, *pool) as process, BlockingCache.open(tasks.settings) as own:
        by_pid: dict[int, Any] = {}
        while len(by_pid) < 2:
            pid, price = asked(tasks.price, "p1", tenant="acme")
            by_pid[pid] = price
        assert process.pid not in by_pid
        assert {price["tenant"] for price in by_pid.values()} == {"acme"}
        assert len({price["loaded_by"] for price in by_pid.values()}) == 1, "one load over all processes"
        assert nodes(own) == set(by_pid)
        before = price["loaded_by"]
        own.set("price", "p1", {"tenant": "acme", "loaded_by": 0}, "acme", wait="nodes")
        again = dict(asked(tasks.price, "p1", tenant="acme") for _ in range(8))
        assert {price["loaded_by"] for price in again.values()} == {0}, f"not what {before} had loaded"
        assert asked(tasks.price, "p1", tenant="zeta")[1]["tenant"] == "zeta"
        stopped(process, tmp_path)
        assert nodes(own) == set(), "each child has closed its cache"


def test_a_task_that_is_sent_without_a_context_has_no_tenant(tasks: Any, tmp_path: Path) -> None:
    """Not even behind one that had: the context ends with the task."""
    with worker(tmp_path, "--pool", "prefork", "--concurrency", "1") as process:
        asked(tasks.price, "p1", tenant="acme")
        with pytest.raises(TenantRequired):
            asked(tasks.price, "p1")
        child = asked(tasks.relayed, "p2", tenant="acme")
        assert tasks.app.AsyncResult(child).get(timeout=DEADLINE_S)[1]["tenant"] == "acme", "it travels on"
        stopped(process, tmp_path)


def test_a_pool_of_threads(tasks: Any, tmp_path: Path) -> None:
    """All threads of the worker share one cache."""
    pool = "--pool", "threads", "--concurrency", "4"
    with worker(tmp_path, *pool) as process, BlockingCache.open(tasks.settings) as own:
        results = [asked(tasks.price, f"p{i}", tenant=f"t{i % 3}") for i in range(12)]
        assert {pid for pid, _ in results} == {process.pid}
        assert [price["tenant"] for _, price in results] == [f"t{i % 3}" for i in range(12)]
        assert nodes(own) == {process.pid}
        stopped(process, tmp_path)
        assert nodes(own) == set()


def test_a_task_that_is_called_at_once_stays_in_its_callers_context(tasks: Any) -> None:
    tasks.app.conf.task_always_eager = True
    with Context(tenant_id="acme"):
        assert tasks.price.delay("p1").get()[1]["tenant"] == "acme"
    with pytest.raises(TenantRequired):
        tasks.price.apply(("p1",)).get()


def test_what_travels_is_the_ids_as_text(tasks: Any) -> None:
    from cachebus.celery import HEADER

    headers: dict[str, Any] = {}
    with Context(tenant_id="acme", agent_id=7):
        tasks.cachebus._send(headers=headers)
    assert headers == {HEADER: {"tenant_id": "acme", "agent_id": "7"}}
    with Context(tenant_id="zeta"):
        tasks.cachebus._send(headers=headers)
    assert headers[HEADER]["tenant_id"] == "acme", "a task that is sent again stays the one that it was"


def test_a_closed_cache_hears_of_no_task_and_one_without_contexts_never_does() -> None:
    from celery import Celery, signals

    from cachebus.celery import CeleryCache

    heard = [signals.before_task_publish, signals.task_prerun, signals.worker_process_shutdown]
    before = [len(s.receivers) for s in heard]
    with_none = CeleryCache(Celery("other"), "memory://celery", contexts=False)
    assert [len(s.receivers) for s in heard] == [before[0], before[1], before[2] + 1]
    both = CeleryCache(Celery("another"), "memory://celery")
    assert [len(s.receivers) for s in heard] == [before[0] + 1, before[1] + 1, before[2] + 2]
    for one in (with_none, both):
        one.close()
    assert [len(s.receivers) for s in heard] == before
    with pytest.raises(ConfigError, match="closed"):
        both.cache.get("price", "p1", "acme")
