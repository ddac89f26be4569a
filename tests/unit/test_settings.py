"""Settings: from arguments and environment, checked together, and without telling a secret."""

from __future__ import annotations

import functools
import json
import math
import sys
import traceback
import warnings
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from cachebus.errors import ConfigError
from cachebus.policy import Policy
from cachebus.settings import CLUSTER_SHARDS, Settings

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CACHEBUS_{name.upper()}", raising=False)


def test_defaults() -> None:
    settings = Settings()
    assert settings.url.get_secret_value() == "redis://localhost:6379/0"
    assert (settings.namespace, settings.shards, settings.enabled, settings.use_memory_cache) == (
        "cachebus",
        1,
        True,
        True,
    )
    assert (settings.staleness_bound_s, settings.probe_interval_s, settings.gap_grace_s) == (2.0, 0.5, 0.05)
    assert (settings.l2_timeout_s, settings.connect_timeout_s, settings.close_timeout_s) == (1.0, 5.0, 5.0)
    assert (settings.l1_max_entries, settings.l1_max_bytes) == (100_000, 256 << 20)
    assert (settings.lease_ms, settings.max_invalidated_scopes, settings.log_max_len) == (10_000, 100_000, 100_000)
    assert (settings.on_outage, settings.start_degraded, settings.policies) == ("raise", False, {})


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().shards = 2


def test_the_environment_and_what_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEBUS_URL", "memory://x")
    monkeypatch.setenv("CACHEBUS_ENABLED", "0")
    monkeypatch.setenv("CACHEBUS_SHARDS", "8")
    monkeypatch.setenv("CACHEBUS_POLICIES", json.dumps({"doc": {"ttl_s": math.inf, "l1": False, "copy": True}}))
    monkeypatch.setenv("CACHEBUS_SOMETHING_ELSE", "1")
    settings = Settings(shards=2)
    assert settings.safe_url == "memory://x"
    assert not settings.enabled
    assert settings.shards == 2
    assert settings.policies == {"doc": Policy(ttl_s=math.inf, l1=False, copy=True)}


def test_of() -> None:
    settings = Settings(url="memory://")
    assert Settings.of(settings) is settings
    assert Settings.of("memory://y").safe_url == "memory://y"
    assert Settings.of(None) == Settings()
    with pytest.raises(ConfigError, match="expected Settings or a URL, not int"):
        Settings.of(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shards": 0}, r"settings: shards \(CACHEBUS_SHARDS\): Input should be greater than or equal to 1"),
        ({"shards": 1025}, r"settings: shards \(CACHEBUS_SHARDS\): at most 1024: a node renews the lease of each"),
        ({"lease_ms": 10**9}, r"lease_ms \(CACHEBUS_LEASE_MS\): .* 3600000"),
        ({"shards": "x", "lease_ms": 1}, r"shards \(CACHEBUS_SHARDS\): .*; lease_ms \(CACHEBUS_LEASE_MS\): "),
        ({"urll": "x"}, "settings: urll: there is no such setting, did you mean url?"),
        ({"l1_max": 1}, "settings: l1_max: there is no such setting, did you mean l1_max_entries?"),
        ({"colour": "x"}, "settings: colour: there is no such setting"),
        (
            {"url": "http://x"},
            "'http://x' is not a URL that is supported: redis://, rediss://, unix://, redis\\+sentinel://",
        ),
        ({"url": "localhost"}, r"url \(CACHEBUS_URL\): '\.\.\.' is not a URL"),
        ({"namespace": "a:b"}, r"namespace \(CACHEBUS_NAMESPACE\): 1-64 letters, digits"),
        ({"namespace": "{a}"}, "namespace"),
        ({"namespace": "a\n"}, "namespace"),
        ({"namespace": ""}, "namespace"),
        ({"on_outage": "ignore"}, "on_outage"),
        ({"bus": "carrier pigeon"}, "bus"),
        ({"l2_timeout_s": math.inf}, r"l2_timeout_s \(CACHEBUS_L2_TIMEOUT_S\): Input should be a finite number"),
        ({"staleness_bound_s": math.nan}, "staleness_bound_s"),
        ({"probe_interval_s": 1.5}, r"probe_interval_s \(CACHEBUS_PROBE_INTERVAL_S\) must be at most half of"),
        ({"db_timeout_s": 60}, r"db_timeout_s \(CACHEBUS_DB_TIMEOUT_S\) must be below guard_max_s"),
        ({"log_max_len": 10**30}, r"log_max_len \(CACHEBUS_LOG_MAX_LEN\): .*"),
        ({"gap_grace_s": 2}, r"gap_grace_s \(CACHEBUS_GAP_GRACE_S\) must be below staleness_bound_s"),
        ({"policies": {"doc": {"ttl_s": -1}}}, r"policies \(CACHEBUS_POLICIES\): doc: policy ttl_s: Input should be"),
        ({"policies": {"doc": 3}}, "policies.doc"),
        ({"policies": [1]}, "policies"),
        ({"policies": {"doc": {1: 2}}}, "policies.*doc"),
    ],
)
def test_what_is_refused_and_how_it_is_said(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**fields)


