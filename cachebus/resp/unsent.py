"""How many bytes the system itself still holds for a socket: on a slow link that is megabytes, for seconds."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

_INT_BYTES: Final = 4


def unsent(transport: asyncio.Transport) -> int:
    """Bytes written to the transport that have not left, as far as can be seen.

    On Linux those count that the other side's system has not acknowledged; elsewhere only what the transport keeps.
    """
    return transport.get_write_buffer_size() + _queued(transport)


if sys.platform == "linux":
    from fcntl import ioctl
    from termios import TIOCOUTQ

    def _queued(transport: asyncio.Transport) -> int:
        endpoint = transport.get_extra_info("socket")
        try:
            return int.from_bytes(ioctl(endpoint.fileno(), TIOCOUTQ, bytes(_INT_BYTES)), sys.byteorder)
        except (AttributeError, OSError, ValueError):
            return 0  # no socket, or none any more

else:

    def _queued(_transport: asyncio.Transport) -> int:
        return 0
