"""What the parent tells a node process, and what the node tells back: JSON, a line each, over its stdin and stdout."""

from __future__ import annotations

from typing import Final

import msgspec

TICK_S: Final = 0.25
"""A node tells how it stands at every multiple of this on the machine's clock: all nodes' figures are of one moment."""
STOP: Final = b"stop\n"
GO: Final = b"go\n"


class Job(msgspec.Struct, frozen=True):
    """All that a node process needs to know. Holds credentials: never for an argument list or a log."""

    node: int
    """From 1 on."""
    nodes: int
    directory: str
    """Where the catalogue is, and where the node writes down what it sees."""
    url: str | None
    """The cache's server; None: no cachebus, but a dict with a TTL."""
    namespace: str
    bound_s: float
    l1_entries: int
    ttl_s: float
    rate: float
    """Accesses a second; 0: as fast as it goes."""
    write_ratio: float
    source_latency_s: float
    seed: int
    trace: str | None
    """A trace's path; None: the generator."""
    database: str | None = None
    """The PostgreSQL that has the catalogue; None: the file."""
    writes: str = "direct"
    """How a write is told: by its writer ("direct"), by a row ("outbox"), by the database's log ("cdc")."""
    writes_for_s: float | None = None
    """How long writes are made; None: as long as reads."""
    kafka: str | None = None
    """The Kafka that carries events; None: Redis does."""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The node is connected and waits for "go"."""

    node: int


class Tick(msgspec.Struct, tag="tick", frozen=True):
    """How a node stands. Counts are since its start."""

    node: int
    at_s: float
    accesses: int = 0
    reads: int = 0
    writes: int = 0
    failed: int = 0
    """Reads that raised."""
    repeated: int = 0
    """Invalidations that had to be called again."""
    l1_hits: int = 0
    l2_hits: int = 0
    loads: int = 0
    applied: int = 0
    lease_left_s: float = 0.0
    over: bool = False
    """Whether its part of the trace is at its end."""
    ways: dict[str, int] = {}
    """How often what comes seldom has come, by its name."""


class Done(msgspec.Struct, tag="done", frozen=True):
    """The node has stopped and written down all it saw."""

    last: Tick


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The node can't go on, for a reason that a person can mend: one line."""

    node: int
    error: str


class Said(msgspec.Struct, tag="said", frozen=True):
    """The node has carried out an order, and this is what came of it."""

    node: int
    order: str
    text: str = ""


Message = Ready | Tick | Done | Failed | Said
encode = msgspec.json.encode
decode_job = msgspec.json.Decoder(Job).decode
decode_message = msgspec.json.Decoder(Message).decode
