"""From an address to a link that the server has let in."""

from __future__ import annotations

import asyncio
import ssl as tls
from typing import Any, Final

from cachebus.base.masking import masked
from cachebus.errors import CacheBusError, L2Unavailable
from cachebus.resp.address import Address
from cachebus.resp.dial import dialled
from cachebus.resp.link import Link, OnLost
from cachebus.resp.names import addresses_of
from cachebus.resp.reauth import Renewal

_NO_TLS: Final = "; if this server speaks no TLS, let the URL begin with redis://"
_TLS: Final = "; if this server speaks TLS, let the URL begin with rediss://"
LET_IN_MAX: Final = 1_000
_let_in: Final[set[str]] = set()
"""Addresses at which this process was let in without TLS: one that hangs later speaks no other protocol for that."""


async def join(link: Link, address: Address, connect_timeout_s: float, on_lost: OnLost | None) -> None:
    """Connect and log in; only from then on does `on_lost` hear of a loss. Raises `L2Unavailable`, one line."""
    renewal = None if address.credentials is None else Renewal(link, address.credentials)
    try:
        await _join_mapped(link, address, connect_timeout_s, renewal)
    except BaseException:  # cancellation too: nobody else knows of the socket yet
        link.close()
        raise
    if renewal is not None:
        renewal.joined()
    link.on_lost = on_lost
    if address.ssl is None and len(_let_in) < LET_IN_MAX:
        _let_in.add(str(address))


class NoPrimary(L2Unavailable):
    """The server says that it is none."""


async def must_be_primary(link: Link, address: Address) -> None:
    """Have the server say that it is a primary; `NoPrimary`, `L2Unavailable`."""
    role = await link.call("ROLE")
    if not isinstance(role, list) or not role or role[0] != b"master":
        raise NoPrimary(f"{address} is no primary, or not any more")


async def _join_mapped(link: Link, address: Address, connect_timeout_s: float, renewal: Renewal | None) -> None:
    try:
        # Before the time to connect begins: it has a time of its own.
        login = _login_of(address) if renewal is None else await renewal.first_login()
        async with asyncio.timeout(connect_timeout_s):
            await _connect(link, address, connect_timeout_s)
            await _log_in(link, address, login)
    except CacheBusError:
        raise
    except TimeoutError:
        # A link hears of its socket only once TLS is agreed on; a server without waits for the rest of a line.
        hint = _NO_TLS if address.ssl is not None and not link.connected else ""
        raise L2Unavailable(f"cannot connect to {address}: no answer in {connect_timeout_s:g} s{hint}") from None
    except (OSError, UnicodeError) as error:
        hint = _NO_TLS if isinstance(error, tls.SSLError) and "WRONG_VERSION_NUMBER" in str(error.reason) else ""
        raise L2Unavailable(f"cannot connect to {address}: {_why(error)}{hint}") from error


async def _connect(link: Link, address: Address, timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    if address.path is not None:
        await loop.create_unix_connection(lambda: link, address.path)
        return
    how: dict[str, Any] = {}
    if address.ssl is not None:
        how = {"ssl": address.ssl, "server_hostname": address.host, "ssl_handshake_timeout": timeout_s}
    there = await dialled(await addresses_of(address.host), address.port)
    try:
        await loop.create_connection(lambda: link, sock=there, **how)
    except BaseException:
        there.close()
        raise


def _login_of(address: Address) -> tuple[str, ...]:
    """The arguments of AUTH that the URL or the settings have; none where nobody is asked who it is."""
    if not address.username and not address.password:
        return ()
    return (*([address.username] if address.username else []), address.password or "")


async def _log_in(link: Link, address: Address, login: tuple[str, ...]) -> None:
    """All questions in one packet. The PING is for servers that say no (or LOADING) only to a real command."""
    questions = []
    if login:
        questions.append(link.call("AUTH", *login))
    if address.credentials is not None and not link.takes_auth:
        # Who listens may log in anew only in RESP3. A server that has none is left for that.
        link.call("HELLO", 3).add_done_callback(lambda answer: _speaks_resp3(link, answer))
    if address.db:
        questions.append(link.call("SELECT", address.db))
    questions.append(link.call("PING"))
    if address.client_name:
        # A courtesy to whoever reads CLIENT LIST: a server or an ACL that forbids it is no reason to stay away. It is
        # the last, since why a server lets nobody in is the answer to the first question that it has read.
        _ = link.call("CLIENT", "SETNAME", address.client_name)
    for question in questions:
        try:
            await question
        except CacheBusError as error:
            if link.closed:
                if address.ssl is not None or address.path is not None or link.answered or str(address) in _let_in:
                    raise
                raise L2Unavailable(f"{error}{_TLS}") from None
            raise L2Unavailable(f"{address} refused: {masked(str(error), login[-1:])}") from None


def _speaks_resp3(link: Link, answer: asyncio.Future[Any]) -> None:
    link.takes_auth = not answer.cancelled() and answer.exception() is None


def _why(error: OSError | UnicodeError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
