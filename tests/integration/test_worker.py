"""What all workers share: applying commands however long L2 is away, telling how they are, draining."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cachebus import ConfigError, L2Unavailable, ProtocolMismatch
from cachebus.base.backoff import RECONNECT_MAX_S
from cachebus.base.clock import monotonic
from cachebus.consumers.monitoring.endpoint import CLIENTS_MAX, Endpoint
from cachebus.consumers.monitoring.health import STUCK_S, WorkerHealth
from cachebus.consumers.monitoring.meters import Meters
from cachebus.consumers.worker.apply import REFUSED, Applier
from cachebus.consumers.worker.retry import TELL_EVERY_S, Retry
from cachebus.consumers.worker.worker import Worker, serve
from cachebus.keys.plan import Plan
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes, quick, until
from tests.support.logs import told

ROOT = Path(__file__).parents[2]


def applier(url: str, **settings: Any) -> tuple[Applier, WorkerHealth, Meters]:
    health = WorkerHealth("test", ("l2",))
    meters = Meters(health)
    return Applier(quick(url, **settings), health, meters), health, meters


def plan(one: Applier, resource_id: int | str) -> Plan:
    return one.plan_of(
        json.dumps({"op": "invalidate", "tenant_id": "acme", "data_type": "config", "resource_id": resource_id})
    )


async def test_many_commands_are_one_step_and_reach_every_node(redis_url: str) -> None:
    async with nodes(redis_url, 2) as (a, b):
        one, health, meters = applier(redis_url)
        for at in range(20):
            await a.set("config", at, "old", tenant_id="acme")
            assert await b.get("config", at, tenant_id="acme") == "old"
        async with one.opened():
            assert health.ready
            await one.apply([plan(one, at) for at in range(20)])
        for at in range(20):
            await until(lambda at=at: _gone(b, at))
        assert meters.registry.get_sample_value("cachebus_worker_scripts_total", {"worker": "test"}) == 1
        assert meters.registry.get_sample_value("cachebus_worker_batch_size_sum", {"worker": "test"}) == 20
        assert meters.registry.get_sample_value("cachebus_worker_in_flight", {"worker": "test"}) == 0


async def _gone(cache: Any, at: int) -> bool:
    return await cache.get("config", at, tenant_id="acme") is None


def test_what_is_no_command_is_refused(redis_url: str) -> None:
    one, _, _ = applier(redis_url)
    for bad in (b"{", b'{"op": "invalidate", "data_type": "t", "resource_id": 1}', b'{"op": "tags", "tenant_id": ""}'):
        with pytest.raises(REFUSED):
            one.plan_of(bad)


async def test_it_waits_for_l2_and_applies_when_it_is_back(own_server: EmbeddedServer) -> None:
    one, health, _ = applier(own_server.url)
    async with one.opened():
        own_server.kill()
        applying = asyncio.create_task(one.apply([plan(one, 1)]))
        await until(lambda: not health.is_up("l2"))
        assert not applying.done()
        assert health.as_dict()["parts"]["l2"]["why"]
        own_server.start()
        await asyncio.wait_for(applying, 20)
        assert health.is_up("l2")


async def test_it_waits_for_l2_at_its_start(own_server: EmbeddedServer) -> None:
    one, health, _ = applier(own_server.url, connect_timeout_s=0.5)
    own_server.kill()

    async def work() -> None:
        async with one.opened():
            await one.apply([plan(one, 1)])

    working = asyncio.create_task(work())
    await until(lambda: "cannot connect" in health.as_dict()["parts"]["l2"]["why"])
    own_server.start()
    await asyncio.wait_for(working, 20)


async def test_while_idle_it_sees_l2_go_and_come(own_server: EmbeddedServer) -> None:
    one, health, _ = applier(own_server.url)
    async with one.opened():
        own_server.kill()
        await until(lambda: not health.ready)
        own_server.start()
        await until(lambda: health.ready)


async def test_cancelled_while_l2_is_away_it_ends(own_server: EmbeddedServer) -> None:
    one, _, meters = applier(own_server.url)
    async with one.opened():
        own_server.kill()
        applying = asyncio.create_task(one.apply([plan(one, 1)]))
        await asyncio.sleep(0)
        applying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await applying
        assert meters.registry.get_sample_value("cachebus_worker_in_flight", {"worker": "test"}) == 0


async def test_another_layout_of_l2_is_told_and_not_waited_for(redis_url: str) -> None:
    async with nodes(redis_url, 1):
        one, _, _ = applier(redis_url, shards=4)
        with pytest.raises(ProtocolMismatch, match="shards=1"):
            async with one.opened():
                pass


async def test_l2_laid_out_anew_meanwhile_is_told_and_not_tried_again(redis_server: EmbeddedServer) -> None:
    one, _, _ = applier(redis_server.url)
    async with one.opened():
        assert redis_server.command("FLUSHALL") == "+OK"
        async with nodes(redis_server.url, 1, shards=4):
            with pytest.raises(ProtocolMismatch, match="shards=4"):
                await one.apply([plan(one, 1)])


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_stuck_loop_is_not_live() -> None:
    clock = Clock()
    health = WorkerHealth("test", (), clock)
    assert health.live and health.ready
    clock.now_s = STUCK_S + 0.1
    assert not health.live and not health.ready
    health.beat()
    assert health.live and health.ready


def test_an_outage_is_told_once_and_then_once_a_minute() -> None:
    clock = Clock()
    retry = Retry("database", WorkerHealth("test", ("database",), clock), clock=clock)
    with told() as said:
        for _ in range(int(3 * TELL_EVERY_S)):
            retry.failed("refused")
            clock.now_s += 1
        retry.succeeded()
        retry.succeeded()
    assert [line.split(":")[0].strip() for line in said] == [
        "database is out of reach",
        "database is out of reach for 60 s, tried 61 times",
        "database is out of reach for 120 s, tried 121 times",
        "database is back after 180.0 s",
    ]


async def test_l2_is_tried_as_often_as_nodes_try_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """While L2 alone is away, a worker that pauses for longer than nodes would leave them with old values in it."""
    pauses, real = list[float](), Retry.pause_s

    def noted(self: Retry) -> float:
        pauses.append(real(self))
        return 0.0

    monkeypatch.setattr(Retry, "pause_s", noted)
    there, _, _ = applier(f"redis://127.0.0.1:{free_port()}/0", connect_timeout_s=0.02)
    with pytest.raises(L2Unavailable):
        async with there.opened(within_s=0.5):
            pass
    assert len(pauses) > 8, "so many that they have grown"
    assert RECONNECT_MAX_S / 2 <= max(pauses) <= RECONNECT_MAX_S


def test_another_reason_is_told_after_five_seconds_and_no_oftener() -> None:
    clock = Clock()
    health = WorkerHealth("test", ("database",), clock)
    retry = Retry("database", health, clock=clock)
    with told() as said:
        for second in range(23):
            retry.failed("refused" if second < 3 else "read only" if second < 12 else f"odd {second % 2}")
            clock.now_s += 1
    assert [line.strip() for line in said] == [
        "database is out of reach: refused",
        "database is out of reach for 5 s, tried 6 times: read only",
        "database is out of reach for 12 s, tried 13 times: odd 0",
        "database is out of reach for 17 s, tried 18 times: odd 1",
        "database is out of reach for 22 s, tried 23 times: odd 0",
    ]
    assert health.as_dict()["parts"]["database"]["why"] == "odd 0"


def fetched(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as said:
            return said.status, said.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_port_of_one_that_was_looked_at_is_there_for_the_next() -> None:
    """The server hangs up first, so what is left of the connection lies at its port for a minute."""
    health = WorkerHealth("test", ())
    endpoint = Endpoint(0)
    endpoint.start(health, Meters(health))
    url = endpoint.url
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{url}/health/live", timeout=5) as answer:
        answer.read()
    endpoint.stop()
    again = Endpoint(int(url.rpartition(":")[2]))
    again.start(health, Meters(health))
    again.stop()


def test_the_endpoint_tells_health_and_figures() -> None:
    health = WorkerHealth("test", ("l2", "database"))
    meters = Meters(health)
    meters.done("applied", 3)
    endpoint = Endpoint(0)
    endpoint.start(health, meters)
    try:
        health.up("l2")
        health.down("database", "refused")
        status, body = fetched(endpoint.url + "/health/ready")
        assert status == 503
        assert json.loads(body)["parts"]["database"]["why"] == "refused"
        assert fetched(endpoint.url + "/health/live")[0] == 200
        health.up("database")
        assert fetched(endpoint.url + "/health/ready")[0] == 200
        figures = fetched(endpoint.url + "/metrics")[1].decode()
        assert 'cachebus_worker_messages_total{outcome="applied",worker="test"} 3.0' in figures
        assert 'cachebus_worker_up{part="database",worker="test"} 1.0' in figures
        assert fetched(endpoint.url + "/")[0] == 404
        health.draining = True
        assert fetched(endpoint.url + "/health/ready")[0] == 503
        with pytest.raises(ConfigError, match=r"can't be had on 127\.0\.0\.1:\d+: .* --health-port "):
            Endpoint(int(endpoint.url.rpartition(":")[2])).start(health, meters)
    finally:
        endpoint.stop()


def test_clients_that_hang_on_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those that say nothing nor those that never end saying it; and they cost no more threads than a few."""
    health = WorkerHealth("test", ())
    endpoint = Endpoint(0)
    endpoint.start(health, Meters(health))
    port = int(endpoint.url.rpartition(":")[2])
    before = threading.active_count()
    hanging = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
    try:
        for one in hanging[::2]:
            with contextlib.suppress(OSError):
                one.sendall(b"GET /health/live HTTP/1.1\r\nx: ")
        for _ in range(5):
            health.beat()
            assert fetched(endpoint.url + "/health/live")[0] == 200
        deadline_s = monotonic() + 15
        while threading.active_count() > before + CLIENTS_MAX:
            assert monotonic() < deadline_s
        monkeypatch.setattr("cachebus.consumers.monitoring.endpoint.CLIENT_S", 0.05)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as late:
            late.sendall(b"GET /")
            assert late.recv(100) == b"", "it is hung up on, whatever it goes on saying"
    finally:
        for one in hanging:
            one.close()
        endpoint.stop()


