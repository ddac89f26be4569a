"""Every block of Python on every page runs, and prints what is said behind it."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import cachebus
from cachebus import CacheManager, InvalidationFailed, L2Unavailable
from cachebus.testing import Fleet
from tests.support.command import cachebus as command
from tests.support.command import ran
from tests.support.pages import DOCS, EXAMPLE_URL, PAGES, ROOT, blocks, file, run_page, statements
from tests.support.require import require

ELSEWHERE = {
    "loaders.md": "tests/integration/test_loaders.py",
    "outbox.md": "tests/integration/test_outbox_command.py",
    "kafka-commands.md": "tests/integration/test_kafka_command.py",
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
    "howto/flask.md": {"caching.py", "app.py"},
    "howto/django.md": {"asgi.py", "views.py", "writes.py"},
    "howto/testing.md": {"books.py", "test_books.py", "test_redis.py"},
}


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


def put(page: str, folder: Path, url: str) -> None:
    """Write the files that a page shows."""
    for title in FILES[page]:
        (folder / title).write_text(file(DOCS / page, title).replace(EXAMPLE_URL, url))


def in_a_process(code: str, folder: Path) -> str:
    """What such a program prints, with the files of that folder."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_application_of_flask(redis_url: str, tmp_path: Path) -> None:
    put("howto/flask.md", tmp_path, redis_url)
    program = (
        "from app import app\n"
        "client = app.test_client()\n"
        "print(client.get('/acme/agents/a7').json)\n"
        "print(list(client.put('/acme/agents/a7').json))\n"
        "print(client.get('/acme/agents/a7').json['name'])\n"
    )
    assert in_a_process(program, tmp_path) == "{'id': 'a7', 'name': 'Ada'}\n['receipt']\nAda\n"


async def test_the_files_of_django(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what they need of Django played: it is no dependency, not even of the tests."""
    put("howto/django.md", tmp_path, redis_url)
    calls: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        calls.append(await cachebus.CacheManager.get("agent", "a7", "acme"))

    played = {
        "django": {},
        "django.core": {},
        "django.core.asgi": {"get_asgi_application": lambda: inner},
        "django.http": {"JsonResponse": lambda value: value},
        "django.db": {"connection": None, "transaction": None},
    }
    for module, names in played.items():
        stand_in = types.ModuleType(module)
        vars(stand_in).update(names)
        monkeypatch.setitem(sys.modules, module, stand_in)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "project.settings")
    scopes = {title: _executed(tmp_path / title) for title in FILES["howto/django.md"]}
    application, view = scopes["asgi.py"]["application"], scopes["views.py"]["agent"]
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> Any:
        if sent:
            assert await view(None, "acme", "a7") == {"id": "a7", "name": "Ada"}
            await application({"type": "http"}, receive, send)
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await application({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert calls == [{"id": "a7", "name": "Ada"}]
    _renamed(scopes["writes.py"])


def _executed(path: Path) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": path.stem}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    return scope


def _renamed(scope: dict[str, Any]) -> None:
    """Run the transaction of the page over a connection that is as Django's."""
    said: list[tuple[str, Any]] = []

    class Connection:
        autocommit = False

        def cursor(self) -> Any:
            return types.SimpleNamespace(execute=lambda *given: said.append(given), close=lambda: None)

    class Atomic:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    scope["connection"], scope["transaction"] = Connection(), types.SimpleNamespace(atomic=Atomic)
    scope["rename"](types.SimpleNamespace(id="a7", name="", save=lambda: said.append(("saved", ()))), "Ada")
    assert [sql.split()[0] for sql, _ in said] == ["saved", "INSERT"]


def test_the_suite_of_a_service(tmp_path: Path) -> None:
    put("howto/testing.md", tmp_path, "redis://nobody.invalid:6379/0")
    (tmp_path / "test_redis.py").unlink()
    arguments = "['-q', '-p', 'cachebus.testing.plugin', '--strict-markers', '-o', 'asyncio_mode=auto', '.']"
    assert "3 passed" in in_a_process(f"import pytest\nraise SystemExit(pytest.main({arguments}))", tmp_path)


async def test_verify_in_a_suite_of_ones_own(redis_url: str) -> None:
    code = file(DOCS / "howto/testing.md", "test_redis.py")
    assert EXAMPLE_URL in code
    assert "seconds=20" in code
    scope: dict[str, Any] = {}
    exec(code.replace(EXAMPLE_URL, redis_url).replace("seconds=20", "seconds=2"), scope)
    await scope["test_our_redis_keeps_the_promises"]()


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
