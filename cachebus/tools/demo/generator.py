"""Accesses like a real shop's, from a seed: for those who have no trace at hand.

A visit is a product's page, which reads the rows that belong to the product, some shared ones, and some rows twice.
Popular products are visited far more often, and who was there a moment ago comes back. The parameters are fitted to a
real trace of an online shop: an LRU of any size has a hit ratio within some points of the one that it has there.
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
    """The endless accesses of one node: the same for the same seed and node, of one popularity on all nodes."""
    popular = list(range(PRODUCTS))
    Random(seed).shuffle(popular)
    weights = list(accumulate(1 / (rank + 1) ** _POPULARITY for rank in range(PRODUCTS)))
    dice = Random(f"{seed}:{node}")
    recent: deque[int] = deque(maxlen=_REMEMBERED)
    while True:
        for product in dice.choices(popular, cum_weights=weights, k=_BATCH):
            visited = dice.choice(recent) if recent and dice.random() < _RETURNS else product
            recent.append(visited)
            yield from _visit(visited, dice)


def universe() -> list[int]:
    """Every word that can occur."""
    rows = {word for product in range(PRODUCTS) for word in _page(product)}
    return sorted(rows | {_text(number) for number in range(TEXTS)})


def _visit(product: int, dice: Random) -> Iterator[int]:
    seen: list[int] = []
    for word in (*_page(product), _text(min(int(dice.expovariate(0.05)), TEXTS - 1))):
        seen.append(word)
        yield word
        if dice.random() < _TWICE:
            yield dice.choice(seen)


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
