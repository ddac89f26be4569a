"""How a node process talks with its parent: orders come as lines on stdin, messages go as lines to stdout."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from cachebus.tools.harness.messages import Message, encode

LINE_MAX: Final = 1 << 20


async def hear() -> asyncio.StreamReader:
    """The orders."""
    reader = asyncio.StreamReader(limit=LINE_MAX)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def next_order(orders: asyncio.StreamReader) -> bytes:
    """The next line. Ends the process at once when there is none any more: then its parent has gone."""
    line = await orders.readline()
    if not line:
        os._exit(1)  # nobody is left to tell, and whatever hangs must not keep this process alive
    return line


def say(message: Message) -> None:
    """Tell the parent."""
    sys.stdout.buffer.write(encode(message) + b"\n")
    sys.stdout.buffer.flush()
