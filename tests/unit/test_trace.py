"""Traces are read as they were recorded, and what is none is told in one line; the generator looks like one."""

from __future__ import annotations

import lzma
import struct
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pytest

from cachebus.tools.demo import generator
from cachebus.tools.demo.trace import BLOCK, BadTrace, chunks, make_word, name_of, share, word_of

WORDS = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, make_word(17, 4711, 2), *range(1000, 40_000)]


def written(path: Path, words: Iterable[int]) -> Path:
    path.write_bytes(lzma.compress(b"".join(struct.pack(">I", word) for word in words)))
    return path


def read(path: Path) -> list[int]:
    return [word for chunk in chunks(path) for word in chunk]


def test_every_access_comes_back_in_order(tmp_path: Path) -> None:
    assert read(written(tmp_path / "t.xz", WORDS)) == WORDS


def test_a_trace_is_streamed(tmp_path: Path) -> None:
    sizes = [len(chunk) for chunk in chunks(written(tmp_path / "t.xz", range(100_000)))]
    assert sum(sizes) == 100_000
    assert max(sizes) <= 1 << 14


def test_words_have_names_of_their_own() -> None:
    assert name_of(make_word(17, 4711, 2)) == ("type17", "4711.2")
    words = [*WORDS, *(make_word(3, id_, index) for id_ in (1, 2, 3) for index in range(512))]
    assert len({name_of(word) for word in words}) == len(set(words))
    assert all(word_of(*name_of(word)) == word for word in words)


@pytest.mark.parametrize("nodes", [1, 2, 3, 7])
def test_nodes_share_all_accesses(nodes: int) -> None:
    pieces = [array("I", WORDS[start : start + 1001]) for start in range(0, len(WORDS), 1001)]
    shares = [list(share(pieces, node, nodes)) for node in range(nodes)]
    assert sum(map(len, shares)) == len(WORDS)
    assert shares[0][:BLOCK] == WORDS[:BLOCK]
    assert shares[-1][:BLOCK] == WORDS[(nodes - 1) * BLOCK : nodes * BLOCK]


WHOLE = lzma.compress(b"".join(struct.pack(">I", word * 2654435761 % 2**32) for word in range(50_000)))
SPOILED = {
    "text": (b"GET /index.html\n", "is not a trace: it is no xz file"),
    "empty": (b"", "is not a trace: it is empty"),
    "no access": (lzma.compress(b""), "is not a trace: there is no access in it"),
    "text in xz": (lzma.compress(b"word,count\nthe,5\n" * 100), "is not a trace: it holds text"),
    "half": (WHOLE[: len(WHOLE) // 2], "is cut: it ends without the end of its xz stream"),
    "nearly whole": (WHOLE[:-1], "is cut: it ends without the end of its xz stream"),
    "half an access": (lzma.compress(b"\0\1\2\3\0\1"), "is cut: it ends inside access 2"),
    "damaged": (WHOLE[:100_000] + b"!" * 1000 + WHOLE[101_000:], "is damaged: its xz stream breaks"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_what_is_no_trace_is_told_in_one_line(tmp_path: Path, kind: str) -> None:
    content, message = SPOILED[kind]
    path = tmp_path / "t.xz"
    path.write_bytes(content)
    with pytest.raises(BadTrace) as caught:
        read(path)
    assert str(caught.value) == f"{path} {message}"


def test_a_file_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(BadTrace, match=why):
            read(path)


def test_the_generator_repeats_itself_by_its_seed() -> None:
    first, again, other_node, other_seed = (
        list(islice(generator.accesses(seed, node), 5_000)) for seed, node in ((1, 1), (1, 1), (1, 2), (2, 1))
    )
    assert first == again
    assert first != other_node
    assert first != other_seed


def test_the_generator_stays_in_its_universe() -> None:
    universe = generator.universe()
    assert len(universe) == len(set(universe)) > 10_000
    assert set(islice(generator.accesses(5, 3), 50_000)) <= set(universe)


def lru_hit_ratios(words: Iterable[int], sizes: Iterable[int]) -> list[float]:
    """What a memory of each size, that drops what was used longest ago, would answer."""
    sequence, ratios = list(words), []
    for size in sizes:
        memory: OrderedDict[int, None] = OrderedDict()
        hits = 0
        for word in sequence:
            if word in memory:
                hits += 1
                memory.move_to_end(word)
            else:
                memory[word] = None
                if len(memory) > size:
                    memory.popitem(last=False)
        ratios.append(hits / len(sequence))
    return ratios


def test_the_generator_has_the_shape_of_a_real_trace(traces: Path) -> None:
    accesses, sizes = 60_000, (10, 100, 1_000, 3_000, 10_000)
    real = lru_hit_ratios(islice(share(chunks(traces / "orm-busy.trace.xz"), 0, 1), accesses), sizes)
    made = lru_hit_ratios(islice(generator.accesses(1, 1), accesses), sizes)
    assert made == pytest.approx(real, abs=0.1)


def test_real_traces_are_read_whole(traces: Path) -> None:
    assert sum(map(len, chunks(traces / "web07.trace.xz"))) == 76_118
