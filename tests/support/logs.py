"""What a package says in its log meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loguru import logger


@contextmanager
def warnings_of(package: str) -> Iterator[list[str]]:
    """Its warnings and errors, as they come."""
    said: list[str] = []
    sink = logger.add(lambda message: said.append(message.record["message"]), level="WARNING", diagnose=False)
    logger.enable(package)
    try:
        yield said
    finally:
        logger.disable(package)
        logger.remove(sink)
