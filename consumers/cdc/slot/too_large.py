"""Transactions that the server can't tell of, as a text in them, or memory for one, is longer than it has any."""

from __future__ import annotations

from typing import Final

import asyncpg

PASSED_BY: Final = (
    "the server can't tell of a transaction, since something in it is too large as text: {}; it is passed by, and all "
    "is let go of that rules name; from then on publish the table without the large column (in PostgreSQL 15: ADD "
    "TABLE name (columns))"
)


def is_too_large(error: asyncpg.PostgresError) -> bool:
    """Whether the server has failed for that."""
    in_memory = isinstance(error, asyncpg.InternalServerError) and "memory alloc request" in str(error)
    return in_memory or isinstance(error, asyncpg.ProgramLimitExceededError)


def passed_by(error: asyncpg.PostgresError) -> str:
    """What is said of such a transaction."""
    return PASSED_BY.format(f"{type(error).__name__} ({error.sqlstate})")
