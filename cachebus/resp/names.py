"""Host names: each is asked for once at a time in the process, by a thread of its own.

A name server that is silent holds a thread for as long as it is waited for, 10 s and more, and nothing gives that
thread back earlier. The loop's own threads are the application's: whoever tries anew while the last attempt is still
waited for would take one after the other, until none is left.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import Future
from ipaddress import ip_address
from threading import Thread
from typing import Final

from cachebus.base.home import in_each_child

_under_way: Final[dict[str, Future[list[str]]]] = {}
in_each_child(_under_way.clear)  # no thread comes along


async def addresses_of(host: str) -> list[str]:
    """The host's addresses, in the order to try them; an address is its own. All who ask meanwhile share one answer,
    and one who gives up ends nothing. Raises OSError, or UnicodeError for what can be no name."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return await asyncio.wrap_future(_asked(host))
        except (OSError, UnicodeError) as error:
            raise type(error)(*error.args) from None  # the answer is everybody's: a trace would grow with each
    return [host]


def _asked(host: str) -> Future[list[str]]:
    """The answer that is waited for already, or a new one."""
    fresh: Future[list[str]] = Future()
    fresh.set_running_or_notify_cancel()  # so who waits can't cancel it
    answer = _under_way.setdefault(host, fresh)
    if answer is fresh:
        # A daemon, one a name: the process ends without waiting for it, and no other name waits behind it.
        thread = Thread(target=_ask, args=(host, fresh), name=f"cachebus-resolve-{host}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            _under_way.pop(host, None)
            fresh.set_exception(OSError(f"no thread to look {host} up in: {error}"))
    return answer


def _ask(host: str, answer: Future[list[str]]) -> None:
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except BaseException as error:  # noqa: BLE001 (whoever waits is told, whatever it is)
        _under_way.pop(host, None)
        answer.set_exception(error)
    else:
        _under_way.pop(host, None)
        answer.set_result(list(dict.fromkeys(str(place[0]) for *_, place in found)))
