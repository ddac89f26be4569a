"""Kafka by OAUTHBEARER: tokens of a provider, that expire while nodes, producers and workers run."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from secrets import token_hex
from traceback import format_exception
from typing import Any

import pytest
from aiokafka.abc import AbstractTokenProvider
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import SaslAuthenticationFailed

from cachebus import Cache
from cachebus.base.providers import ProviderFailed, trouble_of
from cachebus.bus.kafka.brokers import Brokers
from cachebus.bus.kafka.client import kafka_access, quietly
from cachebus.bus.kafka.driver import by_any
from cachebus.bus.kafka.endings import Endings
from cachebus.bus.kafka.tokens import ProvidedTokens
from cachebus.errors import BusUnavailable, ConfigError, L2Unavailable
from cachebus.producers.kafka import KafkaProducer
from cachebus.tools.doctor import kafka as doctor
from cachebus.tools.doctor.finding import Severity
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import nodes, quick, until
from tests.support.changes import running
from tests.support.commands import worker_of
from tests.support.logs import told
from tests.support.servers import to_be_had

LIFE_S = 4
"""So long a token lasts, at whose end the broker ends its connection. A busy machine takes a while to open one."""


def _part(what: dict[str, Any]) -> str:
    return urlsafe_b64encode(json.dumps(what).encode()).decode().rstrip("=")


class Tokens(AbstractTokenProvider):
    """Unsecured ones (RFC 7515, A.5), as a broker takes them that is set up for trials."""

    def __init__(self, user: str = "ann", life_s: float = LIFE_S) -> None:
        self.user = user
        self.life_s = life_s
        self.calls = 0
        self.error: Exception | None = None

    async def token(self) -> str:
        """One that began a second ago: the broker's clock has no fractions of milliseconds."""
        self.calls += 1
        if self.error is not None:
            raise self.error
        now = datetime.now(UTC).timestamp()
        return f"{_part({'alg': 'none'})}.{_part({'sub': self.user, 'iat': now - 1, 'exp': now + self.life_s})}."


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """The address at which a broker asks for tokens."""
    port = free_port()
    module = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
    properties = {
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TOKENS:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.tokens.oauthbearer.sasl.jaas.config": f'{module} unsecuredLoginStringClaim_sub="broker";',
        "connections.max.reauth.ms": "600000",
    }
    made = partial(KafkaServer, listeners={"TOKENS": (port, port)}, settings=properties)
    with to_be_had(made, "Kafka"):
        yield f"127.0.0.1:{port}"


def setup(broker: str, provider: object) -> dict[str, Any]:
    """The settings of a node that has tokens."""
    return {
        "kafka_bootstrap_servers": broker,
        "kafka_topic": "with-tokens",
        "kafka_commands_topic": "commands-with-tokens",
        "kafka_sasl_mechanism": "OAUTHBEARER",
        "kafka_sasl_oauth_token_provider": provider,
        "connect_timeout_s": 5.0,
    }


async def test_tokens_expire_under_a_running_fleet(broker: str, redis_url: str) -> None:
    """Its broker ends each connection whose token has expired: the next one has another, and no call fails."""
    provider = Tokens()
    name = f"tokens-{token_hex(4)}"
    async with nodes(redis_url, bus="kafka", namespace=name, **setup(broker, provider)) as (a, b):
        first = provider.calls
        assert first

        async def again() -> bool:
            receipt = await a.invalidate("config", "k", tenant_id="acme", wait="nodes")
            assert receipt.status == "applied" and not receipt.lapsed
            return provider.calls >= 3 * first and b.stats().bus_lag.count > 10

        await until(again, within_s=60.0)
        await until(lambda: a.ready() and b.ready())


async def test_health_says_since_when_tokens_are_not_renewed(broker: str, redis_url: str) -> None:
    provider = Tokens()
    name = f"tokens-{token_hex(4)}"

    def said(cache: Cache) -> list[str]:
        return [why for why in cache.health().degraded if why.startswith("tokens for Kafka are not renewed for ")]

    async with nodes(redis_url, 1, bus="kafka", namespace=name, **setup(broker, provider)) as (cache,):
        provider.error = PermissionError("s3cret")
        await until(lambda: said(cache), within_s=60.0)
        [why] = said(cache)
        assert "the provider Tokens raised PermissionError: " in why and "s3cret" not in why
        assert cache.ready()
        provider.error = None
        await until(lambda: not said(cache), within_s=60.0)


async def test_commands_and_their_workers_have_tokens(broker: str, redis_url: str) -> None:
    provider = Tokens()
    settings = quick(redis_url, namespace=f"tokens-{token_hex(4)}", **setup(broker, provider))
    async with AsyncExitStack() as stack:
        while True:  # a busy machine may take longer to open one than a token lives
            with suppress(BusUnavailable):
                producer = await stack.enter_async_context(KafkaProducer.open(settings))
                break
        worker = worker_of(settings)
        await stack.enter_async_context(running(worker))
        first, sent = provider.calls, 0

        async def again() -> bool:
            nonlocal sent
            await producer.invalidate("config", "x", "acme")
            sent += 1
            await asyncio.sleep(0.05)
            return provider.calls >= 3 * first

        await until(again, within_s=60.0)
        await until(lambda: worker.meters.count("applied") >= sent, within_s=60.0)


