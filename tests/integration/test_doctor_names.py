"""The doctor, where a server is reached by a name that has several addresses."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cachebus.tools.doctor.finding import Finding, Severity
from cachebus.tools.doctor.primaries import deployment_of
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import quick
from tests.support.require import require
from tests.support.way import Way

NAME = "cache.example"
HERE, THERE = "127.0.0.1", "127.0.0.2"


@pytest.fixture(autouse=True)
def name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with two addresses."""
    real = socket.getaddrinfo

    def asked(host: Any, *more: Any, **options: Any) -> Any:
        if host != NAME:
            return real(host, *more, **options)
        return [found for place in (HERE, THERE) for found in real(place, *more, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", asked)


@asynccontextmanager
async def leading(port: int, to: EmbeddedServer) -> AsyncIterator[None]:
    """At the other address a way to this server."""

    way = Way(to.port, host=THERE, port=port)
    try:
        await way.__aenter__()
    except OSError as error:
        require(False, f"a second loopback address ({error})", f"on macOS: sudo ifconfig lo0 alias {THERE}")
        raise
    try:
        yield
    finally:
        await way.__aexit__()


async def found(server: EmbeddedServer) -> list[Finding]:
    deployment = await deployment_of(quick(f"redis://{NAME}:{server.port}/0"))
    return [each for each in deployment.findings if each.check == "name"]


async def test_two_servers_behind_one_name_are_told(redis_server: EmbeddedServer, own_server: EmbeddedServer) -> None:
    async with leading(redis_server.port, own_server):
        (finding,) = await found(redis_server)
    assert finding.level is Severity.PROBLEM
    assert finding.says == f"{NAME} leads to 2 servers: {HERE}, {THERE}"
    assert "lead to one server alone" in finding.otherwise


async def test_one_server_at_two_addresses_is_no_finding(redis_server: EmbeddedServer) -> None:
    assert not await found(redis_server), "nobody answers at the other one"
    async with leading(redis_server.port, redis_server):
        assert not await found(redis_server)