class Idle(Worker):
    """Works until it is drained, and then as long as `finish_s` says."""

    finish_s = 0.0

    async def run(self) -> None:
        print("works", flush=True)
        await self.drained()
        await asyncio.sleep(self.finish_s)


class Broken(Worker):
    async def run(self) -> None:
        raise ConfigError("no such topic")


async def test_what_no_waiting_helps_against_is_raised_as_it_is() -> None:
    with pytest.raises(ConfigError, match="no such topic"):
        await serve(Broken("test", ()))


async def test_a_pause_is_cut_short_by_draining() -> None:
    worker = Idle("test", ())
    assert not await worker.drained(0.001)
    worker.drain()
    assert await worker.drained(60)


PROGRAM = """
import asyncio, sys
from cachebus.base.log import logger
from cachebus.consumers.worker.worker import serve
from tests.integration.test_worker import Idle
logger.use("loguru")
Idle.finish_s = float(sys.argv[1])
print(asyncio.run(serve(Idle("test", ()), drain_timeout_s=float(sys.argv[2]))))
"""


STUCK = """
import asyncio, os, sys
from cachebus.base.log import logger
from cachebus.consumers.worker.worker import Worker, serve

logger.use("loguru")

class Stuck(Worker):
    async def run(self):
        print("works", flush=True)
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass

asyncio.run(serve(Stuck("test", ()), drain_timeout_s=float(sys.argv[1]), abort=lambda: os._exit(7)))
"""


