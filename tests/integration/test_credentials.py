"""Credentials that a provider gives: asked at each login, told to connections that stay, and never to anybody else."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from secrets import token_hex
from traceback import format_exception
from types import SimpleNamespace
from typing import Any

import pytest
from redis.credentials import CredentialProvider, StreamingCredentialProvider, UsernamePasswordCredentialProvider

from cachebus import Cache
from cachebus.base.providers import HANGING_MAX, ProviderFailed, trouble_of
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.producers import DirectProducer
from cachebus.resp.credentials import ProvidedCredentials
from cachebus.resp.link import Link
from cachebus.tools.doctor.primaries import deployment_of
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.tools.servers.redis_group import ask, facts_of
from tests.support.caches import nodes, quick, until
from tests.support.command import ran
from tests.support.credentials import USER, Awaited, Rotating, Watched, clients, let_in, rotated
from tests.support.logs import told
from tests.support.pages import DOCS, run_page
from tests.support.servers import any_binary

FIRST = "First-s3cret"
SECRET = "hunter2-Sigma"


@pytest.fixture
async def server(own_server: EmbeddedServer) -> EmbeddedServer:
    """One that lets the user in."""
    await let_in([own_server], FIRST)
    return own_server


class Given(CredentialProvider):
    """A provider as redis-py's users write them, which does what the test says."""

    def __init__(self, gives: Callable[[], Any]) -> None:
        self.gives = gives

    def get_credentials(self) -> Any:
        """What the test says."""
        return self.gives()


async def auths(server: EmbeddedServer) -> int:
    """How many have logged in so far."""
    said = (await facts_of(server, "INFO", "commandstats")).get("cmdstat_auth", "calls=0,")
    return int(said.partition("=")[2].partition(",")[0])


@pytest.mark.parametrize("kind", [Rotating, Awaited])
async def test_passwords_change_under_a_running_fleet(server: EmbeddedServer, kind: type[Rotating]) -> None:
    provider = kind(FIRST)
    async with nodes(server.url, credential_provider=provider, namespace="fleet") as caches:
        watched = Watched(caches, ["acme"])
        async with watched.at_work():
            assert not watched.failed
            for number in range(4):
                ended_s = await rotated([server], provider, f"{SECRET}-{number}")
                await watched.goes_on()
                assert [at for at in watched.failed if at[0] > ended_s + 0.5] == []

                async def all_back() -> bool:
                    return [each["user"] for each in await clients(server, "fleet")] == [USER] * 4

                await until(all_back)
    assert not watched.stale
    assert SECRET not in str(watched.failed)


