"""Addresses as a user writes them: which there are, in one spelling, and without what nobody may read."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", *CLUSTER_SCHEMES, "memory")
"""As `as_redis` gives them."""
_HOST = re.compile(r"[\w.-]+|\[[0-9A-Fa-f:.]+\]").fullmatch
"""A name, an address, or one of IPv6 in brackets."""
_REDIS_WORDS = {"valkey": "redis", "valkeys": "rediss"}


def as_redis(url: str) -> str:
    """The URL with `redis` where its scheme says `valkey`, with or without TLS, Sentinels or a Cluster."""
    scheme, separator, rest = url.partition("://")
    plain, plus, kind = scheme.partition("+")
    return f"{_REDIS_WORDS.get(plain, plain)}{plus}{kind}://{rest}" if separator else url


def brokers(servers: str) -> str:
    """host:port, separated by commas, as they are to be; `ValueError`, which quotes none: a secret may stand there."""
    found = [server.strip() for server in servers.split(",")]
    for number, server in enumerate(found, 1):
        if fault := _fault_of_broker(server):
            raise ValueError(
                f"broker {number} of {len(found)} {fault}; expected something like kafka-1:9092,kafka-2:9092"
            )
    return ",".join(found)


def _fault_of_broker(server: str) -> str:
    if "@" in server:
        return (
            "has a user, which is for kafka_username (CACHEBUS_KAFKA_USERNAME) and kafka_password "
            "(CACHEBUS_KAFKA_PASSWORD)"
        )
    if "://" in server:
        return "is a URL, and not host:port alone"
    host, _, port = server.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536
    return "" if _HOST(host) and is_port else "is not host:port"


def safe(url: str) -> str:
    """What may be shown of a URL. A password with an unescaped `/`, `#` or `?` ends up anywhere in the parts, so
    whatever has an `@` behind the host is left out."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "..."
    if scheme == "memory":
        return url
    if "+" in scheme:  # several servers
        hosts, slash, path = rest.partition("?")[0].partition("/")
        return f"{scheme}://..." if "@" in path else f"{scheme}://{hosts.rpartition('@')[2]}{slash}{path}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return f"{scheme}://..."
    if "@" in rest[len(parts.netloc) :]:
        return f"{scheme}://..."
    where = f"[{host}]" if ":" in host else host
    return f"{scheme}://{where}{f':{port}' if port else ''}{parts.path}"
