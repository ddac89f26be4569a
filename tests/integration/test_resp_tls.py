"""TLS: the embedded servers have none, so a small proxy in front of one has it; and Debian's own server."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cachebus import Cache, Settings
from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.resp import Address, Connection, Login, Subscriber, handshake, parse_address
from cachebus.tools.doctor import replicas
from cachebus.tools.doctor.certificates import end_of
from cachebus.tools.doctor.examine import examined, out_of_reach
from cachebus.tools.doctor.facts import Facts, Server, Timing
from cachebus.tools.doctor.finding import Severity
from cachebus.tools.doctor.primaries import Deployment, deployment_of
from cachebus.tools.servers.redis import EmbeddedServer, free_port
from tests.support.caches import quick
from tests.support.logs import told
from tests.support.require import require
from tests.support.servers import KINDS, binary_of
from tests.support.slow_link import SlowLink
from tests.support.way import Way


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


@pytest.fixture(autouse=True)
def _nobody_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A free port may be one at which an earlier test was let in without TLS: then there is no hint that it is TLS."""
    monkeypatch.setattr(handshake, "_let_in", set())


@asynccontextmanager
async def tls_ports(server: EmbeddedServer, *contexts: ssl.SSLContext) -> AsyncIterator[list[int]]:
    """Gives the ports at which the server speaks TLS by these contexts."""
    async with AsyncExitStack() as stack:
        ways = [await stack.enter_async_context(Way(server.port, tls=context)) for context in contexts]
        yield [way.port for way in ways]


