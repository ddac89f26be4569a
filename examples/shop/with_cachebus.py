"""The shop's service over cachebus: one load of a product over all processes, and no read older than D."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException, Query
from pydantic import BaseModel

from cachebus import CacheManager, Cascade, Policy, Settings, cached, declare, lifespan

DATABASE = os.environ.get("DATABASE", "shop.db")
Shop = Annotated[str, Header()]


class Product(BaseModel):
    """A row, and what callers see."""

    id: int
    name: str
    cents: int


SETTINGS = Settings(policies={"product": Policy(ttl_s=3600, negative_ttl_s=30)})  # the URL by CACHEBUS_URL
products = CacheManager.of("product", model=Product)
declare(Cascade("product", to=[("cheapest", "*")]))  # with a product its shop's list changes


def connected() -> sqlite3.Connection:
    """A connection of the call's own."""
    connection = sqlite3.connect(DATABASE, timeout=5)
    connection.execute("CREATE TABLE IF NOT EXISTS product (shop, id, name, cents, PRIMARY KEY (shop, id))")
    connection.execute("CREATE TABLE IF NOT EXISTS asked (times)")
    return connection


async def select(ids: Iterable[int], shop: str) -> dict[int, Product]:
    """The shop's products of these ids, by one statement. It notes that it was asked."""
    wanted = list(ids)
    with connected() as connection:
        connection.execute("INSERT INTO asked VALUES (1)")
        marks = ",".join("?" * len(wanted))
        rows = connection.execute(
            f"SELECT id, name, cents FROM product WHERE shop = ? AND id IN ({marks})", [shop, *wanted]
        ).fetchall()
    return {row[0]: Product(id=row[0], name=row[1], cents=row[2]) for row in rows}


@cached("cheapest", resource_id="three", tenant_id="{shop}")
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
    async with lifespan(SETTINGS):
        yield


app = FastAPI(lifespan=running)


@app.get("/products/{number}")
async def one(number: int, shop: Shop) -> Product:
    """A product, or 404."""
    found = await products.get_or_load(number, batch=select, tenant_id=shop)
    if found is None:
        raise HTTPException(404)
    return found


@app.get("/products")
async def several(ids: Annotated[list[int], Query()], shop: Shop) -> list[Product]:
    """Those of these products that there are."""
    found = await products.get_or_load_many(ids, select, tenant_id=shop)
    return [found[number] for number in ids if number in found]


@app.get("/cheapest")
async def cheapest(shop: Shop) -> list[int]:
    """The ids of the three cheapest."""
    return await ranked(shop)


@app.put("/products")
async def put(product: Product, shop: Shop) -> Product:
    """Write a product."""
    upsert(shop, product)
    await products.invalidate(product.id, tenant_id=shop)
    return product
