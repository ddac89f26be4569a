"""An address whose host takes no notice of who calls, as one that is away behind a firewall."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

HOST: Final = "127.0.0.1"
NOTICED_S: Final = 0.2


@contextmanager
def swallowing() -> Iterator[str]:
    """The address, host:port. Its queue of connections is full, and the kernel drops each further SYN."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server((HOST, 0), backlog=0))
        while True:
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(server.getsockname())
            _, connected, _ = select.select([], [caller], [], NOTICED_S)
            if not connected:
                break
        yield f"{HOST}:{server.getsockname()[1]}"
