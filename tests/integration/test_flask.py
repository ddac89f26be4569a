"""The extension in real applications of Flask: its test client, threads, the development server, and gunicorn."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, abort, request

from cachebus import Cache, ConfigError, TenantRequired
from cachebus.flask import CacheBus, settings_of
from cachebus.threads import BlockingCache
from tests.support.caches import QUICK, quick, until
from tests.support.command import DEADLINE_S, ROOT, descendants
from tests.support.require import require

CONFIG = {f"CACHEBUS_{name.upper()}": value for name, value in QUICK.items()}
SERVICE = """
import os
from cachebus.flask import CacheBus
from flask import Flask, request

app = Flask(__name__)
app.config.update(CACHEBUS_URL=os.environ["CACHE"], CACHEBUS_NAMESPACE="flask", **%r)
bus = CacheBus(app, tenant=lambda request: request.headers.get("X-Tenant"))
if os.environ.get("EARLY"):
    bus.of(app).set("price", "early", os.getpid(), "acme")


def load(resource_id, tenant_id):
    return {"id": resource_id, "tenant": tenant_id, "loaded_by": os.getpid()}


@app.get("/<product>")
def price(product):
    return {"pid": os.getpid(), "price": bus.cache.get_or_load("price", product, load)}
"""


def application(url: str, **more: Any) -> tuple[Flask, CacheBus]:
    """A service whose tenant is in a header."""
    app = Flask("shop")
    app.config.update(CACHEBUS_URL=url, **CONFIG, **more)
    bus = CacheBus(tenant=lambda request: request.headers.get("X-Tenant"))
    bus.init_app(app)

    @app.get("/<product>")
    def price(product: str) -> Any:
        return {"of": bus.cache.get_or_load("price", product, lambda tenant_id: tenant_id)}

    @app.get("/fails")
    def fails() -> Any:
        abort(500 if request.headers.get("X-Tenant") else 404)

    @app.get("/streamed")
    def streamed() -> Any:
        return (str(bus.cache.get_or_load("price", str(i), lambda tenant_id: tenant_id)) for i in range(2))

    return app, bus


@pytest.fixture
def shop(redis_url: str) -> Iterator[tuple[Flask, CacheBus]]:
    """An application, closed at the end."""
    app, bus = application(redis_url)
    yield app, bus
    bus.close(app)


def asked(app: Flask, path: str, tenant: str | None = None) -> Any:
    """What the test client is answered."""
    return app.test_client().get(path, headers={"X-Tenant": tenant} if tenant else {})


def test_each_request_is_inside_its_tenants_context(shop: tuple[Flask, CacheBus]) -> None:
    app, bus = shop
    assert asked(app, "/p1", "acme").json == {"of": "acme"}
    assert asked(app, "/p1", "zeta").json == {"of": "zeta"}
    app.testing = True
    with pytest.raises(TenantRequired):
        asked(app, "/p1")
    assert asked(app, "/fails", "acme").status_code == 500
    with pytest.raises(TenantRequired):
        asked(app, "/p1")  # the one that failed has left its context, too
    assert bus.of(app).get("price", "p1", "acme") == "acme"


@pytest.mark.parametrize("tenant", ["", "a\tb", "t" * 600], ids=["empty", "control", "long"])
def test_a_client_whose_tenant_is_no_id_is_told(shop: tuple[Flask, CacheBus], tenant: str) -> None:
    app, _ = shop
    answer = app.test_client().get("/p1", headers={"X-Tenant": tenant})
    assert answer.status_code == 400
    assert b"tenant_id" in answer.data


def test_threads_have_each_their_own_tenant(shop: tuple[Flask, CacheBus]) -> None:
    app, _ = shop

    def ask(i: int) -> bool:
        tenant = f"t{i % 5}"
        return bool(asked(app, f"/p{i % 3}", tenant).json == {"of": tenant})

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))


def test_nested_clients_leave_in_order(shop: tuple[Flask, CacheBus]) -> None:
    """`with client:` keeps a request's context until the next one."""
    app, _ = shop
    with app.test_client() as client:
        for tenant in ("acme", "zeta", "acme"):
            assert client.get("/p1", headers={"X-Tenant": tenant}).json == {"of": tenant}
    app.testing = True
    with pytest.raises(TenantRequired):
        asked(app, "/p1")


def test_what_is_invalidated_elsewhere_is_loaded_anew(shop: tuple[Flask, CacheBus], redis_url: str) -> None:
    app, _ = shop
    with BlockingCache.open(quick(redis_url)) as other:
        assert asked(app, "/p1", "acme").json == {"of": "acme"}
        other.set("price", "p1", "of another process", "acme", wait="nodes")
        assert asked(app, "/p1", "acme").json == {"of": "of another process"}


def test_nothing_is_opened_before_it_is_used() -> None:
    """Nobody listens there."""
    app, bus = application("redis://127.0.0.1:1/0")
    assert app.test_client().get("/nowhere/at/all").status_code == 404
    assert bus.of(app)._there is None


