"""Applications of real frameworks, started and asked as their own test clients do it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient as FastAPIClient
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient as StarletteClient

from cachebus import Cache, CacheManager, ConfigError, Context, TenantRequired, configure, current_cache, lifespan
from tests.support.caches import quick

pytestmark = pytest.mark.usefixtures("unconfigured")


@pytest.fixture
def unconfigured() -> Iterator[None]:
    """Nothing is configured before a test, nor after it."""
    CacheManager._configure(None)
    yield
    CacheManager._configure(None)


async def load(resource_id: str) -> dict[str, str]:
    """The source."""
    return {"id": resource_id}


def of_fastapi(opened: Any) -> FastAPI:
    """A service with one route, which uses the process-wide cache."""
    app = FastAPI(lifespan=opened)

    @app.get("/{product}")
    async def get_product(product: str, request: Request) -> Any:
        assert request.state.cache is current_cache()
        return await CacheManager.get_or_load("product", product, load, "acme")

    return app


def of_starlette(opened: Any) -> Starlette:
    """The same."""

    async def get_product(request: StarletteRequest) -> JSONResponse:
        assert request.state.cache is current_cache()
        return JSONResponse(await CacheManager.get_or_load("product", request.path_params["product"], load, "acme"))

    return Starlette(routes=[Route("/{product}", get_product)], lifespan=opened)


KINDS: list[tuple[Callable[[Any], Any], Any]] = [(of_fastapi, FastAPIClient), (of_starlette, StarletteClient)]


@pytest.mark.parametrize(("make", "client_of"), KINDS)
def test_lifespan_alone_is_an_applications_lifespan(make: Callable[[Any], Any], client_of: Any, redis_url: str) -> None:
    configure(quick(redis_url))
    app = make(lifespan)
    for _ in range(2):  # started, ended, and started again
        with client_of(app) as client:
            assert client.get("/p1").json() == {"id": "p1"}
            assert client.get("/p1").json() == {"id": "p1"}
            assert current_cache().stats().loads <= 1
    with pytest.raises(ConfigError, match="no cache is open"):
        current_cache()


@pytest.mark.parametrize(("make", "client_of"), KINDS)
def test_lifespan_takes_settings_before_the_application(
    make: Callable[[Any], Any], client_of: Any, redis_url: str
) -> None:
    for opened in (partial(lifespan, quick(redis_url)), lambda app: lifespan(quick(redis_url), app)):
        with client_of(make(opened)) as client:
            assert client.get("/p1").json() == {"id": "p1"}
        assert CacheManager._configured is None


@pytest.mark.parametrize(("make", "client_of"), KINDS)
def test_it_goes_into_an_applications_own(make: Callable[[Any], Any], client_of: Any, redis_url: str) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[dict[str, Cache]]:
        events.append("before")
        async with lifespan(quick(redis_url)) as cache:
            yield {"cache": cache}
        events.append("after")

    with client_of(make(own)) as client:
        assert client.get("/p1").json() == {"id": "p1"}
    assert events == ["before", "after"]


def test_what_is_no_application_and_no_settings_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected Settings or a URL, not int"):
        lifespan(5)  # type: ignore[call-overload]


def tenant_in_a_thread() -> Iterator[None]:
    """What FastAPI runs in a thread, with a copy of the request's context variables."""
    with Context(tenant_id="acme"):
        yield


async def tenant_in_the_request() -> AsyncIterator[None]:
    """The same, as it is to be written."""
    async with Context(tenant_id="acme"):
        yield


def test_a_dependency_that_enters_a_context_in_a_thread_is_told_to_be_async() -> None:
    app = FastAPI(lifespan=partial(lifespan, quick("memory://")))

    async def plan() -> Any:
        return await CacheManager.get_or_load("plan", "current", load)

    app.get("/async", dependencies=[Depends(tenant_in_the_request)])(plan)
    app.get("/sync", dependencies=[Depends(tenant_in_a_thread)])(plan)
    with FastAPIClient(app) as client:
        assert client.get("/async").json() == {"id": "current"}
        with pytest.raises(TenantRequired, match=r"a dependency of FastAPI .* only where that is async"):
            client.get("/sync")