def test_an_environment_that_is_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEBUS_POLICIES", SECRET)
    with pytest.raises(ConfigError, match=r'"policies".*JSON is needed') as caught:
        Settings()
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://user:{SECRET}@host:6380/3", "redis://host:6380/3"),
        (f"rediss://:{SECRET}@[::1]:6380", "rediss://[::1]:6380"),
        (f"redis://host/0?password={SECRET}", "redis://host/0"),
        (f"redis://u:12/{SECRET}@host:1/0", "redis://..."),
        (f"redis://u:#{SECRET}@host:1/0", "redis://..."),
        (f"redis://u:12#{SECRET}@host:1/0", "redis://..."),
        (f"redis://u:{SECRET}@ho@st:1/0", "redis://st:1/0"),
        (f" redis://:{SECRET}@host/0\n", "redis://host/0"),
        (f"valkey://:{SECRET}@host/0", "valkey://host/0"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("memory://Orders", "memory://Orders"),
        ("memory://", "memory://"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    settings = Settings(url=url)
    assert settings.safe_url == shown
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)
    assert SECRET not in settings.model_dump_json()


@pytest.mark.parametrize(
    "fields",
    [
        {"url": f"postgres://u:{SECRET}@host"},
        {"url": f"u:{SECRET}@host"},
        {"url": f"http://u:12/{SECRET}@host"},
        {"url": {"password": SECRET}},
        {"password": [SECRET]},
        {"passwort": SECRET},
        {"url": f"redis://:{SECRET}@host", "password": SECRET, "shards": 0},
    ],
)
def test_no_error_tells_a_secret(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(**fields)
    # Of the traceback only the messages: it shows this test's own source lines, too.
    messages = [line for line in traceback.format_exception(caught.value) if "File" not in line]
    assert SECRET not in "".join(messages)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_misspelt_variable_is_warned_of_and_a_strangers_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEBUS_STALENES_BOUND_S", "1")
    with pytest.warns(UserWarning, match="CACHEBUS_STALENES_BOUND_S is no setting, did you mean CACHEBUS_STALENESS_BO"):
        assert Settings().staleness_bound_s == 2.0
    monkeypatch.delenv("CACHEBUS_STALENES_BOUND_S")
    monkeypatch.setenv("CACHEBUS_TRACES", "/tmp")
    monkeypatch.setenv("CACHEBUS_URL", "memory://")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Settings().url.get_secret_value() == "memory://"


class Login:
    """A provider of credentials and of tokens."""

    def get_credentials(self) -> tuple[str, str]:
        """What to log in with."""
        return "svc", SECRET

    async def token(self) -> str:
        """Likewise."""
        return SECRET

    @classmethod
    def make(cls) -> Login:
        """What makes one."""
        return cls()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with a provider, and with all that makes one."""
    module = ModuleType("service_login")
    vars(module).update(made=Login(), Login=Login, make=functools.partial(Login))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("name", ["made", "Login", "make", "Login.make"])
@pytest.mark.parametrize(
    "field", ["credential_provider", "sentinel_credential_provider", "kafka_sasl_oauth_token_provider"]
)
def test_a_provider_of_that_name_is_one_in_a_process(
    service: ModuleType, monkeypatch: pytest.MonkeyPatch, field: str, name: str
) -> None:
    monkeypatch.setenv("CACHEBUS_URL", "redis+sentinel://one:26379/primary")
    monkeypatch.setenv("CACHEBUS_KAFKA_SASL_MECHANISM", "OAUTHBEARER")
    monkeypatch.setenv("CACHEBUS_KAFKA_SASL_OAUTH_TOKEN_PROVIDER", "service_login:made")
    monkeypatch.setenv(f"CACHEBUS_{field.upper()}", f"service_login:{name}")
    one = Settings()
    assert one == Settings()
    assert getattr(one, field) is getattr(Settings(), field)


def test_what_makes_a_provider_is_asked_anew_until_it_does_and_when_it_is_another(service: ModuleType) -> None:
    vars(service).update(make_later=lambda: None)
    with pytest.raises(ConfigError, match="module:name"):
        Settings(credential_provider="service_login:make_later")
    answers = [None, Login()]
    vars(service).update(make_later=lambda: answers.pop(0))
    with pytest.raises(ConfigError, match="module:name"):
        Settings(credential_provider="service_login:make_later")
    first = Settings(credential_provider="service_login:make_later")
    assert isinstance(first.credential_provider, Login)
    vars(service).update(make_later=Login)
    assert Settings(credential_provider="service_login:make_later") != first


def test_a_copy_with_other_fields_is_looked_at_as_settings_are() -> None:
    settings = Settings(url="redis://one:6379/0", namespace="shop", policies={"price": Policy(ttl_s=5)})
    other = settings.model_copy(update={"url": "redis://two:6379/0", "password": SECRET})
    assert other == Settings(
        url="redis://two:6379/0", namespace="shop", password=SECRET, policies={"price": Policy(ttl_s=5)}
    )
    assert other.safe_url == "redis://two:6379/0"
    assert settings.model_copy(update={"url": "redis+cluster://one:6379"}).shards == CLUSTER_SHARDS
    assert settings.model_copy() == settings
    for update in ({"url": "nowhere"}, {"staleness_bound_s": 0.5, "probe_interval_s": 0.4}, {"urls": "redis://x"}):
        with pytest.raises(ConfigError, match=rf"settings: .*{next(iter(update))}"):
            settings.model_copy(update=update)
