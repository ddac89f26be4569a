"""What a run is made of."""

from __future__ import annotations

from dataclasses import dataclass

from cachebus.cli.server_binaries import ServerBinary
from cachebus.cli.verify.stage import Fault


@dataclass(frozen=True, slots=True)
class Plan:
    """The choices. Times in seconds."""

    seed: int
    faults: tuple[Fault, ...]
    nodes: int = 4
    seconds: float = 30.0
    bound_s: float = 1.0
    rate: float = 2_000.0
    """Reads a second and node; 0: as fast as it goes."""
    write_rate: float = 20.0
    """Writes a second and node."""
    url: str | None = None
    """None: a server of our own."""
    binary: ServerBinary | None = None
    """Of our own server; None: the best there is."""


URL_WRITE_RATE = 2.0
"""Writes a second and node on somebody else's server: mostly it is read."""