def test_two_applications_have_each_their_own(redis_url: str) -> None:
    bus = CacheBus()
    apps = [Flask(name) for name in ("one", "two")]
    for app in apps:
        app.config.update(CACHEBUS_URL=redis_url, CACHEBUS_NAMESPACE=app.name, **CONFIG)
        bus.init_app(app)
    for app in apps:
        with app.app_context():
            bus.cache.set("price", "p1", app.name, "acme")
    for app in apps:
        with app.app_context():
            assert bus.cache.get("price", "p1", "acme") == app.name
        bus.close(app)
    with pytest.raises(ConfigError, match="closed"):
        bus.of(apps[0]).get("price", "p1", "acme")


def test_what_is_wrong_is_told_early() -> None:
    app = Flask("shop")
    app.config["CACHEBUS_NAMESPCE"] = "x"
    with pytest.raises(ConfigError, match="CACHEBUS_NAMESPCE: there is no such setting, did you mean namespace"):
        CacheBus(app)
    with pytest.raises(ConfigError, match="l2_timeout_s"):
        settings_of({"CACHEBUS_L2_TIMEOUT_S": "soon"})
    bus = CacheBus()
    with pytest.raises(ConfigError, match="no Flask application is current"):
        _ = bus.cache
    with pytest.raises(ConfigError, match="call init_app"):
        bus.of(app)
    app, bus = application("memory://flask")
    with pytest.raises(ConfigError, match="has a CacheBus already"):
        bus.init_app(app)


# -- servers ----------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def served(folder: Path, url: str, *command: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server of the service, killed with its children in the end if it still runs."""
    (folder / "service.py").write_text(SERVICE % CONFIG)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "CACHE": url, **more}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def fetched(port: int, path: str, tenant: str = "acme") -> Any:
    """The answer of a server; None where it does not answer yet."""
    asking = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"X-Tenant": tenant})
    try:
        with urllib.request.urlopen(asking, timeout=DEADLINE_S) as answer:
            return json.loads(answer.read())
    except OSError:
        return None


async def pids(cache: Cache) -> set[int]:
    """The processes whose nodes are there, each of which has just said so."""
    receipt = await cache.invalidate("nothing", "x", "acme", wait="nodes")
    return {int(name.split("-")[-2]) for name in receipt.confirmed} - {os.getpid()}


@pytest.mark.parametrize("early", ["", "1"], ids=["opened by a request", "opened before the fork"])
async def test_gunicorn_that_loads_the_application_and_then_forks(redis_url: str, tmp_path: Path, early: str) -> None:
    """Each worker has a cache of its own, over all its threads, whether or not the parent has used one; what is
    replaced elsewhere is replaced in all of them; and each leaves the fleet when the server ends."""
    require(find_spec("gunicorn"), "gunicorn", "pip install 'cachebus[test]'")
    port = free_port()
    options = f"--preload --workers 2 --threads 4 --bind 127.0.0.1:{port} --worker-tmp-dir {tmp_path} service:app"
    with served(tmp_path, redis_url, "gunicorn", *options.split(), EARLY=early) as server:
        async with Cache(quick(redis_url, namespace="flask")) as other:
            await until(lambda: fetched(port, "/p0"), within_s=DEADLINE_S)

            def ask(i: int) -> Any:
                return fetched(port, f"/p{i % 4}", f"t{i % 3}")

            seen: set[int] = set()
            with ThreadPoolExecutor(8) as pool:
                while len(seen) < 2:
                    answers = list(pool.map(ask, range(48)))
                    seen |= {answer["pid"] for answer in answers}
                    assert [answer["price"]["tenant"] for answer in answers] == [f"t{i % 3}" for i in range(48)]
            assert seen == set(descendants(server.pid))
            assert await pids(other) == seen | ({server.pid} if early else set())
            await other.set("price", "p0", {"tenant": "t0", "loaded_by": 0}, "t0", wait="nodes")
            assert {ask(0)["price"]["loaded_by"] for _ in range(8)} == {0}
            server.send_signal(signal.SIGTERM)
            assert server.wait(DEADLINE_S) == 0, (tmp_path / "log").read_text()
            assert await pids(other) == set()


async def test_the_development_server_with_its_reloader(redis_url: str, tmp_path: Path) -> None:
    """It imports the application in two processes: the one that only watches files opens no cache."""
    port = free_port()
    options = f"flask --app service run --debug --port {port}"
    with served(tmp_path, redis_url, *options.split()) as server:
        async with Cache(quick(redis_url, namespace="flask")) as other:
            answer = await until(lambda: fetched(port, "/p1"), within_s=DEADLINE_S)
            assert answer["price"]["tenant"] == "acme"
            assert await pids(other) == {answer["pid"]}
            assert answer["pid"] != server.pid
