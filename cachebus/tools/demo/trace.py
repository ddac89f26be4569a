"""Recorded access traces: xz of big-endian 32-bit integers, one an access, as the cache2k benchmarks use them.

Of each integer ("word"), bits 27-31 are the object's type, 9-26 its id and the rest a sub-index, such as the third
price of a product.
"""

from __future__ import annotations

import lzma
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cachebus.errors import ConfigError

CHUNK_BYTES: Final = 1 << 16
BLOCK: Final = 128
"""Accesses that one node makes in a row: what belongs to one request of the shop stays on one node."""
WORD_BYTES: Final = 4

# The format's description gives the index bits 0-9, and so bit 9 twice. In real traces it varies like an id's lowest
# bit and unlike an index; left to the id alone, no two words get one name either.
_INDEX_BITS: Final = 9
_TYPE_BIT: Final = 27
_INDEX_MASK: Final = (1 << _INDEX_BITS) - 1
_ID_MASK: Final = (1 << (_TYPE_BIT - _INDEX_BITS)) - 1
_TEXT: Final = bytes({7, 8, 9, 10, 12, 13, 27} | set(range(0x20, 0x7F)))


class BadTrace(ConfigError):
    """The file is no trace, or was cut; the message is one line that names it."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What is in a trace."""

    accesses: int
    words: frozenset[int]
    """The distinct ones."""


def name_of(word: int) -> tuple[str, str]:
    """The data type and resource id that a word stands for: `("type17", "4711.2")`."""
    return f"type{word >> _TYPE_BIT}", f"{(word >> _INDEX_BITS) & _ID_MASK}.{word & _INDEX_MASK}"


def word_of(data_type: str, resource_id: str) -> int:
    """The word of a name that `name_of` made."""
    number, _, index = resource_id.partition(".")
    return make_word(int(data_type.removeprefix("type")), int(number), int(index))


def make_word(type_: int, id_: int, index: int = 0) -> int:
    """The word of an object: type 0-31, id below 2^18, index below 2^9."""
    return type_ << _TYPE_BIT | id_ << _INDEX_BITS | index


def chunks(path: Path) -> Iterator[array[int]]:
    """The trace's words, some thousands at a time, never the whole in memory. `BadTrace`, also half way."""
    done = 0
    try:
        if not path.stat().st_size:
            raise BadTrace(f"{path} is not a trace: it is empty")
        with lzma.open(path) as file:
            while data := file.read(CHUNK_BYTES):
                if not done and not data.translate(None, _TEXT):
                    raise BadTrace(f"{path} is not a trace: it holds text")
                if len(data) % WORD_BYTES:
                    raise BadTrace(f"{path} is cut: it ends inside access {done + len(data) // WORD_BYTES + 1:,}")
                yield _words(data)
                done += len(data) // WORD_BYTES
    except EOFError:
        raise BadTrace(f"{path} is cut: it ends without the end of its xz stream") from None
    except lzma.LZMAError:
        damaged = "is damaged: its xz stream breaks" if done else "is not a trace: it is no xz file"
        raise BadTrace(f"{path} {damaged}") from None
    except OSError as error:
        raise BadTrace(f"{path} can't be read: {error.strerror or error}") from None
    if not done:
        raise BadTrace(f"{path} is not a trace: there is no access in it")


def share(words: Iterable[array[int]], node: int, nodes: int) -> Iterator[int]:
    """Every `nodes`-th block of the accesses, from the block number `node` on: together the nodes make all of them."""
    position = 0
    for chunk in words:
        # A chunk may end inside a block; its rest then begins the next chunk.
        start = 0
        while start < len(chunk):
            end = min(len(chunk), start + BLOCK - position % BLOCK)
            if position // BLOCK % nodes == node:
                yield from chunk[start:end]
            position += end - start
            start = end


def _words(data: bytes) -> array[int]:
    words = array("I", data)
    if sys.byteorder == "little":
        words.byteswap()
    return words
