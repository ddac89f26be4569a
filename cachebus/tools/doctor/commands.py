"""Commands of cachebus that a finding names, for a shell: they go to the namespace that was looked at, and no other."""

from __future__ import annotations

import shlex
from typing import Final

from cachebus.base.urls import safe
from cachebus.errors import ConfigError
from cachebus.settings import Settings

LEFT_OUT: Final = " (without the URL's login and options: set CACHEBUS_URL to the whole of it, and leave out --url)"


def forgetting(settings: Settings, node: str) -> tuple[str, ...]:
    """The command that takes a node's row away."""
    return (f"cachebus nodes forget {shlex.join([*_given(settings), '--', node])}",)


def note_on_url(settings: Settings) -> str:
    """What is to be known of the URL in such a command; "" if nothing is."""
    return LEFT_OUT if "--url" in _given(settings) and not _showable(settings) else ""


def _given(settings: Settings) -> list[str]:
    """The options that name server and namespace, where the environment does not name the same."""
    usual = _usual()
    url, words = settings.url.get_secret_value(), list[str]()
    if usual is None or usual.url.get_secret_value() != url:
        words += ["--url", url if _showable(settings) else settings.safe_url]
    if usual is None or usual.namespace != settings.namespace:
        words += ["--namespace", settings.namespace]
    return words


def _showable(settings: Settings) -> bool:
    """Whether no part of the URL may be a secret."""
    url = settings.url.get_secret_value()
    return url == safe(url) or not ("@" in url or "password" in url.lower())


def _usual() -> Settings | None:
    """What a command goes by that is told nothing."""
    try:
        return Settings()
    except ConfigError:
        return None