@pytest.mark.parametrize(("drain_timeout_s", "signals"), [(0.2, 1), (600, 2)], ids=["in time", "asked twice"])
def test_one_that_hangs_while_it_leaves_ends_all_the_same(drain_timeout_s: float, signals: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, str(drain_timeout_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == "works\n"
            for _ in range(signals):
                process.send_signal(signal.SIGTERM)
                assert process.stderr.readline()
            assert process.wait(timeout=20) == 7
        finally:
            process.kill()


LATE = """
import asyncio
import anyio
from cachebus.base.log import logger
from cachebus.consumers.worker.worker import Worker, serve

logger.use("loguru")

class Late(Worker):
    async def run(self):
        print("works", flush=True)
        await self.drained()
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(0.5)

print(asyncio.run(serve(Late("test", ()), drain_timeout_s=0.2)))
"""


def test_one_that_was_told_to_end_and_leaves_in_order_after_that_was_not_drained() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LATE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "works\n"
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert out == "False\n"
    assert "ended before it was drained" in errors
    assert "test: drained" not in errors


@pytest.mark.parametrize(
    ("finish_s", "drain_timeout_s", "signals", "says"),
    [(0, 60, 1, "True"), (60, 0.1, 1, "False"), (60, 60, 2, "False")],
    ids=["drained", "not in time", "asked twice"],
)
def test_sigterm_drains_and_a_second_one_ends(finish_s: float, drain_timeout_s: float, signals: int, says: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(finish_s), str(drain_timeout_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == "works\n"
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            assert "draining" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[0] == f"{says}\n"
    finally:
        process.kill()
        process.wait()
