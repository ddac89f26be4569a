"""What the library says in its log meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from cachebus.base.log import logger


class _Listener(logging.Handler):
    def __init__(self, level: str, form: str, of: str) -> None:
        super().__init__(level)
        self.addFilter(lambda record: of in record.getMessage())
        self.setFormatter(logging.Formatter(form))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def told(level: str = "INFO", form: str = "%(message)s", of: str = "") -> Iterator[list[str]]:
    """The lines from this level on, and with this text in them, as they come; none is held back because of what another
    test has heard."""
    listener, log = _Listener(level, form, of), logging.getLogger("cachebus")
    before, where = log.level, (logger._loguru, logger._pinned)  # a command that ran in this process has pinned it
    logger._loguru, logger._pinned = None, False
    logger._counts.clear()
    logger._once.clear()
    log.addHandler(listener)
    log.setLevel(level)
    try:
        yield listener.lines
    finally:
        logger._loguru, logger._pinned = where
        log.setLevel(before)
        log.removeHandler(listener)


WITH_LEVEL = "%(levelname)s %(message)s"
