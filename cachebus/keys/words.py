"""Names in words, for people: whatever a name holds, no control character reaches a terminal."""

from __future__ import annotations

import re
from typing import Final

from cachebus.keys.key import ABSENT, GIVEN

_BIDIRECTIONAL: Final = "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
CONTROLS: Final = re.compile(f"[\x00-\x1f\x7f-\x9f{_BIDIRECTIONAL}]")
"""What moves a terminal's cursor, colours it, or turns the order of what stands around it."""
_CALLED: Final = {"A": "agent", "V": "conversation", "C": "collection"}


def shown(name: str) -> str:
    """A name whose parts are joined by control characters, fit for a terminal: a stroke between its parts."""
    return CONTROLS.sub("?", name.rstrip(ABSENT).replace(GIVEN, " | ").replace(ABSENT, " | -"))


def scope_in_words(name: str) -> str:
    """A scope or tag in words."""
    shape, *parts = (CONTROLS.sub("?", part) for part in name.split(GIVEN))
    match shape[0]:
        case "N":
            return "everything"
        case "Y":
            return f"all {parts[0]} of all tenants"
        case "G":
            return f"tag {parts[1]} of {parts[0]}"
        case "I":
            return f"{parts[0]} | {parts[1]} | {parts[2]} in every context"
    within = f" in {_CALLED[shape[1]]} {parts[-1]}" if len(shape) > 1 else ""
    return (f"all {parts[1]} of {parts[0]}" if shape[0] == "D" else f"all of {parts[0]}") + within
