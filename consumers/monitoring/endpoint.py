"""The HTTP endpoint of a worker: /metrics, /health/live and /health/ready, served by threads of its own."""

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
from cachebus.consumers.monitoring.health import WorkerHealth
from cachebus.consumers.monitoring.meters import Meters
from cachebus.errors import ConfigError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse

HOST: Final = "127.0.0.1"
CLIENTS_MAX: Final = 16
CLIENT_S: Final = 5.0
"""How long a client may take, from its connection to the end of its answer."""
PATHS: Final = "/metrics, /health/live, /health/ready"


class Endpoint:
    """An HTTP server. `host`: by default loopback. `port`: 0 for a free one.

    /health/live is 503 if the worker's event loop is stuck: a restart helps. /health/ready is 503, with the reasons,
    while anything that the worker needs is down: a restart does not help.
    """

    def __init__(self, port: int, host: str = HOST) -> None:
        self._host, self._port = host, port
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None

    @property
    def url(self) -> str:
        """Its address: "http://127.0.0.1:9108". `ConfigError` if it does not run."""
        if self._server is None:
            raise ConfigError("this endpoint does not run")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.server_port}"

    def start(self, health: WorkerHealth, meters: Meters) -> None:
        """Begin to serve; `ConfigError` if the port can't be had."""
        try:
            self._server = make_server(self._host, self._port, _app(health, meters), _server_class(self._host), _Quiet)
        except OSError as error:
            raise ConfigError(
                f"health and metrics can't be had on {self._host}:{self._port}: {error}; each worker of a machine "
                "needs a port of its own: --health-port (CACHEBUS_HEALTH_PORT), 0 for none"
            ) from None
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), name="cachebus-endpoint", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        server, thread, self._server, self._thread = self._server, self._thread, None, None
        if server is not None and thread is not None:
            server.shutdown()
            thread.join()
            server.server_close()


def _app(health: WorkerHealth, meters: Meters) -> Callable[[dict[str, Any], StartResponse], Iterable[bytes]]:
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
    """A server with few threads, one for each client, and little time for each. If one client more comes, the oldest is
    disconnected: so clients that hang keep nobody from checking the worker's health."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *given: Any) -> None:
        self._clients: dict[Any, float] = {}
        """Until when each client's socket may last, the oldest first."""
        self._lock = Lock()
        super().__init__(*given)

    def server_bind(self) -> None:
        """Bind as the base does, without a name server being asked for this machine's name. Connections that a worker
        has left a moment ago do not block the port."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
        """See the base, which calls this several times a second."""
        with self._lock:
            for request in [one for one, until_s in self._clients.items() if monotonic() > until_s]:
                _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: that a client has gone is no error."""


def _hang_up(request: Any) -> None:
    """Disconnect a client. Its thread notices, and cleans up."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Server6(_Server):
    address_family = socket.AF_INET6


def _server_class(host: str) -> type[WSGIServer]:
    return _Server6 if ":" in host else _Server


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its base names it so
        """Nothing: frequent health checks would fill the log."""
