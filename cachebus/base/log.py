"""The library's log lines: they go to the standard library's logger "cachebus", or to loguru for who uses that.

Never to both. Nobody has to set anything up: without any handler Python shows warnings and errors on stderr. Each kind
of warning is told some times a minute at most, and then how many more there were. Values and secrets are in none.
"""

from __future__ import annotations

import logging
import re
import sys
from contextlib import suppress
from string import Formatter
from typing import Any, Final, Literal

from cachebus.base.clock import monotonic
from cachebus.errors import ConfigError

Logs = Literal["logging", "loguru"]
TRACE: Final = 5
AT_ONCE: Final = 20
"""Lines of one kind that are told in a minute."""
MINUTE_S: Final = 60.0
REASONS_MAX: Final = 16

_formatter = Formatter()
_NUMBERS: Final = re.compile(r"\d+")
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
        self._counts: dict[str, tuple[float, int]] = {}
        """By a line's text without its values: since when it is counted, and how often it came."""
        self._once: dict[tuple[str, str], set[str]] = {}
        """By what and of whom: the reasons that were told."""

    def use(self, where: Logs, *, for_good: bool = False) -> None:
        """From now on lines go there, in the whole process. `for_good`: whatever settings say later, as for commands,
        whose output it is. `ConfigError` where loguru is not installed."""
        if self._pinned and not for_good:
            return
        self._pinned = for_good
        if where == "loguru":
            try:
                from loguru import logger as loguru
            except ModuleNotFoundError as error:
                raise ConfigError(
                    "logs (CACHEBUS_LOGS) is loguru, which is not installed: pip install loguru"
                ) from error

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

    def once(self, what: str, of: str, why: str) -> bool:
        """Whether a line is the first that tells what of whom and why; for what would be told at each call. Whys that
        differ in numbers are one, and of each there are at most `REASONS_MAX`: none uses up what is remembered."""
        known = self._once.get((what, of))
        if known is None:
            if len(self._once) >= 10_000:
                return False
            known = self._once[what, of] = set()
        reason = _NUMBERS.sub("0", why)
        if reason in known or len(known) >= REASONS_MAX:
            return False
        known.add(reason)
        return True

    def tell_withheld(self) -> None:
        """Say of each kind whose minute is over how many of its lines were not told: the next may never come."""
        now_s = monotonic()
        for message, (since_s, count) in list(self._counts.items()):
            if now_s - since_s >= MINUTE_S:
                self._counts.pop(message, None)
                if count > AT_ONCE:
                    withheld = count - AT_ONCE
                    lines = "1 line of this kind was" if withheld == 1 else f"{withheld} lines of this kind were"
                    self.warning("{} not told: {}", lines, message)

    def _tell(self, level: int, message: str, args: tuple[object, ...], exception: BaseException | None = None) -> None:
        """Whatever a handler, a filter or a sink of the service raises ends here: the work goes on."""
        try:
            self._hand_over(level, message, args, exception)
        except Exception as error:  # noqa: BLE001 (said on stderr)
            _say_on_stderr(level, message, args, error)

    def _hand_over(self, level: int, message: str, args: tuple[object, ...], exception: BaseException | None) -> None:
        if self._loguru is None and not _standard.isEnabledFor(level):
            return
        if level >= logging.WARNING and not self._is_to_tell(message):
            return
        if self._loguru is not None:
            text = message.format(*args) if args else message
            self._loguru.opt(depth=3, exception=exception).log(_NAMES[level], "{}", text)
        else:
            template, texts = _in_percents(message, args)
            _standard.log(level, template, *texts, exc_info=exception, stacklevel=4)

    def _is_to_tell(self, message: str) -> bool:
        now_s = monotonic()
        since_s, count = self._counts.get(message, (now_s, 0))
        if now_s - since_s >= MINUTE_S:
            self.tell_withheld()  # before its kind is counted anew
            since_s, count = now_s, 0
        self._counts[message] = since_s, count + 1
        return count < AT_ONCE


def _in_percents(message: str, args: tuple[object, ...]) -> tuple[str, list[str]]:
    """A template as the standard library writes it, by which others group lines, and its values as text: objects
    would be kept, and shown in ways of their own."""
    if not args:
        return message, []
    template, texts, values = "", list[str](), iter(args)
    for text, field, form, conversion in _formatter.parse(message):
        template += text.replace("%", "%%")
        if field is not None:
            template += "%s"
            texts.append(format(_formatter.convert_field(next(values), conversion), form or ""))
    return template, texts


def _say_on_stderr(level: int, message: str, args: tuple[object, ...], refused: Exception) -> None:
    """As Python does for who set nothing up: warnings and errors. The service's logging has refused the line."""
    last = logging.lastResort
    if last is None or level < last.level:
        return
    with suppress(Exception):
        message = message.format(*args)
    text = f"{message} (the service's logging has raised {type(refused).__name__})"
    with suppress(Exception):  # stderr may be closed
        last.handle(_standard.makeRecord(_standard.name, level, __file__, 0, "%s", (text,), None))


logger: Final = Logger()
