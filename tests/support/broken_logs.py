"""A service whose logging raises."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from cachebus.base.log import logger


class BrokenHandler(logging.Handler):
    """Raises at each line, as one whose collector is down, and notes what it should have taken."""

    def __init__(self) -> None:
        super().__init__("INFO")
        self.refused: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take nothing."""
        self.refused.append(record.getMessage())
        raise OSError("collector down")


class NeedsRequest(logging.Filter):
    """Wants what is there only while a request is served."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Find none."""
        raise LookupError("request_id")


@contextmanager
def broken(*filters: logging.Filter) -> Iterator[BrokenHandler]:
    """The library's lines go to a handler that raises, or to these filters, meanwhile."""
    handler, log = BrokenHandler(), logging.getLogger("cachebus")
    before, where = log.level, (logger._loguru, logger._pinned)
    logger._loguru, logger._pinned = None, False
    logger._counts.clear()
    for one in filters:
        handler.addFilter(one)
    log.addHandler(handler)
    log.setLevel("INFO")
    try:
        yield handler
    finally:
        logger._loguru, logger._pinned = where
        log.setLevel(before)
        log.removeHandler(handler)
