"""URLs that name several servers: Sentinels, or nodes of a Cluster. What follows the scheme is as in `redis://`.

`redis+sentinel://user:password@host1:26379,host2:26379/SERVICE/0` and `redis+cluster://user:password@host1:6379,host2:6379`;
with `rediss+` they speak TLS, and `valkey` says `redis`. User and password are those of the data servers; Sentinels
that want a login find it in the options `sentinel_username` and `sentinel_password`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode

from cachebus.base.urls import as_redis
from cachebus.errors import ConfigError
from cachebus.resp.address import AS_THE_URL_SAYS, Address, Login, must_be_unicode, parse_address

SENTINEL: Final = "sentinel"
CLUSTER: Final = "cluster"
SENTINEL_PORT: Final = 26379


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What a URL says: the `kind` ("", "sentinel" or "cluster"), whom to ask, and how to log in to the data servers."""

    kind: str
    addresses: list[Address]
    """The server; the Sentinels, with their own login; or nodes of the Cluster."""
    template: Address
    """A data server's address, of which host and port mean nothing for Sentinels."""
    service: str = ""


def parse_endpoints(url: str, login: Login = AS_THE_URL_SAYS) -> Endpoints:
    """Read any URL of a server, of Sentinels or of a Cluster. `ConfigError`."""
    must_be_unicode(url)
    url = as_redis(url)
    scheme, _, rest = url.partition("://")
    plain, _, kind = scheme.partition("+")
    if not kind:
        address = parse_address(url, login)
        return Endpoints("", [address], address)
    if kind not in (SENTINEL, CLUSTER) or plain not in ("redis", "rediss"):
        raise ConfigError("Redis URL: must begin with redis+sentinel://, redis+cluster:// or the same with rediss+")
    authority, _, path = rest.partition("?")[0].partition("/")
    options = dict(parse_qsl(rest.partition("?")[2], keep_blank_values=True))
    user, _, hosts = authority.rpartition("@")
    # One of them after the other as an ordinary URL: what is wrong with it is told as there.
    urls = [_single(plain, user, host, kind) for host in hosts.split(",")]
    if kind == CLUSTER:
        if path.strip("/") not in ("", "0"):
            raise ConfigError("Redis URL: a Cluster has no database but 0")
        query = f"?{urlencode(options)}" if options else ""
        addresses = [parse_address(each + query, login) for each in urls]
        return Endpoints(kind, addresses, addresses[0])
    return _of_sentinels(urls, path, options, login)


def _of_sentinels(urls: list[str], path: str, options: dict[str, str], login: Login) -> Endpoints:
    service, _, db = path.strip("/").partition("/")
    if not service:
        raise ConfigError(
            "Redis URL: name the service behind the Sentinels, as in redis+sentinel://host:26379/mymaster/0"
        )
    username, password = options.pop("sentinel_username", None), options.pop("sentinel_password", None)
    query = f"?{urlencode(options)}" if options else ""
    template = parse_address(f"{urls[0]}/{db}{query}", login)
    asked = [parse_address(each, login) for each in urls]
    asked = [
        replace(each, ssl=template.ssl, username=username, password=password, credentials=login.of_sentinels)
        for each in asked
    ]
    return Endpoints(SENTINEL, asked, template, unquote(service))


def _single(plain: str, user: str, host: str, kind: str) -> str:
    if not host:
        raise ConfigError("Redis URL: a host is missing between two commas")
    bare = host.rpartition("]")[2] if host.startswith("[") else host
    if kind == SENTINEL and ":" not in bare:
        host = f"{host}:{SENTINEL_PORT}"
    return f"{plain}://{user}@{host}" if user else f"{plain}://{host}"
