"""Commands that a worker tells people to run. They can be obeyed as they stand: each has the options that the worker
has, as a shell takes them, and no secret."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from cachebus.base.agreement import PREFIX
from cachebus.consumers.worker.clean import clean
from cachebus.settings import Settings

if TYPE_CHECKING:
    from cachebus.consumers.worker.source import Source

DATABASE: Final = f"{PREFIX}DATABASE_URL"
L2: Final = f"{PREFIX}URL"
KAFKA: Final = f"{PREFIX}KAFKA_*"
LONGEST: Final = 5000


def given(field: str, value: str) -> str | None:
    """The value of an option that stands for this setting; None where it is the default, and need not be told."""
    return None if value == Settings.model_fields[field].default else value


def command(*words: str, options: Mapping[str, str | None]) -> str:
    """One of `cachebus worker`. Options without a value are left out."""
    more = [word for name, value in options.items() if value for word in (name, value)]
    return clean(shlex.join(["cachebus", "worker", *words, *more]), LONGEST)


def tries_again(worker: str, source: Source) -> str:
    """What tries dead letters again, as the end of a sentence."""
    known = source.variables
    them = f", with {' and '.join(known)} as this worker has {'them' if len(known) > 1 else 'it'}," if known else ""
    return f"they are tried again{them} by: {command('replay-dead', worker, options=source.options)}"
