"""Errors of which asyncio need not complain."""

from __future__ import annotations

import asyncio
from typing import Any


def ignore_error(done: asyncio.Future[Any]) -> None:
    """Count what a task or future raised as seen: whoever waits for it is told by it, and perhaps nobody does."""
    if not done.cancelled():
        done.exception()
