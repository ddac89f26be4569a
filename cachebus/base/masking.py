"""Secrets in what others say, such as an error that repeats a question: masked where they stand, and nowhere else.

A secret may be any word, even one that the sentence has of itself: a password may be "a", or "redis".

1. What is cut out of a question or a URL stands in quotes, or between the signs of a URL. There any secret is masked.
2. Elsewhere only what no sentence has of itself is masked: a long word, or one with a figure, a capital or a sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

MASK: Final = "***"
SHORT: Final = 6
LONG: Final = 16
"""With fewer letters than `SHORT` anything may be part of a sentence, and with fewer than `LONG` a word of letters."""
_REPEATED: Final = "with args beginning with:"
"""In what Redis says of a command that it does not know: behind that it repeats the arguments, cut anywhere."""


def masked(text: str, secrets: Iterable[str]) -> str:
    """The text with `***` where one of these stands in it."""
    for secret in sorted(set(secrets) - {""}, key=len, reverse=True):
        word = re.escape(secret)
        may_be_a_word = len(secret) < SHORT or (len(secret) < LONG and re.fullmatch("[a-z]+", secret))
        pattern = _standing(word) if may_be_a_word else word
        text = re.sub(pattern, MASK, text)
    return text


def _standing(word: str) -> str:
    in_quotes = "|".join(f"(?<={quote}){word}(?={quote})" for quote in "'\"`")
    return rf"{in_quotes}|(?<=[:/]){word}(?=@)|(?<=[/?&]){word}(?=[?&])|(?<==){word}(?!\w)"


def without_arguments(refusal: str) -> str:
    """What Redis says of a command, without the command's arguments."""
    said, sign, arguments = refusal.partition(_REPEATED)
    return f"{said}{sign} {MASK}" if arguments else refusal
