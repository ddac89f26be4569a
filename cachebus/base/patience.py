"""How long servers are waited for."""

from __future__ import annotations

from typing import NamedTuple

from cachebus.base.clock import Clock


class Patience(NamedTuple):
    """How long servers are waited for, in seconds, and by which clock."""

    timeout_s: float
    """For an answer, without a sign of life."""
    connect_timeout_s: float
    clock: Clock
