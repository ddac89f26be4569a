"""Every block of Python on every page runs, and prints what is said behind it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import cachebus
from cachebus import Cache, CacheManager, InvalidationFailed, L2Unavailable
from cachebus.consumers.outbox import OutboxRelay, create_tables
from cachebus.resp import parse_address
from cachebus.testing import Fleet
from cachebus.tools.harness.proxy import Proxy, dialer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import until
from tests.support.command import cachebus as command
from tests.support.command import ran
from tests.support.outbox import running, waiting
from tests.support.pages import DOCS, EXAMPLE_URL, PAGES, ROOT, blocks, file, run_page, statements
from tests.support.require import require

ELSEWHERE = {
    "loaders.md": "tests/integration/test_loaders.py",
    "outbox.md": "tests/integration/test_outbox_command.py",
    "kafka-commands.md": "tests/integration/test_kafka_command.py",
    "howto/credentials.md": "tests/integration/test_credentials.py",
}
"""Pages whose code is run beside what it is about."""
OWN = {"tutorial/outbox.md", "howto/fastapi.md"}
"""Pages with a test of their own below."""
RUN = sorted(
    name
    for name in (path.relative_to(DOCS).as_posix() for path in PAGES if any(statements(path)))
    if name not in ELSEWHERE and name not in OWN
)
FILES = {
    "outbox.md": {"cascades.toml"},
    "howto/fastapi.md": {"shop.py"},
    "comparison.md": {"with_cachebus.py", "with_cashews.py"},
    "howto/flask.md": {"app.py"},
    "howto/django.md": {
        "settings.py",
        "views.py",
        "urls.py",
        "models.py",
        "caching.py",
        "apps.py",
        "writes.py",
        "asgi.py",
    },
    "howto/celery.md": {"tasks.py", "send.py"},
    "howto/monitoring.md": {"service.py"},
    "howto/testing.md": {"books.py", "test_books.py", "test_shelf.py", "test_redis.py", "pytest.ini"},
}


D_S = 2.0
"""The staleness bound that is set by default."""


@pytest.fixture(autouse=True)
def _as_on_a_machine_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pages configure the process-wide cache, which is done once a process; and a busy machine is none of theirs."""
    monkeypatch.setenv("CACHEBUS_L2_TIMEOUT_S", "20")
    monkeypatch.setenv("CACHEBUS_CONNECT_TIMEOUT_S", "30")
    yield
    CacheManager._configured = None


