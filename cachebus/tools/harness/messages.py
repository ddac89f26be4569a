"""The messages between the parent and a node process: lines of JSON, over the node's stdin and stdout."""

from __future__ import annotations

from typing import Final

import msgspec

TICK_S: Final = 0.25
"""A node sends its figures at every multiple of this on the machine's clock, so that all nodes' figures are of one
moment."""
STOP: Final = b"stop\n"
GO: Final = b"go\n"


class Job(msgspec.Struct, frozen=True):
    """All that a node process needs to know. Holds credentials, so it is never put into an argument list or a log."""

    node: int
    """Counts from 1."""
    nodes: int
    directory: str
    """The folder of the catalogue and of the history logs."""
    url: str | None
    """The cache's server; None for a dict with a TTL in place of cachebus."""
    namespace: str
    bound_s: float
    l1_entries: int
    ttl_s: float
    rate: float
    """Accesses a second; 0 for as fast as possible."""
    write_ratio: float
    source_latency_s: float
    seed: int
    trace: str | None
    """The path of a trace; None for the generator."""
    database: str | None = None
    """The PostgreSQL that has the catalogue; None for the SQLite file."""
    writes: str = "direct"
    """Who invalidates a write: its writer ("direct"), or a worker that reads a row ("outbox") or the log ("cdc")."""
    writes_for_s: float | None = None
    """How long writes are made, in seconds; None for as long as reads."""
    kafka: str | None = None
    """The Kafka that carries the events; None for Redis."""


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The node is connected and waits for "go"."""

    node: int


class Tick(msgspec.Struct, tag="tick", frozen=True):
    """The figures of a node. Counts are since its start."""

    node: int
    at_s: float
    accesses: int = 0
    reads: int = 0
    writes: int = 0
    failed: int = 0
    """Reads that raised."""
    repeated: int = 0
    """Invalidations that were repeated."""
    l1_hits: int = 0
    l2_hits: int = 0
    loads: int = 0
    applied: int = 0
    lease_left_s: float = 0.0
    over: bool = False
    """Whether its part of the trace has ended."""
    ways: dict[str, int] = {}
    """How often rare cases happened, by their names."""


class Done(msgspec.Struct, tag="done", frozen=True):
    """The node has stopped, and written its history logs."""

    last: Tick


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The node can't go on, for a reason that the user can repair, in one line."""

    node: int
    error: str


class OrderDone(msgspec.Struct, tag="said", frozen=True):
    """The node has carried out an order; `text` is its answer."""

    node: int
    order: str
    text: str = ""


Message = Ready | Tick | Done | Failed | OrderDone
encode = msgspec.json.encode
decode_job = msgspec.json.Decoder(Job).decode
decode_message = msgspec.json.Decoder(Message).decode
