"""Generates accesses like a real shop's from a seed, where no trace is at hand.

A visit is a product's page. It reads the product's rows, some shared rows, and some rows twice. Popular products are
visited far more often, and visitors come back after a moment. The parameters are fitted to a real trace of an online
shop: an LRU of any size has nearly the same hit ratio on both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from random import Random
from typing import Final

from cachebus.tools.demo.trace import make_word

PRODUCTS: Final = 2_000
CATEGORIES: Final = 400
TEXTS: Final = 120
_POPULARITY: Final = 0.8
_RETURNS: Final = 0.45
_REMEMBERED: Final = 12
_TWICE: Final = 0.3
_BATCH: Final = 256


def accesses(seed: int, node: int) -> Iterator[int]:
    """The endless accesses of one node. The same seed and node give the same ones. All nodes share one popularity."""
    popular = list(range(PRODUCTS))
    Random(seed).shuffle(popular)
    weights = list(accumulate(1 / (rank + 1) ** _POPULARITY for rank in range(PRODUCTS)))
    rng = Random(f"{seed}:{node}")
    recent: deque[int] = deque(maxlen=_REMEMBERED)
    while True:
        for product in rng.choices(popular, cum_weights=weights, k=_BATCH):
            visited = rng.choice(recent) if recent and rng.random() < _RETURNS else product
            recent.append(visited)
            yield from _visit(visited, rng)


def universe() -> list[int]:
    """Every word that can occur."""
    rows = {word for product in range(PRODUCTS) for word in _page(product)}
    return sorted(rows | {_text(number) for number in range(TEXTS)})


def _visit(product: int, rng: Random) -> Iterator[int]:
    seen: list[int] = []
    for word in (*_page(product), _text(min(int(rng.expovariate(0.05)), TEXTS - 1))):
        seen.append(word)
        yield word
        if rng.random() < _TWICE:
            yield rng.choice(seen)


def _page(product: int) -> tuple[int, ...]:
    prices = tuple(make_word(17, product, index) for index in range(1 + product % 3))
    category = product % CATEGORIES
    return (
        make_word(25, product),
        make_word(23, product),
        *prices,
        make_word(18, product),
        make_word(20, category),
        make_word(21, category),
    )


def _text(number: int) -> int:
    return make_word(7, number)
