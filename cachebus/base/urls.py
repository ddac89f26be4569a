"""Addresses as a user writes them: which there are, in one spelling, and without what nobody may read."""

from __future__ import annotations

from urllib.parse import urlsplit

CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", *CLUSTER_SCHEMES, "memory")
"""As `as_redis` gives them."""
_REDIS_WORDS = {"valkey": "redis", "valkeys": "rediss"}


def as_redis(url: str) -> str:
    """The URL with `redis` where its scheme says `valkey`, with or without TLS, Sentinels or a Cluster."""
    scheme, separator, rest = url.partition("://")
    plain, plus, kind = scheme.partition("+")
    return f"{_REDIS_WORDS.get(plain, plain)}{plus}{kind}://{rest}" if separator else url


def brokers(servers: str) -> str:
    """host:port, separated by commas, as they are to be; `ValueError`."""
    found = [server.strip() for server in servers.split(",")]
    for server in found:
        host, colon, port = server.rpartition(":")
        if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{server!r} is not host:port; expected something like kafka-1:9092,kafka-2:9092")
    return ",".join(found)


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