@pytest.mark.parametrize("name", RUN)
async def test_a_page_runs(name: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    await run_page(DOCS / name, redis_url)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_run_elsewhere_is_run_there(name: str) -> None:
    assert f'"{name}"' in (ROOT / ELSEWHERE[name]).read_text()


def test_every_file_that_a_page_shows_is_run() -> None:
    shown = {path.relative_to(DOCS).as_posix(): {b.title for b in blocks(path) if b.title} for path in PAGES}
    assert {name: titles for name, titles in shown.items() if titles} == FILES


async def test_the_way_to_the_outbox(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = DOCS / "tutorial" / "outbox.md"
    environment = {
        "CACHEBUS_URL": redis_url,
        "CACHEBUS_DATABASE_URL": f"sqlite:///{tmp_path}/shop.db",
        "CACHEBUS_HEALTH_PORT": "0",
    }
    (shell,) = (block.code for block in blocks(page, "sh"))
    make, work = (line.split()[1:] for line in shell.splitlines() if line.startswith("cachebus"))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    assert ran(*make, folder=temporary, env=environment)[0] == 0
    with command(*work, folder=temporary, env=environment):
        await run_page(page, redis_url, also={"< 0.1)": "< 10)", "< 1.0)": "< 60)"})


async def test_the_application_of_fastapi(redis_url: str) -> None:
    scope = await run_page(DOCS / "howto" / "fastapi.md", redis_url)
    app = scope["app"]
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://here") as client,
    ):
        agent = {"id": "a7", "name": "Ada"}
        assert (await client.get("/acme/agents/a7")).json() == agent
        written = await client.put("/acme/agents/a7")
        headers = {"Cache-Receipt": written.headers["cache-receipt"]}
        assert (await client.get("/fresh/acme/agents/a7", headers=headers)).json() == agent
        assert (await client.get("/plan", headers={"X-Tenant": "acme"})).json()["id"] == "current"
        assert (await client.get("/health/ready")).status_code == 200
    async with scope["running"](scope["app_with_more"]):
        assert cachebus.current_cache().ready()


@pytest.mark.parametrize("pending_max", [1000, 0], ids=["queued", "refused"])
async def test_the_whole_of_it_over_postgresql(
    database: str, own_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pending_max: int
) -> None:
    """A write while Redis is away is told to this node by the queue, and to all by the row, with or without a queue."""
    monkeypatch.setenv("CACHEBUS_DATABASE_URL", database)
    monkeypatch.setenv("CACHEBUS_URL", own_server.url)
    monkeypatch.setenv("CACHEBUS_L2_TIMEOUT_S", "0.5")
    code = file(DOCS / "howto/fastapi.md", "shop.py")
    (tmp_path / "shop.py").write_text(code.replace("pending_max=1000", f"pending_max={pending_max}"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    cascades = list(CacheManager._cascades)
    try:
        shop: Any = import_module("shop")
        async with shop.engine.begin() as connection:
            await connection.run_sync(shop.Base.metadata.create_all)
        await create_tables(database)
        await _sold(shop.app, database, own_server, queued=bool(pending_max))
    finally:
        CacheManager._cascades[:] = cascades
        sys.modules.pop("shop", None)


async def _sold(app: Any, database: str, server: EmbeddedServer, *, queued: bool) -> None:
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://here") as client,
        Cache.open(server.url) as other,
    ):

        async def sells(name: str) -> bool:
            return (await client.get("/acme/products/7")).json() == {"number": 7, "name": name}

        async def elsewhere(name: str | None) -> bool:
            found = await other.get("product", 7, tenant_id="acme")
            return (found and found["name"]) == name

        assert (await client.get("/acme/products/7")).status_code == 404
        assert (await client.get("/acme/catalogue")).json() == []
        written = await client.put("/acme/products/7?name=pen")
        receipt = {"Cache-Receipt": written.headers["cache-receipt"]}
        assert (await client.get("/acme/products/7", headers=receipt)).json()["name"] == "pen"
        assert (await client.get("/acme/catalogue")).json() == ["pen"]
        assert (await client.get("/acme/products/7", headers={"Cache-Receipt": "x"})).status_code == 400
        await until(lambda: elsewhere("pen"))
        async with running(OutboxRelay(database, other.settings)):
            await until(lambda: _told(database))
        assert await sells("pen")

        server.pause()
        await until(lambda: not other.ready() and not cachebus.current_cache().ready())
        written = await client.put("/acme/products/7?name=ink")
        assert (written.status_code, "cache-receipt" in written.headers) == (200, False)
        assert not queued or await sells("ink")
        server.resume()
        if queued:
            await until(lambda: elsewhere(None))
            assert await sells("ink")
        assert not await _told(database)
        async with running(OutboxRelay(database, other.settings)):
            await until(lambda: _told(database))
            await until(lambda: sells("ink"))
        assert (await client.get("/acme/catalogue")).json() == ["ink"]


async def _told(database: str) -> bool:
    return await waiting(database) == 0


def put(page: str, folder: Path, url: str) -> None:
    """Write the files that a page shows."""
    for title in FILES[page]:
        (folder / title).write_text(file(DOCS / page, title).replace(EXAMPLE_URL, url))


def in_a_process(code: str, folder: Path, status: int = 0, **more: str) -> str:
    """What such a program prints, with the files of that folder. `more`: environment variables besides."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", **more}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_the_application_of_flask(redis_url: str, tmp_path: Path) -> None:
    put("howto/flask.md", tmp_path, redis_url)
    program = (
        "from app import app\n"
        "client, of = app.test_client(), {'X-Tenant': 'acme'}\n"
        "print(client.get('/agents/a7', headers=of).json)\n"
        "print(list(client.put('/agents/a7', headers=of).json))\n"
        "print(client.get('/agents/a7', headers=of).json['name'])\n"
    )
    assert in_a_process(program, tmp_path) == "{'id': 'a7', 'name': 'Ada', 'of': 'acme'}\n['receipt']\nAda\n"


DJANGO = """
import asyncio
import django
django.setup()
from django.core.cache import cache
from django.core.management import call_command
from django.test import Client
from cachebus import CacheManager
from cachebus.django import blocking_cache
from shop.models import Product
from shop.writes import discount

call_command("migrate", run_syncdb=True, verbosity=0)
Product.objects.create(pk=7, name="pen", price=1200)
shown = lambda: Client().get("/products/7").json()["price"]
blocking_cache().set("price", 7, "old", "django")
print(shown(), shown())
product = Product.objects.get(pk=7)
product.price = 2000
product.save()
print(shown(), blocking_cache().get("price", 7, "django"))
discount(10)
print(shown())

from shop.asgi import application
messages, sent = iter(["startup", "shutdown"]), []

async def receive():
    if sent:
        print(await CacheManager.get("django", ":1:product:7", "django") is not None)
    return {"type": f"lifespan.{next(messages)}"}

async def send(message):
    sent.append(message["type"])

asyncio.run(application({"type": "lifespan"}, receive, send))
print(sent)
"""


def test_the_files_of_django(redis_url: str, tmp_path: Path) -> None:
    require(find_spec("django"), "Django", "pip install 'cachebus[test]'")
    (tmp_path / "shop").mkdir()
    put("howto/django.md", tmp_path / "shop", redis_url)
    told = "['lifespan.startup.complete', 'lifespan.shutdown.complete']"
    assert in_a_process(DJANGO, tmp_path, DJANGO_SETTINGS_MODULE="shop.settings") == (
        f"1200 1200\n2000 None\n1800\nTrue\n{told}\n"
    )


def test_the_tasks_of_celery(redis_url: str, tmp_path: Path) -> None:
    require(find_spec("celery"), "Celery", "pip install 'cachebus[test]'")
    put("howto/celery.md", tmp_path, redis_url)
    tasks = tmp_path / "tasks.py"
    tasks.write_text(tasks.read_text().replace("redis://localhost:6379/1", redis_url.removesuffix("/0") + "/1"))
    command = "worker --pool prefork --concurrency 1 --without-gossip --without-mingle --without-heartbeat"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    with subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tasks", *command.split()],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as worker:
        try:
            assert in_a_process((tmp_path / "send.py").read_text(), tmp_path) == "hello Ada\n"
        finally:
            worker.terminate()


def test_the_suite_of_a_service(tmp_path: Path) -> None:
    put("howto/testing.md", tmp_path, "redis://nobody.invalid:6379/0")
    (tmp_path / "test_redis.py").unlink()
    arguments = "['-q', '-p', 'cachebus.testing.plugin', '--strict-markers', '.']"
    program = f"import pytest\nraise SystemExit(pytest.main({arguments}))"
    assert "4 passed" in in_a_process(program, tmp_path)
    ini = tmp_path / "pytest.ini"
    ini.write_text(ini.read_text().replace("asyncio_mode = auto\n", ""))
    assert "async def functions are not natively supported" in in_a_process(program, tmp_path, status=1)
    tests = tmp_path / "test_books.py"
    tests.write_text(f"{tests.read_text()}\n\npytestmark = pytest.mark.asyncio\n")
    assert "4 passed" in in_a_process(program, tmp_path)


async def test_verify_in_a_suite_of_ones_own(redis_url: str) -> None:
    code = file(DOCS / "howto/testing.md", "test_redis.py")
    assert EXAMPLE_URL in code
    assert "seconds=20" in code
    scope: dict[str, Any] = {}
    exec(code.replace(EXAMPLE_URL, redis_url).replace("seconds=20", "seconds=2"), scope)
    await scope["test_our_redis_keeps_the_promises"]()


Service = tuple[Callable[[int], Awaitable[int]], Callable[[int, int], Awaitable[None]]]
"""A read, and a change."""


@asynccontextmanager
async def compared(which: str, url: str) -> AsyncIterator[tuple[dict[int, int], Service, Service, Proxy]]:
    """The service of the page, on two nodes: what the source has, who writes, and who reads, behind a proxy."""
    scope: dict[str, Any] = {}
    exec(file(DOCS / "comparison.md", f"with_{which}.py"), scope)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(dialer(parse_address(url))))
        services: list[Service] = []
        for address in (url.removesuffix("/0"), f"redis://127.0.0.1:{proxy.port}"):
            cache = scope["opened"](address)
            if which == "cashews":
                await cache.init()
                stack.push_async_callback(cache.close)
            else:
                await stack.enter_async_context(cache)
            services.append(scope["service"](cache))
        yield scope["PRICES"], services[0], services[1], proxy


@pytest.mark.parametrize("which", ["cachebus", "cashews"])
async def test_what_the_comparison_says_of_both(which: str, own_server: EmbeddedServer) -> None:
    if which == "cashews":
        require(find_spec("cashews"), "cashews", "pip install 'cachebus[docs]'")
    async with compared(which, own_server.url) as (prices, (_, change), (price, _), proxy):
        assert await price(1) == 3000
        await change(1, 3100)

        async def gives(cents: int) -> bool:
            return await price(1) == cents

        await until(lambda: gives(3100))
        proxy.hold(("events",))
        await change(1, 3200)
        if which == "cashews":
            with pytest.raises(AssertionError):
                await until(lambda: gives(3200), within_s=2 * D_S)
        else:
            await until(lambda: gives(3200), within_s=2 * D_S)
        proxy.restore()
        await until(lambda: gives(3200))
        own_server.stop()
        if which == "cachebus":
            with pytest.raises(InvalidationFailed):
                await change(1, 3300)
        else:
            await change(1, 3300)
        await until(lambda: gives(3300))
        prices[1] = 3400
        assert await price(1) == (3300 if which == "cachebus" else 3400), "kept for D, or not at all"


@pytest.mark.parametrize(("which", "then"), [("cachebus", 2), ("cashews", 1)])
async def test_a_load_that_began_before_a_change_is_as_the_comparison_says(
    which: str, then: int, redis_url: str
) -> None:
    if which == "cashews":
        require(find_spec("cashews"), "cashews", "pip install 'cachebus[docs]'")
    scope: dict[str, Any] = {}
    exec(file(DOCS / "comparison.md", f"with_{which}.py"), scope)
    began, may_end = asyncio.Event(), asyncio.Event()
    value = 1

    async def load(number: int) -> int:
        loaded = value
        began.set()
        await may_end.wait()
        return loaded

    async with AsyncExitStack() as stack:
        cache = scope["opened"](redis_url.removesuffix("/0"))
        if which == "cashews":
            await cache.init()
            stack.push_async_callback(cache.close)
            cached = cache(ttl="1h", key="slow:{number}")(load)
        else:
            await stack.enter_async_context(cache)
            cached = cachebus.cached("slow", resource_id="{number}", tenant_id="shop", cache=cache)(load)
        reading = asyncio.create_task(cached(1))
        await began.wait()
        value = 2
        await (cache.delete("slow:1") if which == "cashews" else cached.invalidate(1))
        may_end.set()
        await reading
        assert await cached(1) == then


@pytest.mark.parametrize("keep_without_l2", [True, False])
async def test_calls_in_an_outage_are_as_the_page_on_outages_says(keep_without_l2: bool) -> None:
    loads = 0

    async def load(resource_id: str) -> str:
        nonlocal loads
        loads += 1
        return resource_id

    key: dict[str, Any] = {"data_type": "price", "resource_id": "1", "tenant_id": "acme"}
    async with Fleet(nodes=1, keep_without_l2=keep_without_l2) as fleet:
        (cache,) = fleet.caches
        fleet.away = True
        for call in (
            cache.get(**key),
            cache.get_many("price", ["1"], tenant_id="acme"),
            cache.set(**key, value=1),
            cache.add(**key, value=1),
            cache.increment("price", tenant_id="acme"),
        ):
            with pytest.raises(L2Unavailable):
                await call
        with pytest.raises(InvalidationFailed):
            await cache.invalidate(**key)
        assert [await cache.get_or_load(**key, loader=load) for _ in range(2)] == ["1", "1"]
    assert loads == (1 if keep_without_l2 else 2)


def test_the_site_builds_and_no_link_in_it_leads_nowhere(tmp_path: Path) -> None:
    require(find_spec("material"), "mkdocs-material", "pip install 'cachebus[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "CACHEBUS_STALENESS_BOUND_S" in (tmp_path / "site/reference/settings.html").read_text()
    for path in PAGES:
        html = (tmp_path / "site" / path.relative_to(DOCS)).with_suffix(".html").read_text()
        assert html.count('<div class="highlight">') == len(blocks(path)), (
            f"{path} has a block that is not shown as one"
        )
