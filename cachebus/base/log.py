"""The library's log lines: they go to the standard library's logger "cachebus", or to loguru for who uses that.

Never to both. Nobody has to set anything up: without any handler Python shows warnings and errors on stderr. Each kind
of warning is told some times a minute at most, and then how many more there were. Values and secrets are in none.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, Literal

from cachebus.base.clock import monotonic

Logs = Literal["logging", "loguru"]
TRACE: Final = 5
AT_ONCE: Final = 20
"""Lines of one kind that are told in a minute."""
MINUTE_S: Final = 60.0

_standard = logging.getLogger("cachebus")
_NAMES: Final = {
    TRACE: "TRACE",
    logging.DEBUG: "DEBUG",
    logging.INFO: "INFO",
    logging.WARNING: "WARNING",
    logging.ERROR: "ERROR",
}


class Logger:
    """Tells lines as loguru's logger does: `logger.warning("{} is out of reach: {}", part, why)`."""

    def __init__(self) -> None:
        self._loguru: Any = None
        """loguru's logger, where lines go there."""
        self._pinned = False
        self._told: dict[str, tuple[float, int]] = {}
        """By a line's text without its values: since when it is counted, and how often it came."""
        self._once: set[tuple[str, ...]] = set()

    def use(self, where: Logs, *, for_good: bool = False) -> None:
        """From now on lines go there, in the whole process. `for_good`: whatever settings say later, as for commands,
        whose output it is."""
        if self._pinned and not for_good:
            return
        self._pinned = for_good
        if where == "loguru":
            from loguru import logger as loguru

            self._loguru = loguru
        else:
            self._loguru = None

    def trace(self, message: str, *args: object) -> None:
        """Of other libraries."""
        self._tell(TRACE, message, args)

    def debug(self, message: str, *args: object) -> None:
        """For who looks for something."""
        self._tell(logging.DEBUG, message, args)

    def info(self, message: str, *args: object) -> None:
        """What changes in order."""
        self._tell(logging.INFO, message, args)

    def warning(self, message: str, *args: object) -> None:
        """What costs something, and needs nobody at once."""
        self._tell(logging.WARNING, message, args)

    def error(self, message: str, *args: object, exception: BaseException | None = None) -> None:
        """What somebody should look at; with the traceback of an exception, if one is given."""
        self._tell(logging.ERROR, message, args, exception)

    def exception(self, message: str, *args: object) -> None:
        """As `error`, with the exception that is being handled."""
        self._tell(logging.ERROR, message, args, sys.exception())

    def once(self, *kind: str) -> bool:
        """Whether a line of this kind is the first of its kind; for what would be told at each call."""
        if kind in self._once or len(self._once) >= 10_000:
            return False
        self._once.add(kind)
        return True

    def _tell(self, level: int, message: str, args: tuple[object, ...], exception: BaseException | None = None) -> None:
        if self._loguru is None and not _standard.isEnabledFor(level):
            return
        more = self._counted(message) if level >= logging.WARNING else 0
        if more is None:
            return
        text = message.format(*args) if args else message
        if more:
            text += f" ({more} more of this kind in the last minute)"
        if self._loguru is not None:
            self._loguru.opt(depth=2, exception=exception).log(_NAMES[level], "{}", text)
        else:
            _standard.log(level, "%s", text, exc_info=exception, stacklevel=3)

    def _counted(self, message: str) -> int | None:
        """How many like it were not told before; None where this one is not told either."""
        now_s = monotonic()
        since_s, count = self._told.get(message, (now_s, 0))
        if now_s - since_s < MINUTE_S:
            self._told[message] = since_s, count + 1
            return None if count >= AT_ONCE else 0
        self._told[message] = now_s, 1
        return max(0, count - AT_ONCE)


logger: Final = Logger()
