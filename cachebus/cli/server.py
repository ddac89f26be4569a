"""`cachebus server`: a Redis or Valkey to try things with, gone when the command ends."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated, NoReturn

import typer

from cachebus.cli.embedded import EmbeddedServer, best_server


def server(
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Listen here; a free port by default.")
    ] = None,
) -> None:
    """Run a server on this machine's loopback until Ctrl-C: the one on PATH, else the embedded one. Keeps nothing."""

    def end(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    binary = best_server()
    with EmbeddedServer(binary, port=port) as running:
        typer.echo(running.url)
        typer.echo(f"{binary.name} runs until Ctrl-C. In another terminal: export CACHEBUS_URL={running.url}", err=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)
