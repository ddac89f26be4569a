"""Loads that run in threads of their own, in Flask and Django: what they open is closed behind them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.db import connections
from django.test import override_settings
from flask import Flask, g, has_app_context, has_request_context

from cachebus import Policy
from cachebus.context import current
from cachebus.django import blocking_cache, close_caches
from cachebus.flask import CacheBus
from cachebus.threads import BlockingCache, blocking
from tests.support.caches import QUICK, until
from tests.support.django_shop.project import configured, entry

APART = {
    "refreshed": Policy(ttl_s=60, soft_ttl_s=0.05),
    "slow": Policy(ttl_s=60, fail_safe_s=60, load_soft_timeout_s=5),
}


def waited(met: Callable[[], Any]) -> None:
    """Wait until it is true; asked on a thread where no event loop runs."""

    async def asked() -> None:
        await until(lambda: asyncio.to_thread(met))

    asyncio.run(asked())


class Service:
    """An application whose loader keeps in `flask.g` what the teardown closes."""

    def __init__(self, url: str) -> None:
        self.app = Flask("apart")
        config = {f"CACHEBUS_{name.upper()}": value for name, value in QUICK.items()}
        self.app.config.update(CACHEBUS_URL=url, CACHEBUS_POLICIES=APART, **config)
        self.bus = CacheBus(self.app, tenant=lambda _: "acme")
        self.opened: list[object] = []
        self.closed: list[object] = []
        self.seen: list[tuple[str, bool, bool, object]] = []
        self.shared: list[bool] = []
        self.app.teardown_appcontext(self._close)

    def connection(self) -> object:
        """As of a database."""
        if "connection" not in g:
            g.connection = object()
            self.opened.append(g.connection)
        return g.connection

    def _close(self, error: BaseException | None) -> None:
        found = g.pop("connection", None)
        if found is not None:
            self.closed.append(found)

    def ask(self, data_type: str, wrap: Callable[[Any], Any] = lambda load: load) -> Any:
        """A request that uses its own connection, and loads."""

        def view() -> Any:
            own = self.connection()

            def load(tenant_id: str) -> int:
                self.shared.append(self.connection() is own)
                where = threading.current_thread().name
                context = current()
                tenant = None if context is None else context.tenant_id
                self.seen.append((where, has_app_context(), has_request_context(), tenant))
                return len(self.seen)

            return str(self.bus.cache.get_or_load(data_type, "x", wrap(load)))

        with self.app.test_request_context("/"):
            self.app.preprocess_request()
            return view()


@pytest.fixture
def service(redis_url: str) -> Iterator[Service]:
    """An application, closed at the end."""
    made = Service(redis_url)
    yield made
    made.bus.close(made.app)


APART_SEEN = ("cachebus-loader", True, False, "acme")


def test_a_refresh_in_flask_has_a_context_of_its_own(service: Service) -> None:
    service.ask("refreshed")
    assert service.shared == [True], "on the thread of the request, with what it has"
    waited(lambda: service.ask("refreshed") and len(service.seen) > 1)
    waited(lambda: len(service.closed) == len(service.opened))
    assert service.seen[1] == APART_SEEN
    assert not service.shared[1]


@pytest.mark.parametrize("wrap", [lambda load: load, blocking], ids=["plain", "blocking"])
def test_a_load_that_may_be_left_behind_has_a_context_of_its_own(service: Service, wrap: Any) -> None:
    service.ask("slow", wrap)
    waited(lambda: len(service.closed) == 2)
    assert service.seen == [APART_SEEN]
    assert service.shared == [False]


def test_another_cache_of_the_process_is_not_the_applications(service: Service, redis_url: str) -> None:
    """Nor is it after a load in the application."""
    service.ask("slow")
    with BlockingCache.open(redis_url) as other:
        assert other.get_or_load("t", "x", blocking(has_app_context), "acme") is False


@pytest.fixture
def django_server(redis_url: str) -> Iterator[str]:
    """Django over a real server."""
    configured()
    said = {"default": entry(redis_url, POLICY={"fail_safe_s": 60, "load_soft_timeout_s": 5})}
    with override_settings(CACHES=said):
        yield redis_url
        close_caches()


def test_what_a_load_apart_opens_in_django_is_closed_behind_it(django_server: str) -> None:
    found: list[Any] = []

    def load() -> int:
        connection = connections["default"]
        connection.ensure_connection()
        found.append((threading.current_thread(), connection))
        return 1

    connections["default"].ensure_connection()
    assert caches["default"].get_or_set("k", load) == 1
    assert blocking_cache("default").get_or_load("other", "k", blocking(load), "acme") == 1
    assert len(found) == 2
    for thread, connection in found:
        assert thread is not threading.current_thread()
        waited(lambda connection=connection: connection.connection is None)  # type: ignore[misc]
    assert connections["default"].connection is not None, "that of the request stays"
