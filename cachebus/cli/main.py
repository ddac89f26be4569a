"""The command `cachebus`."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Final, TextIO

try:
    import rich  # noqa: F401 -- part of the extra, looked for here so that one line can say what is missing
    import typer
except ImportError as missing:
    if sys.stderr is not None:
        sys.stderr.write(f"cachebus: the commands need {missing.name}: pip install 'cachebus[cli]'\n")
    raise SystemExit(2) from None

from loguru import logger

from cachebus import __version__
from cachebus.base.log import logger as library_log
from cachebus.cli.demo import demo
from cachebus.cli.doctor import doctor
from cachebus.cli.operate.explain import explain
from cachebus.cli.operate.get import get
from cachebus.cli.operate.invalidate import invalidate
from cachebus.cli.operate.log import log
from cachebus.cli.operate.membership import nodes
from cachebus.cli.operate.tail import tail
from cachebus.cli.replay import replay
from cachebus.cli.server import server
from cachebus.cli.verify import verify
from cachebus.cli.wording import in_options
from cachebus.cli.worker.command import worker
from cachebus.errors import CacheBusError

UNUSABLE: Final = 2
"""Exit status where a command could not start: a wrong argument, file or URL, or a server that is not there."""
READER_GONE: Final = 128 + 13
"""Exit status where nobody reads the rest of the output: that of a SIGPIPE."""

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
app.command(short_help="Say why a read gives what it gives, on each node, and until when.")(explain)
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
    if verbose:
        logger.add(sys.stderr, level="DEBUG", diagnose=False, backtrace=False)


def run() -> None:
    """Run the command line; the entry point."""
    from cachebus.cli.performance import Interrupted

    _open_closed_streams()
    library_log.use("loguru", for_good=True)
    logger.remove()  # until --verbose is read
    out = sys.stdout
    if isinstance(out, TextIOWrapper):
        out.reconfigure(errors="backslashreplace")  # whatever a value holds, and a terminal or file can't
    try:
        _whole(out)
    except CacheBusError as error:
        _end(in_options(error), UNUSABLE)
    except Interrupted as interrupted:
        _end(str(interrupted), interrupted.status)
    except KeyboardInterrupt:
        _end("stopped", 128 + signal.SIGINT)
    except BrokenPipeError:
        _silence(out)
        raise SystemExit(READER_GONE) from None
    except (OSError, UnicodeError) as error:
        library_log.exception("a command failed")
        _silence(out)
        _end(f"{type(error).__name__}: {' '.join(str(error).split())}", UNUSABLE)
    except Exception:  # noqa: BLE001 (a bug, with its trace: 1 would be taken for an answer)
        with suppress(OSError):
            traceback.print_exc()
        raise SystemExit(UNUSABLE) from None


def _open_closed_streams() -> None:
    """Have each standard stream be one, where whoever started the command has closed it (`>&-`) and Python has None.
    What is said on stderr is lost then, and what is to be written to stdout fails: that it can't be is for the status
    to say. What writes nothing there, as a worker, runs."""
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 (for as long as the process is there)
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _whole(out: TextIO) -> None:
    """Run the command, and write all that it says before its exit status is known."""
    try:
        app()
    except SystemExit:
        if sys.stdout is not out:  # typer's way when who reads has gone; it would say 1
            raise BrokenPipeError from None
        out.flush()
        raise


def _silence(out: TextIO) -> None:
    """What could not be written is not tried once more, with a trace, when the interpreter ends."""
    with suppress(OSError, ValueError):  # where it is no file, there is nothing that would be tried
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out.fileno())
        os.close(nowhere)


def _end(line: str, status: int) -> None:
    with suppress(OSError):  # the status says it as well
        sys.stderr.write(f"cachebus: {line}\n")
    raise SystemExit(status)


if __name__ == "__main__":
    run()
