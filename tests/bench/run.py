"""What every group of measurements is given."""

from __future__ import annotations

from dataclasses import dataclass

from cachebus.tools.servers.redis import EmbeddedServer
from tests.bench.scale import Progress, Scale


@dataclass(frozen=True, slots=True)
class Bench:
    """One run: its server (no other uses it), how much is measured, and where progress goes."""

    server: EmbeddedServer
    scale: Scale
    progress: Progress
