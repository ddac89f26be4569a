"""Where a cache has its keys from: the settings themselves, or a file or a callable that is asked again and again."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import suppress
from typing import Any, Final

from cachebus.base.kept import kept
from cachebus.base.providers import Provided, ProviderFailed, provided
from cachebus.errors import ConfigError
from cachebus.values.cipher import ValueCipher
from cachebus.values.secret_keys import keys_in, provider_in

READ_EVERY_S: Final = 30.0
"""So often keys are asked for anew: a new one that is first is used after so long."""
PAUSE_S: Final = 1.0
"""So long at least lies between two questions, however many records name a key that is not here."""


class KeySource:
    """Gives a cipher its keys."""

    def __init__(self, given: Any, cipher: ValueCipher, timeout_s: float) -> None:
        """`given`: what `encryption_of` gave. `timeout_s`: how long it may take to give them. `ConfigError`."""
        self._cipher = cipher
        self._timeout_s = timeout_s
        self._asked: Provided[dict[str, bytes]] | None = None
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        provider = provider_in(given)
        if provider is None:
            cipher.use(keys_in(given))
            return
        awaits = inspect.iscoroutinefunction(provider) or inspect.iscoroutinefunction(type(provider).__call__)
        self._asked = provided(provider, "__call__" if awaits else "", keys_in, "__call__")
        self._provider = provider  # known by its id, for as long as this is there
        cipher.on_unknown = self._wanted.set

    async def read(self) -> None:
        """Have the keys, before anything is read or written; `ConfigError`."""
        try:
            await self._read()
        except ProviderFailed as error:
            raise ConfigError(f"encryption (CACHEBUS_ENCRYPTION): {error}") from None

    def watch(self) -> None:
        """Ask for them anew from now on."""
        if self._asked is not None:
            self._task = kept(self._watch, "cachebus-keys")

    def close(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _watch(self) -> None:
        while True:
            await self._step()

    async def _step(self) -> None:
        """Ask for the keys anew after a while, or where a record names one that is not here. Where they don't come,
        those that are here stay."""
        await asyncio.sleep(PAUSE_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(READ_EVERY_S - PAUSE_S):
                await self._wanted.wait()
        self._wanted.clear()
        with suppress(ProviderFailed):  # told in the log
            await self._read()

    async def _read(self) -> None:
        if self._asked is not None:
            self._cipher.use(await self._asked.get(self._timeout_s))
