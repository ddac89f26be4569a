"""A service that runs in several processes: agents in SQLite, read through the cache.

Run two of them on one database, write to one and read from the other:

    CACHEBUS_URL=redis://127.0.0.1:6379/0 uvicorn fastapi_service:app --port 8001
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException, Response
from pydantic import BaseModel

from cachebus import Health, Policy, Settings, current_cache, lifespan

DATABASE = os.environ.get("DATABASE", "agents.db")
SETTINGS = Settings(policies={"agent": Policy(ttl_s=3600, negative_ttl_s=30)})  # the rest by CACHEBUS_*


class Agent(BaseModel):
    """What is stored, and what callers see."""

    id: str
    name: str


def connected() -> sqlite3.Connection:
    """A connection of the call's own: a load may outlive the request that began it."""
    return sqlite3.connect(DATABASE, timeout=5)


def select_agent(tenant_id: str, agent_id: str) -> dict[str, str] | None:
    """The row as plain data, or None."""
    with connected() as connection:
        row = connection.execute("SELECT name FROM agent WHERE tenant = ? AND id = ?", (tenant_id, agent_id)).fetchone()
    return None if row is None else {"id": agent_id, "name": row[0]}


def upsert_agent(tenant_id: str, agent_id: str, name: str) -> None:
    """Write the row; committed when this returns."""
    with connected() as connection:
        connection.execute("INSERT OR REPLACE INTO agent VALUES (?, ?, ?)", (tenant_id, agent_id, name))


async def load_agent(resource_id: str, tenant_id: str) -> dict[str, str] | None:
    """The loader: shared by all who ask for this agent at once, on whichever node."""
    return await asyncio.to_thread(select_agent, tenant_id, resource_id)


@asynccontextmanager
async def running(_: FastAPI) -> AsyncIterator[None]:
    """What lives as long as the process: the table and the cache."""
    with connected() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS agent (tenant, id, name, PRIMARY KEY (tenant, id))")
    async with lifespan(SETTINGS):
        yield


app = FastAPI(lifespan=running)


@app.get("/{tenant_id}/agents/{agent_id}")
async def get_agent(tenant_id: str, agent_id: str, cache_receipt: Annotated[str | None, Header()] = None) -> Agent:
    """An agent, at least as new as the write that gave the receipt."""
    found = await current_cache().get_or_load("agent", agent_id, load_agent, tenant_id=tenant_id, after=cache_receipt)
    if found is None:
        raise HTTPException(404)
    return Agent(**found)


@app.put("/{tenant_id}/agents/{agent_id}")
async def put_agent(tenant_id: str, agent_id: str, name: str, response: Response) -> Agent:
    """Write, then invalidate: the next load sees the new row."""
    await asyncio.to_thread(upsert_agent, tenant_id, agent_id, name)
    receipt = await current_cache().invalidate("agent", agent_id, tenant_id=tenant_id)
    response.headers["Cache-Receipt"] = str(receipt)
    return Agent(id=agent_id, name=name)


@app.get("/health/ready")
async def ready(response: Response) -> Health:
    """For a readiness probe. While Redis is away reads go to the database, and the service stays in service."""
    health = current_cache().health()
    response.status_code = 200 if health.serving else 503
    return health
