"""Connections of each kind that producers of an outbox take, with how each ends its transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import psycopg
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from tests.conftest import connected

Ending = Callable[[], Awaitable[Any]]


@asynccontextmanager
async def over_asyncpg(url: str) -> AsyncIterator[tuple[Any, Ending, Ending]]:
    """One of asyncpg's, in a transaction."""
    async with connected(url) as connection:
        await connection.execute("BEGIN")
        yield connection, lambda: connection.execute("COMMIT"), lambda: connection.execute("ROLLBACK")


@asynccontextmanager
async def over_a_pool(url: str) -> AsyncIterator[tuple[Any, Ending, Ending]]:
    """One of a pool of asyncpg's."""
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        yield connection, transaction.commit, transaction.rollback


@asynccontextmanager
async def over_async_psycopg(url: str) -> AsyncIterator[tuple[Any, Ending, Ending]]:
    """One of psycopg's."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield connection, connection.commit, connection.rollback


def over_async_sqlalchemy(kind: str, driver: str) -> Any:
    """A session or connection of SQLAlchemy's over a driver."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[tuple[Any, Ending, Ending]]:
        engine = create_async_engine(url.replace("postgresql://", f"postgresql+{driver}://"))
        try:
            if kind == "scoped":
                scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=lambda: 1)
                yield scoped, scoped.commit, scoped.rollback
                await scoped.remove()
            else:
                async with AsyncSession(engine) if kind == "session" else engine.connect() as it:
                    yield it, it.commit, it.rollback
        finally:
            await engine.dispose()

    return opened


def over_sqlalchemy(kind: str) -> Any:
    """The same for sync code."""

    @contextmanager
    def opened(url: str) -> Iterator[Any]:
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        try:
            if kind == "scoped":
                scoped = scoped_session(sessionmaker(engine))
                yield scoped
                scoped.remove()
            else:
                with Session(engine) if kind == "session" else engine.connect() as it:
                    yield it
        finally:
            engine.dispose()

    return opened


class Plain:
    """A connection that is nothing but what the DB-API says."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.autocommit = inner.autocommit
        self.commit, self.rollback, self.cursor = inner.commit, inner.rollback, inner.cursor


@contextmanager
def plain(url: str, **how: Any) -> Iterator[Plain]:
    """One over psycopg, of which nobody can tell the paramstyle."""
    with psycopg.connect(url, **how) as connection:
        yield Plain(connection)


ASYNC: dict[str, Any] = {
    "asyncpg": over_asyncpg,
    "asyncpg pool": over_a_pool,
    "psycopg": over_async_psycopg,
    "AsyncSession, asyncpg": over_async_sqlalchemy("session", "asyncpg"),
    "AsyncSession, psycopg": over_async_sqlalchemy("session", "psycopg"),
    "AsyncConnection": over_async_sqlalchemy("connection", "asyncpg"),
    "async_scoped_session": over_async_sqlalchemy("scoped", "asyncpg"),
}
SYNC: dict[str, Any] = {
    "psycopg": psycopg.connect,
    "Session": over_sqlalchemy("session"),
    "Connection": over_sqlalchemy("connection"),
    "scoped_session": over_sqlalchemy("scoped"),
    "DB-API": plain,
}
AUTOCOMMIT_SYNC: dict[str, Callable[[str], Any]] = {
    "psycopg": lambda url: psycopg.connect(url, autocommit=True),
    "DB-API": lambda url: plain(url, autocommit=True),
    "engine": lambda url: create_engine(
        url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    ).connect(),
    "option": lambda url: (
        create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        .connect()
        .execution_options(isolation_level="AUTOCOMMIT")
    ),
}


def style_of(kind: str) -> str | None:
    """What must be said of it."""
    return "format" if kind == "DB-API" else None