@asynccontextmanager
async def tls_proxy(server: EmbeddedServer, certificate: Certificate) -> AsyncIterator[int]:
    """Gives the port at which the server speaks TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.public, certificate.key)
    async with tls_ports(server, context) as (port,):
        yield port


async def opened(address: Address, connect_timeout_s: float = 10.0) -> Connection:
    return await Connection.open(address, Patience(10.0, connect_timeout_s, monotonic))


async def test_reads_writes_and_messages(redis_server: EmbeddedServer, certificate: Certificate) -> None:
    async with tls_proxy(redis_server, certificate) as port:
        address = parse_address(f"rediss://localhost:{port}", Login(ca_certs=str(certificate.public)))
        connection = await opened(address)
        big = b"x" * 5_000_000
        await connection.call("SET", "big", big)
        assert await asyncio.gather(connection.get("big"), connection.get("none")) == [big, None]
        heard: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()
        ears = await Subscriber.open(
            address, Patience(10.0, 10.0, monotonic), on_push=lambda *message: heard.set_result(message)
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
        address = parse_address(f"rediss://localhost:{link.port}", Login(ca_certs=str(certificate.public)))
        connection = await Connection.open(address, Patience(timeout_s, 5.0, monotonic))
        assert await asyncio.gather(connection.call("SET", "big", big), connection.call("PING")) == [b"OK", b"PONG"]
        assert await asyncio.gather(connection.get("big"), connection.call("PING")) == [big, b"PONG"]
        connection.close()


async def test_who_the_server_is_gets_checked(redis_server: EmbeddedServer, certificate: Certificate) -> None:
    known = str(certificate.public)
    async with tls_proxy(redis_server, certificate) as port:
        with pytest.raises(L2Unavailable, match=rf"^cannot connect to localhost:{port}: .*certificate verify failed"):
            await opened(parse_address(f"rediss://localhost:{port}"))
        with pytest.raises(L2Unavailable, match=rf"^cannot connect to 127.0.0.1:{port}: .*(mismatch|not valid)"):
            await opened(parse_address(f"rediss://127.0.0.1:{port}", Login(ca_certs=known)))
        for address in (
            parse_address(f"rediss://127.0.0.1:{port}", Login(ca_certs=known, check_hostname=False)),
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
        address = parse_address(f"rediss://:hunter2@localhost:{port}/2", Login(ca_certs=str(certificate.public)))
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


@pytest.mark.parametrize(
    ("host", "options", "helps"),
    [
        ("localhost", "", "ssl_ca_certs"),
        ("127.0.0.1", "?ssl_ca_certs={known}", "ssl_ca_certs"),
        ("localhost", "?ssl_ca_certs={known}", "ssl_certfile"),
    ],
    ids=["unknown authority", "another name", "no certificate of ours"],
)
async def test_the_doctor_tells_what_certificates_have_to_do_with_it(
    certificate: Certificate, host: str, options: str, helps: str
) -> None:
    """At a primary, and at a replica, of which else a failover would tell."""
    port = free_port()
    known, extra = certificate.public, f"--tls-port {port} --tls-cert-file {certificate.public}".split()
    extra += f"--tls-key-file {certificate.key} --tls-ca-cert-file {known} --tls-auth-clients".split()
    server = EmbeddedServer(binary_of(KINDS[-1]), extra=(*extra, "yes" if helps == "ssl_certfile" else "no"))
    try:
        server.start()
    except ConfigError as error:
        require(False, f"a server built with TLS ({error})", "apt-get install redis-server")
    try:
        settings = Settings(url=f"rediss://{host}:{port}/0{options.format(known=known)}")
        (primary,) = deployment = (await deployment_of(settings)).primaries
        with pytest.raises(L2Unavailable) as caught:
            await examined(settings, primary)
        (finding,) = out_of_reach(primary, caught.value, Deployment("one", deployment))[1]
        assert "certificate" in finding.means
        assert helps in finding.otherwise
        asked = await replicas.looked_at([primary.address], settings)
        leading = Server(primary.address, {"role": "master"}, "", {}, "", "default")
        (lost,) = replicas.promoted(Facts(settings, leading, Timing([], []), replicas=asked))
        assert lost.level is Severity.PROBLEM
        assert helps in lost.otherwise
    finally:
        server.stop()


def ending_in(days: int) -> datetime:
    """An hour more, lest it be a day less by the time it is looked at."""
    return datetime.now(UTC) + timedelta(days=days, hours=1)


def certified(folder: Path, end: datetime) -> Certificate:
    """One that ends then: by an authority of its own, as only that gives other dates."""
    folder.mkdir()
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    (folder / "index").write_text("")
    (folder / "conf").write_text(
        f"[ca]\ndefault_ca=own\n[own]\ndatabase={folder}/index\nnew_certs_dir={folder}\nrand_serial=yes\n"
        "default_md=sha256\npolicy=any\nx509_extensions=names\n[any]\ncommonName=supplied\n"
        "[names]\nsubjectAltName=DNS:localhost\n"
    )
    key = f"req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {made.key} -out {folder}/request"
    sign = (
        f"ca -batch -notext -selfsign -config {folder}/conf -keyfile {made.key} -in {folder}/request -out {made.public}"
    )
    dates = f"-startdate 20200101000000Z -enddate {end:%Y%m%d%H%M%S}Z"
    for command in (key, f"{sign} {dates}"):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True)
    return made


@pytest.mark.parametrize(("days", "level"), [(400, Severity.OK), (12, Severity.ADVICE), (-3, Severity.PROBLEM)])
async def test_the_doctor_tells_when_certificates_end_and_whose_they_are(
    redis_server: EmbeddedServer, tmp_path: Path, days: int, level: Severity
) -> None:
    end = ending_in(days)
    shown, own = certified(tmp_path / "server", end), certified(tmp_path / "client", ending_in(500))
    async with tls_proxy(redis_server, shown) as port:
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={shown.public}&ssl_certfile={own.public}&ssl_keyfile={own.key}"
        (told,) = [each for each in (await deployment_of(Settings(url=url))).findings if each.check == "certificates"]
        assert told.level is level
        assert f"of localhost:{port}" in told.says or level is Severity.OK
        assert f"{end:%Y-%m-%d}" in told.says
        cluster = f"rediss+cluster://localhost:{port}?ssl_ca_certs={shown.public}"
        with pytest.raises(L2Unavailable) as caught:
            await deployment_of(Settings(url=cluster))
        assert (f"ended on {end:%Y-%m-%d}" in str(caught.value)) == (level is Severity.PROBLEM)


async def test_the_doctor_tells_of_a_client_s_certificate_that_has_ended(
    redis_server: EmbeddedServer, certificate: Certificate, tmp_path: Path
) -> None:
    own = certified(tmp_path / "client", ending_in(-3))
    async with tls_proxy(redis_server, certificate) as port:
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={certificate.public}&ssl_certfile={own.public}&ssl_keyfile={own.key}"
        found = [each for each in (await deployment_of(Settings(url=url))).findings if each.check == "certificates"]
    over, soon = sorted(found, key=lambda each: each.level is Severity.ADVICE)
    assert over.level is Severity.PROBLEM and f"in {own.public} ended on" in over.says
    assert "localhost" in soon.says and "in 1 days" in soon.says


async def test_authorities_that_are_changed_are_no_problem_while_one_holds(
    redis_server: EmbeddedServer, certificate: Certificate, tmp_path: Path
) -> None:
    """A node starts with such a file, and works."""
    bundle = tmp_path / "bundle.pem"
    over = certified(tmp_path / "old", ending_in(-3)).public.read_text()
    async with tls_proxy(redis_server, certificate) as port:
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={bundle}"
        for pems, levels in (
            ((over, certificate.public.read_text()), {Severity.ADVICE}),
            ((over, over), {Severity.PROBLEM, Severity.ADVICE}),
        ):
            bundle.write_text("".join(pems))
            settings = Settings(url=f"rediss://localhost:{port}/0?ssl_cert_reqs=none", ssl_ca_certs=str(bundle))
            settings = Settings(url=url) if Severity.PROBLEM not in levels else settings
            found = [each for each in (await deployment_of(settings)).findings if each.check == "certificates"]
            assert {each.level for each in found} == levels
            assert any(f"in {bundle} one ended on" in each.says for each in found) == (Severity.PROBLEM not in levels)


async def test_servers_that_are_not_verified_are_told(redis_server: EmbeddedServer, certificate: Certificate) -> None:
    async with tls_proxy(redis_server, certificate) as port:
        known = f"rediss://localhost:{port}/0?ssl_ca_certs={certificate.public}"
        for url, lax in (
            (f"rediss://localhost:{port}/0?ssl_cert_reqs=none", "ssl_cert_reqs=none"),
            (f"{known}&ssl_check_hostname=false", "ssl_check_hostname=false"),
            (known, ""),
        ):
            found = [each for each in (await deployment_of(Settings(url=url))).findings if "not verified" in each.says]
            assert [each.level for each in found] == [Severity.ADVICE] * bool(lax)
            assert all(lax in each.says for each in found)


@pytest.mark.parametrize("seed", range(50))
def test_what_is_no_certificate_is_none(certificate: Certificate, seed: int) -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert(certificate.public.read_text()))
    dice = random.Random(seed)
    for _ in range(3):
        der[dice.randrange(60)] = dice.randrange(256)
    with suppress(ValueError):
        end_of(bytes(der))
    with pytest.raises(ValueError, match=r"\w"):
        end_of(bytes(der[: dice.randrange(60)]))


def signed(folder: Path, name: str) -> tuple[Certificate, Certificate]:
    """An authority, and a certificate of localhost that it has signed."""
    authority = Certificate(folder / f"{name}-ca.pem", folder / f"{name}-ca.key")
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    more = f"-CAcreateserial -days 2 -extfile {folder}/names"
    for command in (
        f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {authority.key} -out {authority.public}",
        f"req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {made.key} -out {folder}/request",
        f"x509 -req -in {folder}/request -CA {authority.public} -CAkey {authority.key} {more} -out {made.public}",
    ):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True)
    return authority, made


async def test_files_that_are_replaced_are_read_by_the_next_connection(
    redis_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Certificate, key and authorities: those of an authority that is not trusted any more lead nowhere."""
    require(shutil.which("openssl"), "openssl", "apt-get install openssl")
    used = tmp_path / "used"
    used.mkdir()

    def use(authority: Certificate, own: Certificate) -> None:
        for name, file in (("ca", authority.public), ("cert", own.public), ("key", own.key)):
            shutil.copy(file, used / f"{name}.new")
            (used / f"{name}.new").replace(used / f"{name}.pem")

    def serving(authority: Certificate, own: Certificate) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.public))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(own.public, own.key)
        return context

    old, new = signed(tmp_path, "old"), signed(tmp_path, "new")
    use(*old)
    url = f"ssl_ca_certs={used}/ca.pem&ssl_certfile={used}/cert.pem&ssl_keyfile={used}/key.pem"
    async with tls_ports(redis_server, serving(*old), serving(*new)) as (at_old, at_new):
        address = parse_address(f"rediss://localhost:{at_old}?{url}")
        (await opened(address)).close()
        elsewhere = replace(address, port=at_new)
        with pytest.raises(L2Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await opened(elsewhere)
        use(*new)
        (await opened(elsewhere)).close()
        with pytest.raises(L2Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await opened(address)
        with told("WARNING") as lines:
            shutil.copy(old[1].public, used / "cert.pem")  # its key is not there yet
            for _ in range(2):
                (await opened(elsewhere)).close()
            (used / "cert.pem").unlink()
            (await opened(elsewhere)).close()
            cannot, key, gone = (
                "the new TLS certificates cannot be used, the old ones are: ",
                used / "key.pem",
                "cert.pem",
            )
            assert len(lines) == 2
            assert lines[0].startswith(f"{cannot}{key}, as the key of {used / gone}: ")
            assert lines[1].startswith(f"{cannot}{used / gone}: No such file")
            async with Cache("memory://") as cache:
                (said,) = cache.health().degraded
                assert said.startswith(f"TLS: {used / gone}: No such file or directory: connections have what it held")
                shutil.copy(old[1].public, used / "cert.pem")
                assert cache.health().degraded == (), "they are others by now"
        with told() as lines:
            use(*old)
            (await opened(address)).close()
        assert lines == ["the new TLS certificates are used"]


@pytest.mark.parametrize(
    ("junk", "culprit"), [("ca", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem, as the key of {cert}")]
)
def test_the_file_that_can_not_be_used_is_named(
    certificate: Certificate, tmp_path: Path, junk: str, culprit: str
) -> None:
    for name, file in (("ca", certificate.public), ("cert", certificate.public), ("key", certificate.key)):
        shutil.copy(file, tmp_path / f"{name}.pem")
    (tmp_path / f"{junk}.pem").write_text("junk")
    url = f"ssl_ca_certs={tmp_path}/ca.pem&ssl_certfile={tmp_path}/cert.pem&ssl_keyfile={tmp_path}/key.pem"
    with pytest.raises(ConfigError) as raised:
        parse_address(f"rediss://localhost?{url}")
    named = f"{tmp_path}/{culprit.format(cert=tmp_path / 'cert.pem')}"
    assert f"cannot load the TLS certificates: {named}: " in str(raised.value)


def test_a_key_that_asks_for_its_password_is_refused(certificate: Certificate, tmp_path: Path) -> None:
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "rsa", "-aes256", "-passout", "pass:x", "-in", certificate.key, "-out", locked],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ConfigError, match="cannot load the TLS certificates"):
        parse_address(f"rediss://localhost?ssl_certfile={certificate.public}&ssl_keyfile={locked}")
