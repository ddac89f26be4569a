"""TLS: the embedded servers have none, so a small proxy in front of one has it; and Debian's own server."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cachebus import Cache
from cachebus.base.clock import monotonic
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.resp import Address, Connection, Subscriber, parse_address
from cachebus.tools.servers.redis import EmbeddedServer, free_port
from tests.support.caches import quick
from tests.support.require import require
from tests.support.servers import KINDS, binary_of
from tests.support.slow_link import SlowLink


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed one for the name localhost alone."""

    public: Path
    key: Path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    require(shutil.which("openssl"), "openssl", "apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run(
        ["openssl", *request.split(), "-keyout", made.key, "-out", made.public], check=True, capture_output=True
    )
    return made


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    except ConnectionError:
        pass  # one end left; the other is told by closing it
    finally:
        target.close()


@asynccontextmanager
async def tls_proxy(server: EmbeddedServer, certificate: Certificate) -> AsyncIterator[int]:
    """Gives the port at which the server speaks TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.public, certificate.key)
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", server.port)
        tasks.append(asyncio.create_task(_pump(reader, to_server)))
        tasks.append(asyncio.create_task(_pump(from_server, writer)))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def opened(address: Address, connect_timeout_s: float = 10.0) -> Connection:
    return await Connection.open(address, timeout_s=10.0, connect_timeout_s=connect_timeout_s, clock=monotonic)


async def test_reads_writes_and_messages(redis_server: EmbeddedServer, certificate: Certificate) -> None:
    async with tls_proxy(redis_server, certificate) as port:
        address = parse_address(f"rediss://localhost:{port}", ca_certs=str(certificate.public))
        connection = await opened(address)
        big = b"x" * 5_000_000
        await connection.call("SET", "big", big)
        assert await asyncio.gather(connection.get("big"), connection.get("none")) == [big, None]
        heard: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()
        ears = await Subscriber.open(
            address,
            timeout_s=10.0,
            connect_timeout_s=10.0,
            clock=monotonic,
            on_push=lambda *message: heard.set_result(message),
        )
        await ears.subscribe("c")
        await connection.call("PUBLISH", "c", "m")
        assert await asyncio.wait_for(heard, 10.0) == (b"c", b"m")
        ears.close()
        connection.close()


async def test_big_values_over_a_slow_link(redis_server: EmbeddedServer, certificate: Certificate) -> None:
    """Bytes that move keep the connection, though TLS hides what is still on this side."""
    big, timeout_s = os.urandom(2_000_000), 0.2
    rate = len(big) / (4 * timeout_s)
    async with tls_proxy(redis_server, certificate) as port, SlowLink(port, up=rate, down=rate) as link:
        address = parse_address(f"rediss://localhost:{link.port}", ca_certs=str(certificate.public))
        connection = await Connection.open(address, timeout_s=timeout_s, connect_timeout_s=5.0, clock=monotonic)
        assert await asyncio.gather(connection.call("SET", "big", big), connection.call("PING")) == [b"OK", b"PONG"]
        assert await asyncio.gather(connection.get("big"), connection.call("PING")) == [big, b"PONG"]
        connection.close()


async def test_who_the_server_is_gets_checked(redis_server: EmbeddedServer, certificate: Certificate) -> None:
    known = str(certificate.public)
    async with tls_proxy(redis_server, certificate) as port:
        with pytest.raises(L2Unavailable, match=rf"^cannot connect to localhost:{port}: .*certificate verify failed"):
            await opened(parse_address(f"rediss://localhost:{port}"))
        with pytest.raises(L2Unavailable, match=rf"^cannot connect to 127.0.0.1:{port}: .*(mismatch|not valid)"):
            await opened(parse_address(f"rediss://127.0.0.1:{port}", ca_certs=known))
        for address in (
            parse_address(f"rediss://127.0.0.1:{port}", ca_certs=known, check_hostname=False),
            parse_address(f"rediss://localhost:{port}?ssl_ca_certs={known}"),
            parse_address(f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none"),
        ):
            connection = await opened(address)
            assert await connection.call("PING") == b"PONG"
            connection.close()


async def test_tls_to_a_server_without(redis_server: EmbeddedServer) -> None:
    """Such a server waits for the rest of what it takes for a line."""
    told = r"^cannot connect to .*; if this server speaks no TLS, let the URL begin with redis://$"
    with pytest.raises(L2Unavailable, match=told):
        await opened(parse_address(f"rediss://:hunter2@127.0.0.1:{redis_server.port}?ssl_cert_reqs=none"), 0.3)


async def test_a_cache_that_opens_with_tls_at_a_server_without_says_so(redis_server: EmbeddedServer) -> None:
    """Nothing is ever answered: the limit of the connection must speak, not that of the whole start."""
    url = f"rediss://:hunter2@127.0.0.1:{redis_server.port}?ssl_cert_reqs=none"
    for degraded in (False, True):
        with pytest.raises(L2Unavailable, match="if this server speaks no TLS, let the URL begin with redis://"):
            async with Cache(quick(url, connect_timeout_s=0.3, start_degraded=degraded)) as cache:
                await cache.get("config", "x", "acme")


async def test_tls_to_something_that_answers_in_plain_words() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"-ERR what is this?\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(L2Unavailable, match=r"WRONG_VERSION_NUMBER.*; if this server speaks no TLS, let"):
            await opened(parse_address(f"rediss://127.0.0.1:{port}"))


async def test_no_tls_to_a_server_with(redis_server: EmbeddedServer, certificate: Certificate) -> None:
    async with tls_proxy(redis_server, certificate) as port:
        told = rf"127.0.0.1:{port}.*; if this server speaks TLS, let the URL begin with rediss://$"
        with pytest.raises(L2Unavailable, match=told):
            await opened(parse_address(f"redis://127.0.0.1:{port}"), 5.0)


async def test_a_server_with_tls_of_its_own(certificate: Certificate) -> None:
    port = free_port()
    options = f"--tls-port {port} --tls-cert-file {certificate.public} --tls-key-file {certificate.key}"
    server = EmbeddedServer(
        binary_of(KINDS[-1]), password="hunter2", extra=(*options.split(), "--tls-auth-clients", "no")
    )
    try:
        server.start()
    except ConfigError as error:
        require(False, f"a server built with TLS ({error})", "apt-get install redis-server")
    try:
        address = parse_address(f"rediss://:hunter2@localhost:{port}/2", ca_certs=str(certificate.public))
        connection = await opened(address)
        big = b"x" * 5_000_000
        await connection.call("SET", "big", big)
        assert await connection.get("big") == big
        connection.close()
        with pytest.raises(L2Unavailable, match="if this server speaks TLS, let the URL begin with rediss://"):
            await opened(parse_address(f"redis://:hunter2@localhost:{port}"))
        # ... and so does a cache that opens there, or that has opened without it.
        wrong = f"redis://:hunter2@localhost:{port}"
        with pytest.raises(
            L2Unavailable, match="if this server speaks TLS, let the URL begin with rediss://"
        ) as caught:
            await Cache(quick(wrong)).__aenter__()
        assert "hunter2" not in str(caught.value)
        async with Cache(quick(wrong, start_degraded=True)) as cache:
            for call in (cache.get("config", "x", "acme"), cache.set("config", "x", 1, "acme")):
                with pytest.raises(L2Unavailable, match=r"not connected .*if this server speaks TLS"):
                    await call
    finally:
        server.stop()
