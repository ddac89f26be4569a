"""Checks of connections, buffers and limits: what the server disconnects, and what it lets grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cachebus.tools.doctor.facts import Facts, size, whole
from cachebus.tools.doctor.finding import Finding, Severity, config_set, ok, unknown

PUBSUB: Final = "pubsub 32mb 8mb 60"
MB: Final = 1 << 20
SMALL_BYTES: Final = 8 * MB
LONGEST_IDLE_S: Final = 300
LIMIT_MS: Final = 5000
SHORTEST_LIMIT_MS: Final = 1000
MOST_ENTRIES: Final = 10_000
CROWDED: Final = 0.8

LEAST_SIZE_BYTES: Final = 32 * MB
USUAL_SIZES: Final = {"proto-max-bulk-len": "512mb", "client-query-buffer-limit": "1gb", "maxmemory-clients": "0"}
"""What servers have of themselves."""


def buffers(facts: Facts) -> Iterator[Finding]:
    """Check when the server disconnects a node that reads events, or a reply, too slowly."""
    text = facts.server.config.get("client-output-buffer-limit")
    if text is None:
        yield unknown("event buffers", facts.server.config_refused, "A node that is cut off catches up from the log.")
        return
    words = text.split()
    limits = {words[i]: (whole(words[i + 1]) or 0, whole(words[i + 2]) or 0) for i in range(0, len(words) - 3, 4)}
    hard, soft = limits.get("pubsub", (0, 0))
    commands, conf = config_set(client_output_buffer_limit=PUBSUB)
    if not hard:
        yield Finding(
            "event buffers",
            Severity.ADVICE,
            "client-output-buffer-limit sets no hard limit for pubsub",
            "A node that hangs makes the server keep all its events in memory.",
            mend=commands,
            conf=conf,
        )
    elif min(hard, soft or hard) < SMALL_BYTES:
        yield Finding(
            "event buffers",
            Severity.ADVICE,
            f"client-output-buffer-limit for pubsub is {size(hard)}, and {size(soft)} for a while",
            "A burst of invalidations cuts off nodes that are a little slow. Each then catches up from the log: "
            "some milliseconds, never a stale read beyond the bound.",
            mend=commands,
            conf=conf,
        )
    else:
        yield ok("event buffers", f"a node is cut off when {size(hard)} of events wait for it", "It then catches up.")
    hard, soft = limits.get("normal", (0, 0))
    tightest = min((limit for limit in (hard, soft) if limit), default=0)
    if tightest and tightest < SMALL_BYTES:
        commands, conf = config_set(client_output_buffer_limit="normal 0 0 0")
        yield Finding(
            "reply buffers",
            Severity.ADVICE,
            f"client-output-buffer-limit for normal clients is {size(tightest)}",
            "One read of many records may be larger: the connection is cut off, and those reads fail.",
            mend=commands,
            conf=conf,
        )


def idling(facts: Facts) -> Iterator[Finding]:
    """Check what the server does with idle connections."""
    server = facts.server
    timeout, keepalive = server.setting("timeout"), server.setting("tcp-keepalive")
    if timeout is None or keepalive is None:
        yield unknown("idle connections", server.config_refused, "Nodes speak all the time; producers need not.")
        return
    if timeout:
        commands, conf = config_set(timeout="0")
        yield Finding(
            "idle connections",
            Severity.ADVICE,
            f"timeout is {timeout} s",
            "A node speaks at every probe, but a producer that is silent for so long is cut off, and the invalidation "
            "that it sends at that very moment raises.",
            mend=commands,
            conf=conf,
        )
    if not 0 < keepalive <= LONGEST_IDLE_S:
        commands, conf = config_set(tcp_keepalive="60")
        yield Finding(
            "keepalive",
            Severity.ADVICE,
            f"tcp-keepalive is {keepalive}",
            "Connections of nodes whose machine has vanished stay, with their buffers, and count against maxclients.",
            mend=commands,
            conf=conf,
        )
    if not timeout and 0 < keepalive <= LONGEST_IDLE_S:
        yield ok("idle connections", f"timeout is 0, tcp-keepalive {keepalive} s")


def clients(facts: Facts) -> Iterator[Finding]:
    """Check that there is room for more nodes. Each has two connections."""
    server = facts.server
    most = server.setting("maxclients")
    most = server.number("maxclients") if most is None else most
    now = server.number("connected_clients")
    if most is None or now is None:
        yield unknown("clients", server.config_refused or server.info_refused or "it does not tell")
    elif now >= CROWDED * most:
        commands, conf = config_set(maxclients=str(max(10_000, 2 * most)))
        yield Finding(
            "clients",
            Severity.ADVICE,
            f"{now:,} of {most:,} connections are in use",
            "A node takes two. Where none is left it cannot start, or not come back after an outage.",
            mend=commands,
            conf=conf,
            otherwise="the server's limit of open files (ulimit -n) must allow it",
        )
    else:
        yield ok("clients", f"{now:,} of {most:,} connections are in use")


def sizes(facts: Facts) -> Iterator[Finding]:
    """Check that values of any usual size get through, and that nodes are not cut off for what is on its way."""
    small = [(name, has) for name in USUAL_SIZES if 0 < (has := facts.server.setting(name) or 0) < LEAST_SIZE_BYTES]
    if small:
        commands, conf = config_set(**{name.replace("-", "_"): USUAL_SIZES[name] for name, _ in small})
        yield Finding(
            "sizes",
            Severity.ADVICE,
            "; ".join(f"{name} is {size(has)}" for name, has in small),
            "A value above proto-max-bulk-len is refused; above the others the server cuts connections: of whoever "
            "sends so much, or of nodes while all of them together have so much on its way.",
            mend=commands,
            conf=conf,
        )


def scripts(facts: Facts) -> Iterator[Finding]:
    """Check after which time of a running script other clients get BUSY."""
    config = facts.server.config
    name = "busy-reply-threshold" if "busy-reply-threshold" in config else "lua-time-limit"
    limit = facts.server.setting(name)
    if limit is None:
        yield unknown("script limit", facts.server.config_refused)
    elif 0 < limit < SHORTEST_LIMIT_MS:
        commands, conf = config_set(**{name: str(LIMIT_MS)})
        yield Finding(
            "script limit",
            Severity.ADVICE,
            f"{name} is {limit} ms",
            "While a script runs for longer than that, everybody else is refused (BUSY), where waiting would do.",
            mend=commands,
            conf=conf,
        )
    else:
        yield ok("script limit", f"{name} is {limit} ms", "Ours take microseconds; this is about other people's.")


def trimming(facts: Facts) -> Iterator[Finding]:
    """Check that the log can be trimmed. The server trims whole nodes of the stream."""
    server = facts.server
    entries, volume = server.setting("stream-node-max-entries"), server.setting("stream-node-max-bytes")
    if entries is None or volume is None:
        yield unknown("log trimming", server.config_refused)
    elif (not entries or entries > MOST_ENTRIES) and not 0 < volume <= MB:
        commands, conf = config_set(stream_node_max_entries="100", stream_node_max_bytes="4096")
        yield Finding(
            "log trimming",
            Severity.ADVICE,
            f"stream-node-max-entries is {entries}, stream-node-max-bytes {volume}",
            "The log is trimmed by whole nodes of that size: it grows far beyond log_max_len, or for ever.",
            mend=commands,
            conf=conf,
        )
    else:
        yield ok("log trimming", f"by nodes of {entries} entries or {volume} bytes")


def keyspace_events(facts: Facts) -> Iterator[Finding]:
    """Check whether the server publishes every change of a key, which cachebus does not need."""
    events = facts.server.config.get("notify-keyspace-events")
    if events:
        commands, conf = config_set(notify_keyspace_events="")
        yield Finding(
            "keyspace events",
            Severity.ADVICE,
            f"notify-keyspace-events is {events}",
            "cachebus does not use them; each change of a key then costs the server a message. Mend it if nobody else "
            "needs them.",
            mend=commands,
            conf=conf,
        )
