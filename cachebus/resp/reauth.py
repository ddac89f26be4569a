"""Connections that stay open log in anew: some servers end those that do not before what they came in with expires."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from cachebus.base.log import logger
from cachebus.base.masking import masked
from cachebus.base.providers import ProviderFailed
from cachebus.errors import L2Unavailable
from cachebus.resp.credentials import ProvidedCredentials
from cachebus.resp.link import Link

AGAIN_S: Final = 5.0
"""So long after a login that could not be renewed it is tried again."""


class Renewal:
    """Has a connection log in anew: when its provider says so, and every `reauth_interval_s`.

    It listens from before the first login is asked for. What the provider says while the connection is made is done
    once it is there: that login may be of the credentials before, and nobody would say so again.
    """

    def __init__(self, link: Link, credentials: ProvidedCredentials) -> None:
        self._link = link
        self._credentials = credentials
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._joined = False
        self._first: tuple[str, ...] = ()
        """What the connection has first logged in with."""
        self._told: list[tuple[str, ...] | None] = []
        """What the provider has said meanwhile; None where it has to be asked."""
        self._last: tuple[str, ...] = ()
        """What the connection has logged in with last."""
        self._asked_s = float("-inf")
        """When the provider was asked last, for a connection that is there."""
        self._told_as_asked = False
        """Whether it has said since then that it has to be asked."""
        link.renewal = self
        credentials.source.renewals.add(self)

    async def first_login(self) -> tuple[str, ...]:
        """What to log in with; `ProviderFailed`."""
        self._first = self._last = await self._credentials.login()
        return self._first

    def joined(self) -> None:
        """The connection is there."""
        self._joined = True
        if self._told and self._told[-1] != self._first:
            self._begin(self._told[-1])
        else:
            self._later(self._credentials.reauth_interval_s)

    def stop(self) -> None:
        """The connection has ended."""
        self._credentials.source.renewals.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def soon(self, login: tuple[str, ...] | None) -> None:
        """Log in with this, or with what the provider gives then; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._hear, login)
        except RuntimeError:  # its loop has ended
            self._credentials.source.renewals.discard(self)

    def _hear(self, login: tuple[str, ...] | None) -> None:
        """Some providers say that there is something new because they are asked: who asked at once would never end."""
        if login is None and self._loop.time() - self._asked_s < AGAIN_S:
            self._told_as_asked = True
            self._later(AGAIN_S)
        else:
            self._begin(login)

    def _later(self, after_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if after_s is not None:
            # Not all at once: a fleet that started together would storm whoever gives the secrets.
            self._timer = self._loop.call_later(after_s * random.uniform(0.8, 1.0), self._begin, None)

    def _begin(self, login: tuple[str, ...] | None) -> None:
        if self._link.closed:
            return
        if not self._joined:
            self._told.append(login)
            return
        if self._task is not None:
            self._task.cancel()
        if login is None:
            self._asked_s, self._told_as_asked = self._loop.time(), False
        self._task = self._loop.create_task(self._renew(login), name="cachebus-reauth")

    async def _renew(self, login: tuple[str, ...] | None) -> None:
        try:
            login = login or await self._credentials.login()
            if self._link.takes_auth:
                await self._link.call("AUTH", *login)
            else:
                self._link.give_up("the next connection has the new credentials")
                return
        except ProviderFailed:  # the provider's own line tells of it
            self._later(AGAIN_S)
        except L2Unavailable as error:
            self._failed(masked(str(error), login or ()))
        except Exception as error:  # noqa: BLE001 (told by its class: a text may quote what could not be sent)
            self._failed(type(error).__name__)
        else:
            is_news, self._last = login != self._last, login
            self._later(AGAIN_S if self._told_as_asked and is_news else self._credentials.reauth_interval_s)

    def _failed(self, why: str) -> None:
        if not self._link.closed:
            logger.warning("{}: the login is not renewed yet: {}", self._link.where, why)
            self._later(AGAIN_S)
