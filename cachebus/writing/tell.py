"""What whoever has changed L2 does next, be it a node or a producer."""

from __future__ import annotations

from typing import Protocol

from cachebus.core.ports import Change
from cachebus.keys.plan import Plan
from cachebus.writing.resend_buffer import ResendBuffer


class Publishes(Protocol):
    """What carries events where L2 does not publish them by itself."""

    async def publish(self, shard: int, message: bytes) -> None:
        """Send an event on."""
        ...


class Teller:
    """Tells of changes that L2 has taken."""

    def __init__(self, resend_buffer: ResendBuffer, bus: Publishes | None) -> None:
        """`bus`: None where the script has published already."""
        self._resend_buffer = resend_buffer
        self._bus = bus

    async def tell(self, plan: Plan, change: Change, body: bytes, called_s: float) -> None:
        """L2 has a change that was called at `called_s`: keep it for a repetition, then publish it. In this order,
        since a caller who is cancelled while it is published has changed L2 all the same."""
        self._resend_buffer.note(plan, change.epoch, called_s)
        if self._bus is not None:
            await self._bus.publish(plan.shard, change.event_header + body)
