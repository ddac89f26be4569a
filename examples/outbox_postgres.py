"""A write in PostgreSQL whose invalidation is a row of the same transaction.

`cachebus worker outbox` has to run beside it, on the same database. Needs CACHEBUS_URL and CACHEBUS_DATABASE_URL.
"""

from __future__ import annotations

import asyncio
import os

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cachebus import Cache
from cachebus.producers import Outbox, OutboxProducer


class Base(DeclarativeBase):
    """The application's tables."""


class Agent(Base):
    """One of them."""

    __tablename__ = "agent"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]


Sessions = async_sessionmaker[AsyncSession]
outbox = Outbox()  # CACHEBUS_*: for which caches


async def rename(sessions: Sessions, agent_id: str, name: str) -> None:
    """Both rows are committed, or neither."""
    async with sessions.begin() as session:
        await session.merge(Agent(id=agent_id, name=name))
        await OutboxProducer(session, outbox).invalidate("agent", agent_id, tenant_id="acme")


async def name_of(cache: Cache, sessions: Sessions, agent_id: str) -> str | None:
    """The name, through the cache; the load has a session of its own."""

    async def load(resource_id: str) -> str | None:
        async with sessions() as session:
            return await session.scalar(select(Agent.name).where(Agent.id == resource_id))

    found: str | None = await cache.get_or_load("agent", agent_id, load, tenant_id="acme")
    return found


async def main() -> None:
    """Rename an agent, and see when the cache has it."""
    url = os.environ["CACHEBUS_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://")
    engine = create_async_engine(url)
    sessions = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    try:
        async with Cache.open() as cache:
            for name in ("Ada", "Grace"):
                await rename(sessions, "a7", name)
                while await name_of(cache, sessions, "a7") != name:  # noqa: ASYNC110 -- the worker is another process
                    await asyncio.sleep(0.01)
                print("the cache has", name)
    finally:
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
