"""TLS by files that are replaced while a process runs: the next connection has the new ones."""

from __future__ import annotations

import ssl
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from cachebus.base.log import logger
from cachebus.base.weak import now_in

Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in PEM, and what is verified by them."""

    ca_certs: str | None = None
    """Of authorities; None is the system's."""
    certfile: str | None = None
    """Of this client's certificate, if it shows one."""
    keyfile: str | None = None
    """Of its key, where that lies apart."""
    check_hostname: bool = True
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """A context by what the files hold now; OSError, whose `strerror` begins with the file's name."""
        try:
            context = ssl.create_default_context(cafile=self.ca_certs)
        except OSError as error:
            raise _naming(self.ca_certs or "the system's authorities", error) from error
        if self.certfile is not None:
            try:
                # A key that asks for its password would hold the process up at a terminal.
                context.load_cert_chain(self.certfile, self.keyfile, password=lambda: "")
            except OSError as error:
                raise _naming(_culprit(self.certfile, self.keyfile), error) from error
        self.demand(context)
        return context

    def demand(self, context: ssl.SSLContext) -> None:
        """Have the context verify what is to be verified."""
        context.check_hostname = self.check_hostname and self.verify
        context.verify_mode = ssl.CERT_REQUIRED if self.verify else ssl.CERT_NONE

    def stamps(self) -> tuple[Stamp, ...]:
        """Differs where a file was replaced."""
        return tuple(_stamp(name) for name in (self.ca_certs, self.certfile, self.keyfile))


def _naming(name: str, error: OSError) -> OSError:
    return OSError(error.errno, f"{name}: {error.strerror or error}")


def _culprit(certfile: str, keyfile: str | None) -> str:
    """Which of them can't be used: neither OpenSSL nor the system says that."""
    if keyfile is None:
        return certfile
    for name in (certfile, keyfile):
        try:
            with Path(name).open("rb"):
                pass
        except OSError:
            return name
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certfile)
    except OSError:
        return certfile
    return f"{keyfile}, as the key of {certfile}"


def _stamp(name: str | None) -> Stamp:
    if name is None:
        return None
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class FileContext(ssl.SSLContext):
    """A context of files. Each connection that begins has what they hold then; while they hold nothing that can be
    used, as between two writes, what they held before."""

    _files: TlsFiles
    _made: ssl.SSLContext
    _stamps: tuple[Stamp, ...]
    _refused: tuple[Stamp, ...] | None
    """Files that could not be used."""
    _trouble: str

    def __new__(cls, files: TlsFiles) -> Self:
        """OSError where a file can't be used."""
        self = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        files.demand(self)
        self._files, self._stamps, self._refused = files, files.stamps(), None
        self._made = files.context()
        self._trouble = ""
        _contexts.add(self)
        return self

    @property
    def trouble(self) -> str:
        """Why the files can't be used, as the last connection has found; "" once they are others."""
        return self._trouble if self._refused is not None and self._refused == self._files.stamps() else ""

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """See `ssl.SSLContext.wrap_bio`: what every connection of asyncio's begins with."""
        return self._current().wrap_bio(*args, **kwargs)

    def _current(self) -> ssl.SSLContext:
        stamps = self._files.stamps()
        if stamps != self._stamps:
            refused = self._refused
            try:
                self._made, self._stamps, self._refused = self._files.context(), stamps, None
            except OSError as error:
                if stamps != refused:
                    self._refused, self._trouble = stamps, error.strerror or str(error)
                    logger.warning("the new TLS certificates cannot be used, the old ones are: {}", error.strerror)
            else:
                if refused is not None:
                    logger.warning("the new TLS certificates are used")
        elif self._refused is not None:  # what they held before is there again
            self._refused = None
            logger.warning("the TLS certificates are there again as they were")
        return self._made


_contexts: Final[weakref.WeakSet[FileContext]] = weakref.WeakSet()


def tls_troubles() -> list[str]:
    """Which files of TLS this process can't use any more, and why: connections go on with what they held before."""
    return sorted({why for context in now_in(_contexts) if (why := context.trouble)})
