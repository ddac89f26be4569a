"""The files for people who have Docker: Compose reads them, their versions are tested ones, their Redis is sound."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cachebus.consumers.cdc.rules.rules import load_rules
from cachebus.tools.servers import debezium, kafka
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.redis import EmbeddedServer
from tests.conftest import connected
from tests.support.caches import until
from tests.support.command import cachebus, ran
from tests.support.doctor import bad, findings
from tests.support.require import require
from tests.support.servers import any_binary
from tests.support.worker_health import health

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
STACK = COMPOSE / "docker-compose.yml"
PROFILES = [(), ("workers",), ("debezium",), ("sentinel",), ("cluster",), ("workers", "debezium")]


@pytest.mark.parametrize("profiles", PROFILES, ids=lambda profiles: "+".join(profiles) or "none")
def test_compose_reads_every_profile(profiles: tuple[str, ...]) -> None:
    require(shutil.which("docker-compose"), "docker-compose (no engine)", "apt-get install docker-compose")
    chosen = [part for profile in profiles for part in ("--profile", profile)]
    done = subprocess.run(
        ["docker-compose", "-f", str(STACK), *chosen, "config"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "is not set" not in done.stderr


def test_every_server_has_a_health_check_and_a_version() -> None:
    text = STACK.read_text()
    for image in re.findall(r"image: (\S+)", text):
        tag = image.removesuffix("}").rpartition(":")[2]
        assert re.fullmatch(r"[0-9][0-9.]*", tag), image
    assert "latest" not in text


def test_the_versions_are_those_that_the_tests_run() -> None:
    dockerfile = (COMPOSE / "debezium" / "Dockerfile").read_text()
    assert f"apache/kafka:{kafka.VERSION}\n" in STACK.read_text()
    assert f"apache/kafka:{kafka.VERSION}\n" in dockerfile
    assert f"<version>{debezium.VERSION}</version>" in (COMPOSE / "debezium" / "pom.xml").read_text()


def test_files_that_are_mounted_or_copied_exist() -> None:
    for source in re.findall(r"\./([\w.\-]+)[:\]]", STACK.read_text()):
        assert (COMPOSE / source).exists(), source
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE):
        assert all((ROOT / source).exists() for source in line.split()), line
    for line in re.findall(
        r"^COPY (?!--from)(.+) \S+$", (COMPOSE / "debezium" / "Dockerfile").read_text(), re.MULTILINE
    ):
        assert all((COMPOSE / "debezium" / source).exists() for source in line.split()), line


def test_its_rules_are_right() -> None:
    assert load_rules(COMPOSE / "rules.toml").rule


@pytest.mark.parametrize("name", ["worker-outbox", "worker-cdc"])
async def test_a_worker_of_a_fresh_database_is_ready(database: str, redis_url: str, tmp_path: Path, name: str) -> None:
    """As it is written: after what it depends on, and what PostgreSQL runs when it makes its database."""
    services = yaml.safe_load(STACK.read_text())["services"]
    async with connected(database) as connection:
        for script in sorted((COMPOSE / "postgres").glob("*.sql")):
            await connection.execute(script.read_text())
    port = free_port()
    env = {
        "CACHEBUS_DATABASE_URL": database,
        "CACHEBUS_URL": redis_url,
        "CACHEBUS_HEALTH_PORT": str(port),
        "CACHEBUS_CDC_SLOT": f"compose_{port}",  # slots are the whole server's
    }
    for needed, how in services[name]["depends_on"].items():
        if how["condition"] == "service_completed_successfully":
            status, _, errors = ran("worker", *services[needed]["command"], folder=tmp_path, env=env)
            assert status == 0, errors
    command = [part.replace("/etc/cachebus", str(COMPOSE)) for part in services[name]["command"]]
    with cachebus("worker", *command, folder=tmp_path, env=env):
        await until(lambda: health(port)[0] == 200)


async def test_the_doctor_has_nothing_against_its_redis() -> None:
    """But for the replicas that one server alone does not have."""
    with EmbeddedServer(any_binary(), extra=("--include", str(COMPOSE / "redis" / "redis.conf"))) as server:
        assert set(bad(await findings(server.url))) <= {"replication"}
