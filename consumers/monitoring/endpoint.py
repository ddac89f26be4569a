"""Where a worker can be looked at: /metrics, /health/live and /health/ready, in a thread of their own."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from cachebus.base.clock import monotonic
from cachebus.consumers.monitoring.health import Health
from cachebus.consumers.monitoring.meters import Meters
from cachebus.errors import ConfigError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse

HOST: Final = "127.0.0.1"
CLIENTS_MAX: Final = 16
CLIENT_S: Final = 5.0
"""How long one may take from its connection to the end of its answer."""
PATHS: Final = "/metrics, /health/live, /health/ready"


class Endpoint:
    """An HTTP server on `host` (loopback unless told otherwise) and `port` (0: a free one).

    /health/live is 503 when the worker's loop is stuck: restart it. /health/ready is 503 while anything that it needs
    is away, with the reasons; no restart helps against that.
    """

    def __init__(self, port: int, host: str = HOST) -> None:
        self._host, self._port = host, port
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None

    @property
    def url(self) -> str:
        """Its address: "http://127.0.0.1:9108". `ConfigError` where it does not run."""
        if self._server is None:
            raise ConfigError("this endpoint does not run")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.server_port}"

    def start(self, health: Health, meters: Meters) -> None:
        """Begin to answer; `ConfigError` where the port can't be had."""
        try:
            self._server = make_server(self._host, self._port, _app(health, meters), _server_class(self._host), _Quiet)
        except OSError as error:
            raise ConfigError(f"health and metrics can't be had on {self._host}:{self._port}: {error}") from None
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), name="cachebus-endpoint", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        server, thread, self._server, self._thread = self._server, self._thread, None, None
        if server is not None and thread is not None:
            server.shutdown()
            thread.join()
            server.server_close()


def _app(health: Health, meters: Meters) -> Callable[[dict[str, Any], StartResponse], Iterable[bytes]]:
    metrics = make_wsgi_app(meters.registry)

    def answer(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            said: Iterable[bytes] = metrics(environ, start)
            return said
        if path in ("/health", "/health/live", "/health/ready"):
            good = health.live if path == "/health/live" else health.ready
            body = json.dumps(health.as_dict()).encode() + b"\n"
            start("200 OK" if good else "503 Service Unavailable", [("Content-Type", "application/json")])
            return [body]
        start("404 Not Found", [("Content-Type", "text/plain")])
        return [f"there is {PATHS}\n".encode()]

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    """Each client has a thread, of which there are few, and little time: the oldest goes where one more comes, so that
    whoever hangs on keeps nobody out who looks how the worker is."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *given: Any) -> None:
        self._clients: dict[Any, float] = {}
        """By socket: until when it may last, the oldest first."""
        self._lock = Lock()
        super().__init__(*given)

    def server_bind(self) -> None:
        """As its base does, without asking a name server for the name of this machine."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """See its base."""
        with self._lock:
            if len(self._clients) >= CLIENTS_MAX:
                _hang_up(next(iter(self._clients)))
            self._clients[request] = monotonic() + CLIENT_S
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """See its base."""
        with self._lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """See its base, which calls this several times a second."""
        with self._lock:
            for request in [one for one, until_s in self._clients.items() if monotonic() > until_s]:
                _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that went away is its own business."""


def _hang_up(request: Any) -> None:
    """Its thread finds that it is over, and clears up."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Server6(_Server):
    address_family = socket.AF_INET6


def _server_class(host: str) -> type[WSGIServer]:
    return _Server6 if ":" in host else _Server


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its base names it so
        """Nothing: those who look every second would fill the log."""
