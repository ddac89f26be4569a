"""The node's side of its talk with the parent: orders are lines on stdin, messages are lines on stdout."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from cachebus.tools.harness.messages import Message, encode

LINE_MAX: Final = 1 << 20


async def hear() -> asyncio.StreamReader:
    """The stream of orders."""
    reader = asyncio.StreamReader(limit=LINE_MAX)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def next_order(orders: asyncio.StreamReader) -> bytes:
    """The next order. If the stream has ended, the parent is gone, and this ends the process at once."""
    line = await orders.readline()
    if not line:
        os._exit(1)  # at once, so that nothing that hangs keeps this process alive
    return line


def say(message: Message) -> None:
    """Send the parent a message."""
    sys.stdout.buffer.write(encode(message) + b"\n")
    sys.stdout.buffer.flush()
