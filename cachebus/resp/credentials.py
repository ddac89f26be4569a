"""ProvidedCredentials that change: who gives them, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol
from weakref import WeakSet, WeakValueDictionary

from cachebus.base.providers import NothingToAwait, provided
from cachebus.base.unicode import is_unicode
from cachebus.base.weak import now_in


class Renews(Protocol):
    """Has a connection log in anew."""

    def soon(self, login: tuple[str, ...] | None) -> None:
        """With this, or with what the provider gives then; from any thread."""


@dataclass(frozen=True, slots=True)
class ProvidedCredentials:
    """A provider, and how it is asked."""

    source: CredentialSource
    timeout_s: float
    """No answer takes longer."""
    reauth_interval_s: float | None = None
    """How often a connection that stays open logs in anew."""

    @classmethod
    def of(cls, provider: Any, timeout_s: float, reauth_interval_s: float | None) -> ProvidedCredentials | None:
        """None where there is no provider."""
        return None if provider is None else cls(_source_of(provider), timeout_s, reauth_interval_s)

    async def login(self) -> tuple[str, ...]:
        """The arguments of AUTH; `ProviderFailed`."""
        return await self.source.provided.get(self.timeout_s)


class CredentialSource:
    """A provider. One that streams, as redis-py's `StreamingCredentialProvider`, tells when to log in anew."""

    def __init__(self, provider: Any) -> None:
        self.provided = provided(provider, "get_credentials_async", _login, blocking="get_credentials")
        self.renewals: WeakSet[Renews] = WeakSet()
        if callable(getattr(provider, "on_next", None)) and callable(getattr(provider, "on_error", None)):
            provider.on_next(self._on_next)
            provider.on_error(self._on_error)

    def _on_next(self, token: Any) -> NothingToAwait:
        """A new token is there. May be called from any thread."""
        login = _of_token(token)
        self.provided.gave()
        self.provided.changed()  # before they are told: who is not among them yet has yet to ask
        for renewal in now_in(self.renewals):
            renewal.soon(login)
        return NothingToAwait()

    def _on_error(self, error: Exception) -> NothingToAwait:
        self.provided.failed(f"told of {type(error).__name__}", lasts=True)
        return NothingToAwait()


_sources: Final[WeakValueDictionary[int, CredentialSource]] = WeakValueDictionary()
"""By the provider's id, which it has for as long as its source is there."""


def _source_of(provider: Any) -> CredentialSource:
    source = _sources.get(id(provider))
    if source is None:
        source = _sources[id(provider)] = CredentialSource(provider)
    return source


def _login(given: Any) -> tuple[str, ...]:
    """What AUTH takes, of what a provider gave; `ValueError`, which quotes none of it."""
    if not isinstance(given, tuple | list) or not 1 <= len(given) <= 2:
        raise ValueError(f"{type(given).__name__}, and not (password,) or (user, password)")
    user, password = ("", *given)[-2:]
    if not isinstance(password, str) or not isinstance(user, str | None):
        raise ValueError("a user or password that is no text")
    if not is_unicode(f"{user}{password}"):
        raise ValueError("a user or password that is no Unicode text: it has a lone surrogate")
    if not password:
        raise ValueError("an empty password")
    return (user, password) if user else (password,)


def _of_token(token: Any) -> tuple[str, ...] | None:
    """As redis-py does it; None where it is of another kind, and the provider has to be asked."""
    try:
        return _login((token.try_get("oid"), token.get_value()))
    except Exception:  # noqa: BLE001 (its class is anybody's)
        return None
