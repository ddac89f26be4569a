"""A write guard's block that ends by an exception before anything was written: the guard goes at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from cachebus import Cache, ConfigError, WriteGuard
from cachebus.testing import Fleet
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes

Step = Callable[[WriteGuard], object]


class Base(DeclarativeBase):
    """Tables."""


class Product(Base):
    """One of them."""

    __tablename__ = "products"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    """Of a database with the tables."""
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    engine.dispose()


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Cache, Cache]]:
    """Two nodes over a memory store."""
    async with Fleet(2, staleness_bound_s=0.6, probe_interval_s=0.1, db_timeout_s=1.0) as fleet:
        a, b = fleet.caches
        yield a, b


async def failing(guard: WriteGuard, *steps: Step, error: type[Exception] = LookupError) -> None:
    """A block that takes these steps, and then fails."""
    async with guard:
        for step in steps:
            done = step(guard)
            if isinstance(done, Awaitable):
                await done
        raise error


async def test_where_it_says_so() -> None:
    async with pair() as (a, b):
        with pytest.raises(LookupError):
            await failing(a.write_guard([("config", "x")], "acme"), lambda guard: guard.nothing_written())
        assert (await b.set("config", "x", 1, "acme")).stored
        assert a.stats().guards_left == 0


async def test_the_error_passes_whatever_becomes_of_the_guard(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, db_timeout_s=1.0) as (cache,):
        guard = cache.write_guard([("config", "x")], "acme")
        with pytest.raises(LookupError):
            await failing(guard, lambda guard: guard.nothing_written(), lambda _: own_server.pause())
        assert cache.stats().guards_left == 1
        own_server.resume()


@pytest.mark.parametrize("commits", [False, True])
async def test_a_session_tells_whether_a_commit_was_tried(sessions: sessionmaker[Session], *, commits: bool) -> None:
    async with pair() as (a, b):
        with sessions() as session:
            steps: list[Step] = [lambda g: g.watch(session), lambda _: session.add(Product(id=1))]
            steps.append(lambda _: session.commit() if commits else session.flush())
            with pytest.raises(LookupError):
                await failing(a.write_guard([("config", "x")], "acme"), *steps)
            assert (await b.set("config", "x", 1, "acme")).stored is not commits
            assert a.stats().guards_left == commits
            async with a.write_guard([("config", "y")], "acme") as guard:
                guard.watch(session)
                session.commit()
            session.commit()  # nobody watches it any more
        assert (await b.set("config", "y", 1, "acme")).stored


async def test_a_commit_that_raises_was_tried(sessions: sessionmaker[Session]) -> None:
    async with pair() as (a, b):
        with sessions() as session:
            steps: list[Step] = [
                lambda guard: guard.watch(session),
                lambda _: session.add_all([Product(id=1), Product(id=1)]),
                lambda _: session.commit(),
            ]
            with pytest.raises(IntegrityError):
                await failing(a.write_guard([("config", "x")], "acme"), *steps)
        assert not (await b.set("config", "x", 1, "acme")).stored
        assert a.stats().guards_left == 1


@pytest.mark.parametrize("commits", [False, True])
async def test_an_asynchronous_session_is_watched_too(database: str, *, commits: bool) -> None:
    engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))
    async with pair() as (a, b), AsyncSession(engine) as session:
        steps: list[Step] = [lambda guard: guard.watch(session), lambda _: session.execute(text("SELECT 1"))]
        with pytest.raises(LookupError):
            await failing(
                a.write_guard([("config", "x")], "acme"), *steps, *[lambda _: session.commit()] * int(commits)
            )
        assert (await b.set("config", "x", 1, "acme")).stored is not commits
    await engine.dispose()


async def test_what_is_no_session_is_not_watched(sessions: sessionmaker[Session]) -> None:
    async with pair() as (a, _), a.write_guard([("config", "x")], "acme") as guard:
        with pytest.raises(ConfigError, match="a Session or AsyncSession can be watched, not a str"):
            guard.watch("session")
        with sessions() as session:
            guard.watch(session)
            with pytest.raises(ConfigError, match="watches one session"):
                guard.watch(session)
