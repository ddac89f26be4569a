"""cachebus in Flask: `cachebus = CacheBus(app)`, and in a view `cachebus.cache.get_or_load("product", 7, load)`.

Needs Flask: `pip install 'cachebus[flask]'`. The cache is one for the process. It opens with its first call, in each
worker anew: nothing has to be done for servers that load the application and then fork.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context as Variables
from contextvars import copy_context
from functools import partial
from typing import Any, Final, cast

try:
    from flask import Flask, Request, current_app, g, request
    from werkzeug.exceptions import BadRequest
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError("cachebus.flask needs Flask: pip install 'cachebus[flask]'", name=_missing.name) from None

from cachebus.base.ids import Id
from cachebus.context import Context
from cachebus.errors import ConfigError, InvalidKey
from cachebus.policy import unknown
from cachebus.settings import Settings
from cachebus.threads import BlockingCache

__all__ = ["CacheBus"]
TenantOfRequest = Callable[[Request], Id | None]
NAME: Final = "cachebus"
PREFIX: Final = "CACHEBUS_"
_OF_A_REQUEST: Final = ("flask.app_ctx", "flask.request_ctx")
"""Flask's context variables: what a request has, and its teardown takes back."""
_ENTERED: Final = "_cachebus_context"


class CacheBus:
    """The cache of a Flask application, and the tenant of its requests.

    - `app`: an application, or None: then `init_app` is called later, with one or several
    - `tenant`: a function of the request that gives its tenant, as from a header or the session; it runs before each
      request, and the whole request is then inside `Context(tenant_id=...)`, so that no call names the tenant. None
      from it is no tenant, and a text that is no id is answered by 400

    In the application's config `CACHEBUS_URL`, `CACHEBUS_NAMESPACE`, ... are the fields of `Settings`; what is missing
    there comes from the environment variables of these names.
    """

    def __init__(self, app: Flask | None = None, *, tenant: TenantOfRequest | None = None) -> None:
        self._tenant = tenant
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set an application up, by its config as it is now; nothing is opened yet. `ConfigError` for a config that is
        wrong, and for an application that has a cache already."""
        if NAME in app.extensions:
            raise ConfigError(f"the application {app.name!r} has a CacheBus already")
        app.extensions[NAME] = cache = BlockingCache.open(settings_of(app.config))
        cache._run_apart = partial(_apart, app)
        if self._tenant is not None:
            app.before_request(self._enter)
            app.teardown_request(self._leave)

    @property
    def cache(self) -> BlockingCache:
        """The cache of the current application; `ConfigError` where there is none, or it was not set up."""
        if not current_app:
            raise ConfigError("no Flask application is current: call it in a view, or inside `with app.app_context():`")
        return self.of(current_app._get_current_object())  # type: ignore[attr-defined]

    def of(self, app: Flask) -> BlockingCache:
        """The cache of an application, for code outside of its requests; `ConfigError` where it was not set up."""
        found = app.extensions.get(NAME)
        if found is None:
            raise ConfigError(f"the application {app.name!r} has no cache: call init_app(app)")
        return cast("BlockingCache", found)

    def close(self, app: Flask) -> None:
        """Close an application's cache, as at the end of a test; the exit of the process does so by itself. Its next
        call raises `ConfigError`."""
        self.of(app).close()

    def _enter(self) -> None:
        assert self._tenant is not None
        tenant_id = self._tenant(request)
        if tenant_id is not None:
            context = _context_of(tenant_id)
            context.__enter__()
            setattr(g, _ENTERED, context)

    def _leave(self, error: BaseException | None) -> None:
        context: Context | None = g.pop(_ENTERED, None)
        if context is not None:
            context.__exit__(None, error, None)


def _context_of(tenant_id: Id) -> Context:
    try:
        return Context(tenant_id=tenant_id)
    except InvalidKey as error:
        if isinstance(tenant_id, str):
            raise BadRequest(str(error)) from error
        raise


def _apart(app: Flask, load: Callable[[], Any]) -> Any:
    """What a load gives in a thread of its own: within an application context of its own, with its own teardown. That
    of the request which has begun it may be over, or in use."""
    variables = Variables()
    for variable, value in copy_context().items():
        if variable.name not in _OF_A_REQUEST:
            variables.run(variable.set, value)
    return variables.run(_within, app, load)


def _within(app: Flask, load: Callable[[], Any]) -> Any:
    with app.app_context():
        return load()


def settings_of(config: dict[str, Any]) -> Settings:
    """The settings that an application's config says, under `CACHEBUS_` and the name of a field. `ConfigError` for what
    is no field."""
    fields = {name.removeprefix(PREFIX).lower(): value for name, value in config.items() if name.startswith(PREFIX)}
    for name in fields:
        if name not in Settings.model_fields:
            raise ConfigError(f"{PREFIX}{name.upper()}: {unknown('setting', name, list(Settings.model_fields))}")
    return Settings(**cast("Any", fields))
