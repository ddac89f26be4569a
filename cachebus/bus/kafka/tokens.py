"""The tokens of OAUTHBEARER."""

from __future__ import annotations

from typing import Any, Final

from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator

from cachebus.base.providers import provided

HEARD: Final = b"\x01"
"""What a client answers to a refusal (RFC 7628, 3.2.3)."""


class ProvidedTokens(AbstractTokenProvider):  # type: ignore[misc]
    """What a provider of the user's gives, in time."""

    def __init__(self, provider: Any, timeout_s: float) -> None:
        self._provider = provider
        self._provided = provided(provider, "token", _token)
        has_extensions = callable(getattr(provider, "extensions", None))
        self._extensions = provided(provider, "extensions", dict) if has_extensions else None
        """Of its own: a token that was given ends no trouble with these."""
        self._timeout_s = timeout_s

    async def token(self) -> str:
        """See `AbstractTokenProvider.token`; `ProviderFailed`."""
        return await self._provided.get(self._timeout_s)

    def extensions(self) -> dict[str, str]:
        """See `AbstractTokenProvider.extensions`; `ProviderFailed`."""
        if self._extensions is None:
            return {}
        try:
            given: dict[str, str] = dict(self._provider.extensions())
        except (Exception, SystemExit) as error:  # noqa: BLE001 (told by its class)
            raise self._extensions.failed(f"raised {type(error).__name__} for its extensions") from None
        self._extensions.gave()
        return given


def _token(given: Any) -> str:
    if not isinstance(given, str) or not given.isprintable() or not given:
        raise ValueError(f"{type(given).__name__}, and not the text of a token")
    return given


class _Authenticator(OAuthAuthenticator):  # type: ignore[misc]
    """Hears a refusal out. The driver takes one for a welcome, and is told no more than that the connection is lost."""

    async def step(self, payload: bytes | None) -> tuple[bytes, bool] | None:
        """What to send to what came; None where nothing is."""
        return (HEARD, True) if payload else await super().step(payload)


class DriverConnection(AIOKafkaConnection):  # type: ignore[misc]
    """The driver's own, with which a token that is refused is an error of logging in."""

    def authenticator_oauth(self) -> _Authenticator:
        """Whoever logs in with tokens."""
        return _Authenticator(sasl_oauth_token_provider=self._sasl_oauth_token_provider)
