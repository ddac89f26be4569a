"""Asks servers over one connection: a refusal is an answer, not an error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Self

from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.errors import CacheBusError, L2Unavailable
from cachebus.resp import Address, Connection, Reads

ASK_TIMEOUT_S: Final = 5.0
"""The doctor is patient: a slow server is a finding, not an outage."""


class Asker:
    """Asks over one connection. A refusal is an answer, not an error."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @classmethod
    async def open(cls, address: Address, connect_timeout_s: float) -> Asker:
        """Connect; `L2Unavailable` names host and port."""
        patience = Patience(ASK_TIMEOUT_S, connect_timeout_s, monotonic)
        try:
            return cls(await Connection.open(address, patience))
        except L2Unavailable as error:
            if "MISCONF" not in str(error):
                raise
            return cls(await _Echoing.open(address, patience))

    async def ask(self, *args: str | bytes | int) -> tuple[Any, str]:
        """The reply, and the refusal ("" if there is none). Raises if the connection is gone."""
        try:
            return await self.connection.call(*args), ""
        except CacheBusError as error:
            if self.connection.closed:
                raise
            return None, str(error)

    async def now_us(self) -> int:
        """The server's clock, in microseconds; `L2Unavailable` where it is not told."""
        told, refused = await self.ask("TIME")
        if refused:
            raise L2Unavailable(f"the server does not tell its clock: {refused}")
        seconds, micros = told
        return int(seconds) * 1_000_000 + int(micros)

    def close(self) -> None:
        """Give the connection back."""
        self.connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


async def asked(whom: Address, *questions: tuple[str, ...]) -> list[tuple[Any, str]]:
    """The answers to some questions, each as from `Asker.ask`, over a connection of its own. Never raises."""
    answers: list[tuple[Any, str]] = []
    try:
        asker = await Asker.open(whom, ASK_TIMEOUT_S)
        try:
            answers.extend([await asker.ask(*question) for question in questions])
        finally:
            asker.close()
    except CacheBusError as error:
        answers += [(None, str(error))] * (len(questions) - len(answers))
    return answers


class _Echoing(Connection):
    """A connection that logs in by ECHO. A server that can't save refuses PING as if it were a write, but not ECHO."""

    def call(self, *args: bytes | str | int, reads: Reads | None = None) -> asyncio.Future[Any]:
        """As `Connection.call`, with ECHO in place of PING."""
        return super().call(*(("ECHO", "PING") if args == ("PING",) else args), reads=reads)


def texts(flat: Sequence[bytes] | None) -> dict[str, str]:
    """A flat reply of names and values as a mapping."""
    words = [word.decode(errors="replace") for word in flat or ()]
    return dict(zip(words[::2], words[1::2], strict=False))