async def test_the_doctor_has_tokens(broker: str, redis_url: str) -> None:
    settings = quick(redis_url, bus="kafka", **setup(broker, Tokens(life_s=600)))
    assert [finding for finding in await doctor.findings_of(settings) if finding.level is Severity.PROBLEM] == []


async def test_a_token_that_is_refused_is_told_as_that(broker: str, redis_url: str) -> None:
    """The broker says so in two steps (RFC 7628)."""
    settings = quick(redis_url, bus="kafka", **setup(broker, Tokens(life_s=-0.5)))
    for opened in (Cache(settings), KafkaProducer.open(settings)):
        with pytest.raises((BusUnavailable, L2Unavailable), match=r"SaslAuthenticationFailed: .*invalid_token"):
            async with opened:
                pass


async def test_the_driver_is_told_of_a_refused_token_too(broker: str, redis_url: str) -> None:
    provider = Tokens()
    access = kafka_access(quick(redis_url, bus="kafka", **setup(broker, provider)))
    brokers = Brokers(access)
    with quietly():
        admin = by_any(AIOKafkaAdminClient(**access.arguments()), brokers)
        async with Endings().running(admin):
            provider.life_s = -0.5
            with pytest.raises(SaslAuthenticationFailed, match="invalid_token"):
                await admin._client._connected(admin._client.cluster.brokers().pop().nodeId)
        await brokers.forget()


class Odd(Tokens):
    """Gives what is no token."""

    def __init__(self, gives: Any) -> None:
        super().__init__()
        self.gives = gives

    async def token(self) -> Any:
        """What the test says."""
        if self.gives is None:
            await asyncio.Event().wait()
        return self.gives


@pytest.mark.parametrize(
    ("gives", "why"),
    [
        (None, "gave nothing in 0.2 s"),
        (b"s3cret", "gave bytes, and not the text"),
        ("s3cret\x01auth=x", "gave str, and not"),
    ],
)
async def test_what_is_no_token_is_told_by_its_class(broker: str, redis_url: str, gives: Any, why: str) -> None:
    more = {**setup(broker, Odd(gives)), "connect_timeout_s": 0.4}
    with told("DEBUG") as lines, pytest.raises(L2Unavailable, match=f"the provider Odd {why}") as raised:
        async with Cache(quick(redis_url, bus="kafka", **more)):
            pass
    assert "s3cret" not in str(lines) and "s3cret" not in "".join(format_exception(raised.value))


async def test_a_provider_that_fails_is_asked_again(broker: str, redis_url: str) -> None:
    provider = Tokens()
    provider.error = PermissionError("s3cret")
    settings = quick(redis_url, bus="kafka", start_degraded=True, **setup(broker, provider))
    with told("DEBUG") as lines:
        async with Cache(settings) as cache:
            assert any("the provider Tokens raised PermissionError; it is asked again" in line for line in lines)
            provider.error = None
            await until(lambda: not cache.health().degraded)
        provider.error = PermissionError("s3cret")
        with pytest.raises(BusUnavailable, match="PermissionError"):
            async with KafkaProducer.open(settings):
                pass
    assert "s3cret" not in str(lines)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"kafka_sasl_mechanism": "OAUTHBEARER"}, "needs kafka_sasl_oauth_token_provider"),
        ({"kafka_sasl_oauth_token_provider": Tokens()}, "needs kafka_sasl_mechanism .*=OAUTHBEARER"),
        (
            {"kafka_sasl_mechanism": "OAUTHBEARER", "kafka_sasl_oauth_token_provider": Tokens(), "kafka_username": "x"},
            "kafka_username .*other than OAUTHBEARER",
        ),
        ({"kafka_sasl_oauth_token_provider": object()}, r"token\(\)"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        quick("redis://localhost", bus="kafka", kafka_bootstrap_servers="127.0.0.1:1", **more)


@pytest.mark.parametrize("error", [SystemExit, OSError])
def test_extensions_that_are_not_given_are_told_by_their_class(error: type[BaseException]) -> None:
    class Odd(Tokens):
        def extensions(self) -> dict[str, str]:
            raise error("s3cret")

    with pytest.raises(ProviderFailed, match=f"the provider Odd raised {error.__name__} for its extensions"):
        ProvidedTokens(Odd(), 1.0).extensions()


async def test_extensions_that_are_not_given_are_told_once_a_minute_beside_tokens_that_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class WithExtensions(Tokens):
        gives: object = None

        def extensions(self) -> Any:
            return self.gives

    now_s = 0.0
    monkeypatch.setattr("cachebus.base.providers.monotonic", lambda: now_s)
    provider = WithExtensions()
    tokens = ProvidedTokens(provider, 1.0)
    with told("WARNING") as lines:
        for second in range(121):
            now_s = float(second)
            await tokens.token()
            with pytest.raises(ProviderFailed):
                tokens.extensions()
        assert lines == ["the provider WithExtensions raised TypeError for its extensions; it is asked again"] * 3
        assert trouble_of(provider) == "for 120 s: the provider WithExtensions raised TypeError for its extensions"
        provider.gives = {"logicalCluster": "lkc-1"}
        assert tokens.extensions() == provider.gives
        assert trouble_of(provider) == ""
