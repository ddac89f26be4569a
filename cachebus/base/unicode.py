"""Text that has no bytes: Python makes a lone surrogate of an undecodable byte of a file or of the environment."""

from __future__ import annotations


def is_unicode(text: str) -> bool:
    """Whether it can be sent. Asked first, since the error of who tries it quotes a piece of the text."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
