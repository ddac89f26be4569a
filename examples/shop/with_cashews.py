"""The shop's service over cashews, with its client-side cache."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Annotated

from cashews import cache
from fastapi import FastAPI, Header, HTTPException, Query
from pydantic import BaseModel

DATABASE = os.environ.get("DATABASE", "shop.db")
Shop = Annotated[str, Header()]


class Product(BaseModel):
    """A row, and what callers see."""

    id: int
    name: str
    cents: int


def connected() -> sqlite3.Connection:
    """A connection of the call's own."""
    connection = sqlite3.connect(DATABASE, timeout=5)
    connection.execute("CREATE TABLE IF NOT EXISTS product (shop, id, name, cents, PRIMARY KEY (shop, id))")
    connection.execute("CREATE TABLE IF NOT EXISTS asked (times)")
    return connection


async def known(shop: str, ids: list[int]) -> dict[int, Product]:
    """The shop's products of these ids: those that the cache lacks are selected, and stored."""
    keys = {number: f"product:{shop}:{number}" for number in ids}
    there = dict(zip(ids, await cache.get_many(*keys.values()), strict=True))
    found = {number: product for number, product in there.items() if product is not None}
    lacking = [number for number in ids if number not in found]
    loaded = await select(shop, lacking) if lacking else {}
    if loaded:
        await cache.set_many({keys[number]: product for number, product in loaded.items()}, expire="1h")
    return found | loaded


async def select(shop: str, ids: Iterable[int]) -> dict[int, Product]:
    """The shop's products of these ids, by one statement. It notes that it was asked."""
    wanted = list(ids)
    with connected() as connection:
        connection.execute("INSERT INTO asked VALUES (1)")
        marks = ",".join("?" * len(wanted))
        rows = connection.execute(
            f"SELECT id, name, cents FROM product WHERE shop = ? AND id IN ({marks})", [shop, *wanted]
        ).fetchall()
    return {row[0]: Product(id=row[0], name=row[1], cents=row[2]) for row in rows}


@cache(ttl="1h", key="cheapest:{shop}", lock=True)
async def ranked(shop: str) -> list[int]:
    """The ids of the shop's three cheapest products."""
    with connected() as connection:
        connection.execute("INSERT INTO asked VALUES (1)")
        rows = connection.execute("SELECT id FROM product WHERE shop = ? ORDER BY cents LIMIT 3", [shop]).fetchall()
    return [row[0] for row in rows]


def upsert(shop: str, product: Product) -> None:
    """Write the row; committed when this returns."""
    with connected() as connection:
        row = (shop, product.id, product.name, product.cents)
        connection.execute("INSERT OR REPLACE INTO product VALUES (?, ?, ?, ?)", row)


@asynccontextmanager
async def running(_: FastAPI) -> AsyncIterator[None]:
    """What lives as long as the process."""
    cache.setup(f"{os.environ['CACHEBUS_URL']}?protocol=2", client_side=True)
    await cache.init()
    yield
    await cache.close()


app = FastAPI(lifespan=running)


@app.get("/products/{number}")
async def one(number: int, shop: Shop) -> Product:
    """A product, or 404."""
    found = (await known(shop, [number])).get(number)
    if found is None:
        raise HTTPException(404)
    return found


@app.get("/products")
async def several(ids: Annotated[list[int], Query()], shop: Shop) -> list[Product]:
    """Those of these products that there are."""
    found = await known(shop, ids)
    return [found[number] for number in ids if number in found]


@app.get("/cheapest")
async def cheapest(shop: Shop) -> list[int]:
    """The ids of the three cheapest."""
    return await ranked(shop)


@app.put("/products")
async def put(product: Product, shop: Shop) -> Product:
    """Write a product."""
    upsert(shop, product)
    await cache.delete_many(f"product:{shop}:{product.id}", f"cheapest:{shop}")
    return product
