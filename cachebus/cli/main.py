"""The command `cachebus`."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Final

try:
    import rich  # noqa: F401 -- part of the extra, looked for here so that one line can say what is missing
    import typer
except ImportError as missing:
    sys.stderr.write(f"cachebus: the commands need {missing.name}: pip install 'cachebus[cli]'\n")
    raise SystemExit(2) from None

from loguru import logger

from cachebus import __version__
from cachebus.base.log import logger as library_log
from cachebus.cli.demo import demo
from cachebus.cli.doctor import doctor
from cachebus.cli.operate.get import get
from cachebus.cli.operate.invalidate import invalidate
from cachebus.cli.operate.log import log
from cachebus.cli.operate.look import tail
from cachebus.cli.operate.membership import nodes
from cachebus.cli.replay import replay
from cachebus.cli.server import server
from cachebus.cli.verify import verify
from cachebus.cli.worker.command import worker
from cachebus.errors import CacheBusError

UNUSABLE: Final = 2
"""Exit status where a command could not start: a wrong argument, file or URL, or a server that is not there."""

app = typer.Typer(
    name="cachebus",
    help="A coherent two-level cache for Python services: memory in each process, Redis behind it, no stale reads.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain: the texts wrap as they are written, and an error is one line
    # A traceback with local variables would show values and credentials.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(short_help="See it work, with a server of its own.")(demo)
app.command(short_help="The same on a recorded access trace.")(replay)
app.command(short_help="Put its promises to the test, under faults.")(verify)
app.command()(server)
app.command(short_help="What a server's set-up means for the promises, and how to mend it.")(doctor)
app.add_typer(nodes, short_help="Who is alive in a namespace, and how far.")
app.command(short_help="Show invalidations and writes as they happen.")(tail)
app.command(short_help="Show invalidations and writes of the past.")(log)
app.command(short_help="Show what the shared store has for a key.")(get)
app.command(short_help="Replace a resource, a scope, tags or all of it everywhere, and print the receipt.")(invalidate)
app.add_typer(worker, short_help="Carry committed writes on to every cache.")


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"cachebus {__version__}\n")
        raise typer.Exit


@app.callback()
def _common(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the library's log on stderr.")] = False,
) -> None:
    library_log.use("loguru", for_good=True)
    logger.remove()
    if verbose:
        logger.add(sys.stderr, level="DEBUG", diagnose=False, backtrace=False)


def run() -> None:
    """Run the command line; the entry point."""
    from cachebus.cli.performance import Interrupted

    try:
        app()
    except CacheBusError as error:
        _end(" ".join(str(error).split()), UNUSABLE)
    except Interrupted as interrupted:
        _end(str(interrupted), interrupted.status)
    except KeyboardInterrupt:
        _end("stopped", 128 + signal.SIGINT)


def _end(line: str, status: int) -> None:
    sys.stderr.write(f"cachebus: {line}\n")
    raise SystemExit(status)


if __name__ == "__main__":
    run()
