"""Where a server is and how to be let in, read from a URL. No error and no `str` here ever shows the password."""

from __future__ import annotations

import ssl as tls
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from cachebus.base.tls import FileContext, TlsFiles
from cachebus.base.unicode import is_unicode
from cachebus.base.urls import as_redis
from cachebus.errors import ConfigError
from cachebus.resp.credentials import ProvidedCredentials

DEFAULT_PORT: Final = 6379
_TLS_OPTIONS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs")
_OPTIONS: Final = ("db", "client_name", "username", "password", *_TLS_OPTIONS)
_FLAGS: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_ENCODE: Final = "percent-encode / # ? @ : [ ] % & in a user name or password"
_OF_OTHERS: Final = frozenset(
    (
        *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_read_size", "timeout", "protocol"),
        *("retry_on_timeout", "retry_on_error", "max_connections", "health_check_interval", "lib_name", "lib_version"),
        *("decode_responses", "encoding", "encoding_errors", "single_connection_client", "ssl", "read_from_replicas"),
        *("ssl_ca_path", "ssl_ca_data", "ssl_password", "ssl_min_version", "ssl_ciphers", "ssl_keyfile_password"),
    )
)
"""Options of other clients' URLs. Any other name may be the rest of a password that has a `&`."""


@dataclass(frozen=True, slots=True)
class Address:
    """One server. `path` is a unix socket's (host and port mean nothing then); `ssl` is None for plain TCP."""

    host: str = "localhost"
    port: int = DEFAULT_PORT
    path: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ssl: tls.SSLContext | None = field(default=None, repr=False)
    client_name: str | None = None
    credentials: ProvidedCredentials | None = field(default=None, repr=False)
    """Whom to ask who this is, in place of user and password."""

    def __post_init__(self) -> None:
        """`ConfigError` for what no server could be told."""
        if not is_unicode(f"{self.username}{self.password}"):
            raise ConfigError(f"Redis at {self}: user or password is no Unicode text: it has a lone surrogate")

    def __str__(self) -> str:
        """`host:port`, `[ipv6]:port` or the socket's path: fit for logs and errors."""
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Login:
    """How a client logs in, and how it tells servers by their certificates. What is given wins over the URL."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_certs: str | None = None
    """A PEM file of authorities; None is the system's."""
    check_hostname: bool = True
    client_name: str | None = None
    credentials: ProvidedCredentials | None = field(default=None, repr=False)
    """Whom to ask instead."""
    of_sentinels: ProvidedCredentials | None = field(default=None, repr=False)
    """The same for Sentinels, who know users of their own."""


AS_THE_URL_SAYS: Final = Login()


def parse_address(url: str, login: Login = AS_THE_URL_SAYS) -> Address:
    """Read `redis://user:password@host:port/db`, `rediss://` (TLS) or `unix:///path?db=0`; `valkey` says `redis`.

    Known options after `?`: db, client_name, username, password and, for TLS, ssl_ca_certs, ssl_certfile, ssl_keyfile,
    ssl_check_hostname and ssl_cert_reqs. Raises `ConfigError`, in one line that names host and port.
    """
    parts = _split(url)
    host, port, path = _place(parts)
    where = path or f"{host}:{port}"
    options = _options(parts, where)
    return Address(
        host,
        port,
        path,
        _db(parts, options, where),
        None if login.credentials else login.username or _decoded(parts.username) or options.get("username"),
        None if login.credentials else login.password or _decoded(parts.password) or options.get("password"),
        _tls(parts, options, where, login),
        login.client_name or options.get("client_name"),
        login.credentials,
    )


def must_be_unicode(url: str) -> None:
    """`ConfigError`, which quotes none of it."""
    if not is_unicode(url):
        raise ConfigError("Redis URL: no Unicode text: it has a lone surrogate")


def _split(url: str) -> SplitResult:
    must_be_unicode(url)
    try:
        parts = urlsplit(as_redis(url))
    except ValueError:  # whose text would quote the URL
        raise ConfigError(f"Redis URL: malformed ({_ENCODE}; an IPv6 host stands in brackets)") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ConfigError("Redis URL: must begin with redis://, rediss:// or unix://")
    # These are signs of a password that was not encoded: what follows would then name a piece of it as host or port.
    if "#" in url or "@" in parts.query or ("@" in parts.path and parts.scheme != "unix"):
        raise ConfigError(f"Redis URL: a '#' or '@' out of place ({_ENCODE})")
    return parts


def _place(parts: SplitResult) -> tuple[str, int, str | None]:
    """Host, port and socket path."""
    if parts.scheme == "unix":
        if not parts.path or parts.hostname:
            raise ConfigError("Redis URL: unix:// takes the absolute path of a socket, as in unix:///run/redis.sock")
        return "", 0, unquote(parts.path)
    host = unquote(parts.hostname or "localhost")
    try:
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not port:
        # Without a host, or when it is no number, what stands there may be a password whose '@host' was forgotten.
        shown = parts.netloc.rpartition(":")[2]
        shown = f"{host}:{shown}" if parts.hostname and shown.isdecimal() and len(shown) <= 5 else host
        raise ConfigError(f"Redis URL for {shown}: the port must be a number from 1 to 65535 ({_ENCODE})") from None
    return host, port, None


def _decoded(part: str | None) -> str | None:
    return unquote(part) if part else None


def _options(parts: SplitResult, where: str) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(set(options) - set(_OPTIONS), key=lambda name: (name not in _OF_OTHERS, name)):
        shown = repr(unknown[0]) if unknown[0] in _OF_OTHERS else f"({_ENCODE})"
        raise ConfigError(f"Redis URL for {where}: unknown option {shown}; known are {', '.join(_OPTIONS)}")
    return options


def _db(parts: SplitResult, options: dict[str, str], where: str) -> int:
    text = options.get("db") or ("" if parts.scheme == "unix" else parts.path.strip("/"))
    if not text:
        return 0
    if not (text.isdecimal() and text.isascii()):
        raise ConfigError(f"Redis URL for {where}: the database after '/' must be a number ({_ENCODE})")
    return int(text)


def _tls(parts: SplitResult, options: dict[str, str], where: str, login: Login) -> tls.SSLContext | None:
    given = [option for option in _TLS_OPTIONS if option in options]
    if parts.scheme != "rediss":
        if given or login.ca_certs:
            raise ConfigError(f"Redis URL for {where}: {given[0] if given else 'ca_certs'} needs rediss://")
        return None
    verify = options.get("ssl_cert_reqs", "required")
    flag = options.get("ssl_check_hostname", "true").lower()
    if verify not in ("required", "none") or flag not in _FLAGS:
        raise ConfigError(f"Redis URL for {where}: ssl_cert_reqs is required or none, ssl_check_hostname true or false")
    files = TlsFiles(
        login.ca_certs or options.get("ssl_ca_certs"),
        options.get("ssl_certfile"),
        options.get("ssl_keyfile"),
        check_hostname=login.check_hostname and _FLAGS[flag],
        verify=verify == "required",
    )
    try:
        return FileContext(files)
    except OSError as error:
        raise ConfigError(f"Redis URL for {where}: cannot load the TLS certificates: {error.strerror}") from error
