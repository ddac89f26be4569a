"""Which fields of pydantic models were not set but filled by default: told beside the fields, and restored.

Validation sets every field that it is given, so a model that is decoded has all of them set. Dumped with
`exclude_unset=True` it would then show what its maker never said. (A field that dumps leave out may be the other way
round: it was set, to its default.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

INTS = 1 << 63
"""Beyond it no int is carried as it is."""
Step = str | int | Sequence[Any]
"""An attribute's name, an index, or [key] of a dict."""
Unset = list[tuple[Sequence[Step], Sequence[str]]]
"""Where the models are, and the names of the fields that validation alone would leave the wrong way on each."""


def restorable(path: Sequence[Step | None]) -> bool:
    """Whether a path leads to the same place when it was stored: not into a set, nor by an odd key."""
    return all(_is_step(step[0] if isinstance(step, tuple) else step) for step in path)


def _is_step(step: Any) -> bool:
    return type(step) is str or (type(step) is int and -INTS <= step < INTS)


def restore(value: Any, unset: Unset) -> None:
    """Have the models in a value know again what was not set on them. Damage makes it raise anything."""
    for path, names in unset:
        model = value
        for step in path:
            if isinstance(step, str):
                extra = getattr(model, "__pydantic_extra__", None)
                model = extra[step] if extra and step in extra else getattr(model, step)
                continue
            model = model[step if isinstance(step, int) else step[0]]
        model.__pydantic_fields_set__.symmetric_difference_update(names)