async def test_the_page_runs(server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redis-password").write_text(f"{FIRST}\n")
    monkeypatch.chdir(tmp_path)
    await ask(server, "ACL", "SETUSER", "default", "resetpass", ">another")  # so nobody comes in without it
    assert (await run_page(DOCS / "howto/credentials.md", server.url))["with_tokens"].kafka_ssl


async def test_producers_and_the_doctor_ask_too(server: EmbeddedServer) -> None:
    provider = Rotating(FIRST)
    settings = quick(server.url, credential_provider=provider)
    async with Cache(settings) as cache, DirectProducer(settings) as producer:
        await cache.set("config", "x", 1, tenant_id="acme")
        await rotated([server], provider, SECRET)

        async def invalidated() -> bool:
            return (await producer.invalidate("config", "x", tenant_id="acme")).status == "applied"

        await until(invalidated)
        await until(cache.ready)
        deployment = await deployment_of(settings)
        assert [primary.address.credentials is not None for primary in deployment.primaries] == [True]


async def test_commands_take_a_provider_from_the_environment(server: EmbeddedServer, tmp_path: Path) -> None:
    module = tmp_path / "own_login.py"
    module.write_text(
        f"class Login:\n    def get_credentials(self):\n        return {USER!r}, {FIRST!r}\n\n\nmade = Login()\n"
    )
    (folder := tmp_path / "tmp").mkdir()
    async with Cache(quick(server.url, credential_provider=Rotating(FIRST))) as cache:
        await ask(server, "ACL", "SETUSER", "default", "resetpass", ">another")  # so nobody comes in without it
        for name in ("own_login:made", "own_login:Login"):
            env = {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}", "CACHEBUS_CREDENTIAL_PROVIDER": name}
            status, out, errors = await asyncio.to_thread(ran, "nodes", "--url", server.url, folder=folder, env=env)
            assert (status, errors) == (0, "")
            assert cache.stats().node.partition(":")[0] in out
        env["CACHEBUS_CREDENTIAL_PROVIDER"] = "own_login:nothing"
        status, out, errors = await asyncio.to_thread(ran, "nodes", "--url", server.url, folder=folder, env=env)
        assert status and "CACHEBUS_CREDENTIAL_PROVIDER" in errors and "AttributeError" in errors


async def test_redis_pys_own_provider_is_asked(server: EmbeddedServer) -> None:
    provider = UsernamePasswordCredentialProvider(USER, FIRST)
    async with Cache(quick(server.url, credential_provider=provider, namespace="own")):
        assert {each["user"] for each in await clients(server, "own")} == {USER}


@pytest.mark.parametrize("method", ["get_credentials", "get_credentials_async"])
async def test_what_only_looks_like_a_provider_is_one(server: EmbeddedServer, method: str) -> None:
    """A method that an object was given, and one that returns what is to be awaited."""
    found: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()
    found.set_result((USER, FIRST))
    gives = {"get_credentials": lambda: (USER, FIRST), "get_credentials_async": lambda: found}[method]
    async with Cache(quick(server.url, credential_provider=SimpleNamespace(**{method: gives}), namespace="own")):
        assert {each["user"] for each in await clients(server, "own")} == {USER}


async def test_a_provider_that_blocks_holds_nobody_up(server: EmbeddedServer) -> None:
    """It runs in a thread of its own: redis-py's own `get_credentials_async` would call it in the loop."""
    threads = set[int]()

    def gives() -> tuple[str, str]:
        threads.add(threading.get_ident())
        return USER, FIRST

    async with Cache(quick(server.url, credential_provider=Given(gives))) as cache:
        assert cache.ready()
    assert threads and threading.get_ident() not in threads


def _raises() -> Any:
    raise PermissionError(f"no way with {SECRET}")


WRONG: list[tuple[str, Callable[[], Any], str]] = [
    ("raises", _raises, "the provider Given raised PermissionError"),
    ("none", lambda: None, "NoneType, and not (password,) or (user, password)"),
    ("text", lambda: SECRET, "str, and not (password,)"),
    ("three", lambda: (USER, SECRET, SECRET), "tuple, and not (password,)"),
    ("bytes", lambda: (USER, SECRET.encode()), "no text"),
    ("empty", lambda: (USER, ""), "an empty password"),
    ("surrogate", lambda: (USER, f"{SECRET}\udcff"), "no Unicode text"),
    ("user", lambda: (f"{SECRET}\udcff", FIRST), "no Unicode text"),
    ("exit", lambda: sys.exit(SECRET), "the provider Given raised SystemExit"),
]


@pytest.mark.parametrize(("gives", "why"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
async def test_what_is_wrong_is_told_once_and_by_its_class(
    server: EmbeddedServer, gives: Callable[[], Any], why: str
) -> None:
    provider = Given(gives)
    with told("DEBUG") as lines:
        with pytest.raises(L2Unavailable) as raised:
            async with Cache(quick(server.url, credential_provider=provider)):
                pass
        assert why in str(raised.value) and f"127.0.0.1:{server.port}" in str(raised.value)
        settings = quick(server.url, credential_provider=provider, start_degraded=True)
        async with Cache(settings) as cache:
            await until(lambda: len([line for line in lines if "it is asked again" in line]) == 1)
            provider.gives = lambda: (USER, FIRST)
            await until(cache.ready)
        assert len([line for line in lines if "it is asked again" in line]) == 1
        assert SECRET not in str(lines) and SECRET not in "".join(format_exception(raised.value))


async def test_one_that_awaits_and_exits_ends_no_process(server: EmbeddedServer) -> None:
    class Exits(Awaited):
        async def get_credentials_async(self) -> tuple[str, str]:
            await super().get_credentials_async()
            sys.exit(SECRET)

    with pytest.raises(L2Unavailable, match="the provider Exits raised SystemExit") as raised:
        async with Cache(quick(server.url, credential_provider=Exits(FIRST))):
            pass
    assert SECRET not in "".join(format_exception(raised.value))


@pytest.mark.parametrize("where", ["url", "option", "password", "username", "sentinel"])
async def test_a_login_that_has_no_bytes_is_refused_unquoted(where: str) -> None:
    odd = f"{SECRET}\udcff"
    more = {where: odd} if where in ("password", "username") else {}
    url = {
        "url": f"redis://:{odd}@127.0.0.1:1/0",
        "option": f"redis+cluster://127.0.0.1:1?password={odd}",
        "sentinel": f"redis+sentinel://127.0.0.1:1/main/0?sentinel_password={odd}",
    }.get(where, "redis://127.0.0.1:1/0")
    with pytest.raises(ConfigError, match="lone surrogate") as raised:
        async with Cache(quick(url, **more)):
            pass
    text = "".join(format_exception(raised.value))
    assert SECRET not in text and "udcff" not in text and "position" not in text


async def test_logins_that_can_not_be_renewed_are_in_health_and_told_again(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connections that are there go on, and end all at once when the server ends what they came in with."""
    monkeypatch.setattr("cachebus.base.providers.TELL_EVERY_S", 0.0)
    monkeypatch.setattr("cachebus.resp.reauth.AGAIN_S", 0.1)
    provider = Given(lambda: (USER, FIRST))
    with told("WARNING", of="the provider Given raised PermissionError; it is asked again") as lines:
        async with Cache(quick(server.url, credential_provider=provider, reauth_interval_s=0.1)) as cache:
            assert cache.health().degraded == ()
            provider.gives = _raises
            await until(lambda: cache.health().degraded)
            [said] = cache.health().degraded
            assert said.startswith("logins are not renewed for 0 s: the provider Given raised PermissionError: ")
            assert cache.ready()
            await until(lambda: len(lines) >= 3)
            provider.gives = lambda: (USER, FIRST)
            await until(lambda: not cache.health().degraded)
    assert SECRET not in str(lines) + said


async def test_one_that_hangs_is_given_up_and_asked_again(server: EmbeddedServer) -> None:
    go_on = threading.Event()
    asked = list[int]()

    def hangs() -> tuple[str, str]:
        asked.append(1)
        go_on.wait()
        return USER, FIRST

    provider = Given(hangs)
    more = {"credential_provider": provider, "connect_timeout_s": 0.2}
    try:
        with pytest.raises(L2Unavailable, match=r"the provider Given gave nothing in 0\.1 s"):
            async with Cache(quick(server.url, **more)):
                pass
        with told("WARNING") as lines:
            async with Cache(quick(server.url, start_degraded=True, **more)) as cache:
                await until(lambda: len(asked) == HANGING_MAX)
                await until(lambda: any(f"hangs in {HANGING_MAX} calls" in line for line in lines))
                assert len(asked) == HANGING_MAX
                provider.gives = lambda: (USER, FIRST)
                go_on.set()
                await until(cache.ready)
    finally:
        go_on.set()


async def test_one_that_awaits_for_ever_is_given_up(server: EmbeddedServer) -> None:
    class Hangs(Awaited):
        async def get_credentials_async(self) -> tuple[str, str]:
            await asyncio.Event().wait()
            return await super().get_credentials_async()

    with pytest.raises(L2Unavailable, match=r"the provider Hangs gave nothing in 0\.1 s"):
        async with Cache(quick(server.url, credential_provider=Hangs(FIRST), connect_timeout_s=0.2)):
            pass


async def test_a_secret_that_is_refused_is_in_no_text(server: EmbeddedServer) -> None:
    settings = quick(server.url, credential_provider=Rotating(SECRET))
    with told("DEBUG") as lines, pytest.raises(L2Unavailable, match="WRONGPASS") as raised:
        async with Cache(settings):
            pass
    assert SECRET not in str(lines) and SECRET not in "".join(format_exception(raised.value))
    assert "Rotating" not in repr(settings)


async def test_connections_that_stay_log_in_anew(server_kinds: EmbeddedServer) -> None:
    """Each of them: what listens speaks RESP3 for that. None is lost, and no call fails."""
    user = f"stays-{token_hex(4)}"
    await let_in([server_kinds], FIRST, user)
    try:
        provider = Rotating(FIRST, user)
        settings = {"credential_provider": provider, "reauth_interval_s": 0.3, "namespace": user}
        async with nodes(server_kinds.url, **settings) as caches:
            watched = Watched(caches, ["acme"])
            async with watched.at_work():
                before = {each["id"] for each in await clients(server_kinds, user)}
                logins = await auths(server_kinds)
                await let_in([server_kinds], SECRET, user)
                provider.secret = SECRET

                async def renewed() -> bool:
                    return await auths(server_kinds) >= logins + 3 * len(before)

                await until(renewed)
                await watched.goes_on()
                assert {each["id"] for each in await clients(server_kinds, user)} == before
        assert not watched.failed and not watched.stale
    finally:
        await ask(server_kinds, "ACL", "DELUSER", user)


async def test_a_login_that_is_not_renewed_is_told_and_the_connection_goes_on(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachebus.resp.reauth.AGAIN_S", 0.1)
    provider = Rotating(FIRST)
    with told("WARNING") as lines:
        async with Cache(quick(server.url, credential_provider=provider, reauth_interval_s=0.3)) as cache:
            provider.secret = SECRET
            await until(lambda: any("the login is not renewed yet: WRONGPASS" in line for line in lines))
            await cache.set("config", "x", 1, tenant_id="acme")
            await let_in([server], SECRET)
            logins = await auths(server)

            async def renewed() -> bool:
                return await auths(server) >= logins + 4

            await until(renewed)
            assert await cache.get("config", "x", tenant_id="acme") == 1
    assert SECRET not in str(lines)


async def test_whatever_a_renewal_dies_of_the_next_one_comes(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachebus.resp.reauth.AGAIN_S", 0.1)
    provider = Rotating(FIRST)
    send, odd = Link.call, list[str]()

    def call(link: Link, *args: Any, **more: Any) -> asyncio.Future[Any]:
        if args[0] == "AUTH" and odd:
            raise RuntimeError(odd.pop())
        return send(link, *args, **more)

    with told("WARNING") as lines:
        async with Cache(quick(server.url, credential_provider=provider, reauth_interval_s=0.2)):
            provider.secret = f"{SECRET}\udcff"
            await until(lambda: any("no Unicode text" in line for line in lines))
            provider.secret = FIRST
            logins = await auths(server)

            async def renewed() -> bool:
                return await auths(server) >= logins + 4

            await until(renewed)
            odd += [SECRET, SECRET]
            monkeypatch.setattr(Link, "call", call)
            await until(lambda: len([line for line in lines if line.endswith("not renewed yet: RuntimeError")]) == 2)
            logins = await auths(server)
            await until(renewed)
    assert SECRET not in str(lines)


@pytest.fixture
async def old_server() -> AsyncIterator[EmbeddedServer]:
    """One that knows no RESP3."""
    with EmbeddedServer(any_binary(), conf=['rename-command HELLO ""']) as server:
        await let_in([server], FIRST)
        yield server


async def test_where_who_listens_cannot_log_in_anew_another_one_comes(old_server: EmbeddedServer) -> None:
    provider = Rotating(FIRST)
    settings = {"credential_provider": provider, "reauth_interval_s": 0.3, "namespace": "old"}
    async with nodes(old_server.url, **settings) as caches:
        watched = Watched(caches, ["acme"])
        async with watched.at_work():
            before = {each["id"]: each for each in await clients(old_server, "old")}
            (listens,) = {each["user"] for each in before.values()}
            assert listens == USER

            async def replaced() -> bool:
                now = {each["id"] for each in await clients(old_server, "old") if int(each["sub"])}
                return len(now) == 2 and not now & set(before)

            await until(replaced)
            await watched.goes_on()
    assert not watched.failed and not watched.stale


class Streams(Rotating, StreamingCredentialProvider):
    """As redis-py's: tells of each new token, from a thread of its own."""

    def __init__(self, secret: str) -> None:
        super().__init__(secret)
        self._next: list[Callable[[Any], Any]] = []
        self._error: list[Callable[[Exception], Any]] = []

    def on_next(self, callback: Callable[[Any], Any]) -> None:
        """Whom to tell."""
        self._next = [callback]

    def on_error(self, callback: Callable[[Exception], Any]) -> None:
        """Whom to tell that there is none."""
        self._error = [callback]

    def is_streaming(self) -> bool:
        """It does."""
        return True

    def try_get(self, name: str) -> str:
        """As a token's."""
        assert name == "oid"
        return self.user

    def get_value(self) -> str:
        """As a token's."""
        return self.secret

    def tell(self, token: Any) -> None:
        """From another thread."""
        thread = threading.Thread(target=lambda: [callback(token) for callback in self._next])
        thread.start()
        thread.join()

    async def fail(self, error: Exception) -> None:
        """As its asynchronous callers do."""
        for callback in self._error:
            await callback(error)


@pytest.mark.parametrize("is_token", [True, False])
async def test_one_that_streams_says_when_to_log_in_anew(server: EmbeddedServer, is_token: bool) -> None:
    provider = Streams(FIRST)
    async with nodes(server.url, credential_provider=provider, namespace="streams") as caches:
        before = {each["id"] for each in await clients(server, "streams")}
        assert len(before) == 4
        logins = await auths(server)
        await let_in([server], SECRET)
        provider.secret = SECRET
        provider.tell(provider if is_token else object())

        async def renewed() -> bool:
            return await auths(server) == logins + 4

        await until(renewed)
        assert {each["id"] for each in await clients(server, "streams")} == before
        assert all(cache.ready() for cache in caches)
        assert (await facts_of(server, "INFO", "errorstats")).get("errorstat_WRONGPASS") is None
        with told("WARNING") as lines:
            await provider.fail(ValueError(SECRET))
        assert len(lines) == 1 and "told of ValueError" in lines[0] and SECRET not in lines[0]


class Late(Streams):
    """Tells of its next secret while it is first asked, and gives the one before."""

    def get_credentials(self) -> tuple[str, str]:
        """The one before; later the next."""
        given = super().get_credentials()
        if self.secret == FIRST:
            self.secret = SECRET
            self.tell(self)
        return given


async def test_what_is_told_while_a_connection_is_made_is_used_on_it(server: EmbeddedServer) -> None:
    await ask(server, "ACL", "SETUSER", USER, f">{SECRET}")
    logins = await auths(server)
    async with Cache(quick(server.url, credential_provider=Late(FIRST), namespace="late")):
        there = len(await clients(server, "late"))

        async def renewed() -> bool:
            return await auths(server) > logins + there

        await until(renewed)


async def test_what_was_used_already_is_not_used_again(server: EmbeddedServer) -> None:
    class Eager(Streams):
        def get_credentials(self) -> tuple[str, str]:
            if not self.calls:
                self.tell(self)
            return super().get_credentials()

    logins = await auths(server)
    async with Cache(quick(server.url, credential_provider=Eager(FIRST), namespace="eager")):
        assert await auths(server) == logins + len(await clients(server, "eager"))


async def test_one_that_tells_whenever_it_is_asked_is_not_asked_for_ever(server: EmbeddedServer) -> None:
    """Its tokens say nothing to us, so it has to be asked, and tells of another one."""

    class Echoes(Streams):
        def get_credentials(self) -> tuple[str, str]:
            given = super().get_credentials()
            self.tell(object())
            return given

    provider, logins = Echoes(FIRST), await auths(server)
    async with Cache(quick(server.url, credential_provider=provider, namespace="echoes")) as cache:
        there = len(await clients(server, "echoes"))

        async def renewed() -> bool:
            return await auths(server) == logins + 2 * there

        await until(renewed)
        for number in range(100):
            await cache.set("config", number, 1, tenant_id="acme")
        assert await renewed()
        assert provider.calls <= 2 * there


async def test_who_comes_after_a_new_secret_shares_no_answer_of_before(server: EmbeddedServer) -> None:
    go_on = threading.Event()

    class Slow(Streams):
        def get_credentials(self) -> tuple[str, str]:
            given = super().get_credentials()
            if self.secret == FIRST:
                go_on.wait()
            return given

    provider = Slow(FIRST)
    await ask(server, "ACL", "SETUSER", USER, f">{SECRET}")
    settings = quick(server.url, credential_provider=provider, connect_timeout_s=20)
    first = Cache(settings)
    opening = asyncio.create_task(first.__aenter__())
    try:
        await until(lambda: provider.calls == 1)
        provider.secret = SECRET
        provider.tell(provider)
        async with Cache(settings) as second:
            assert second.ready() and not opening.done()
    finally:
        go_on.set()
        await opening
        await first.__aexit__(None, None, None)


class Overtaken:
    """Tells of another secret while it is first asked; what it was asked for ends badly, and later than the next."""

    def __init__(self, ends: Callable[[], Any]) -> None:
        self.asked = 0
        self.ends = ends
        self.late = asyncio.Event()
        self.heard = list[Callable[[Any], Any]]()

    def on_next(self, callback: Callable[[Any], Any]) -> None:
        """Whom to tell."""
        self.heard.append(callback)

    def on_error(self, callback: Callable[[Any], Any]) -> None:
        """Nobody."""

    async def get_credentials_async(self) -> Any:
        """The first time what is told, once `late` is set."""
        self.asked += 1
        if self.asked == 1:
            await self.late.wait()
            return self.ends()
        return USER, SECRET


def _is_cancelled() -> Any:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("ends", "timeout_s"), [(_raises, 60.0), (_is_cancelled, 60.0), (object, 60.0), (_raises, 0.05)]
)
async def test_an_old_question_that_fails_is_no_trouble_after_a_newer_answer(
    ends: Callable[[], Any], timeout_s: float
) -> None:
    provider = Overtaken(ends)
    login = ProvidedCredentials.of(provider, timeout_s, None)
    assert login is not None
    with told("WARNING") as lines:
        first = asyncio.create_task(login.login())
        await until(lambda: provider.asked == 1)
        provider.heard[0](object())
        assert await login.login() == (USER, SECRET)
        if timeout_s > 1.0:
            provider.late.set()
        with pytest.raises(ProviderFailed, match="the provider Overtaken "):
            await first
    assert trouble_of(provider) == ""
    assert lines == []


async def test_caches_of_one_provider_ask_it_once_at_a_time(server: EmbeddedServer) -> None:
    release, asked = threading.Event(), list[int]()

    def gives() -> tuple[str, str]:
        asked.append(1)
        release.wait(5.0)
        return USER, FIRST

    source = ProvidedCredentials.of(Given(gives), 5.0, None)
    assert source is not None
    answers = [asyncio.create_task(source.login()) for _ in range(8)]
    await until(lambda: bool(asked))
    answers[0].cancel()
    release.set()
    assert await asyncio.gather(*answers[1:]) == [(USER, FIRST)] * 7
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"credential_provider": object()}, "get_credentials_async"),
        ({"credential_provider": Rotating}, "expected an object"),
        ({"credential_provider": "nowhere"}, "module:name"),
        ({"credential_provider": "no.such.module:x"}, "ModuleNotFoundError"),
        ({"credential_provider": Rotating(FIRST), "password": SECRET}, "both say what to log in with"),
        ({"sentinel_credential_provider": Rotating(FIRST)}, r"is for redis\+sentinel"),
        ({"reauth_interval_s": 60}, "needs credential_provider"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        quick("redis://localhost", **more)
    assert SECRET not in str(raised.value)
