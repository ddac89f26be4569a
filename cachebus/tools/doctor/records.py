"""Looks at some records of the namespace: whether each is whole, and of the key under which it lies."""

from __future__ import annotations

from typing import Final

from cachebus.base.clock import monotonic
from cachebus.settings import Settings
from cachebus.tools.doctor.asking import Asker
from cachebus.tools.doctor.finding import Finding, Severity, ok, unknown
from cachebus.tools.doctor.some import some
from cachebus.wire.record import CorruptRecord, decode

RECORDS_MAX: Final = 100
"""So many are looked at, at most: values may be large."""
SCANS_MAX: Final = 20
AT_ONCE: Final = 500
TAKES_MAX_S: Final = 2.0
_OF_RECORDS: Final = "}:r:"
GLOB: Final = str.maketrans({sign: f"\\{sign}" for sign in "*?[]\\"})


async def looked_at(asker: Asker, settings: Settings) -> list[Finding]:
    """The finding about records that the server has first in hand."""
    names, refused = await _some_names(asker, settings)
    if refused:
        helps = "allow SCAN to who asks"
        return [unknown("records", refused, "Whether records in L2 are whole.", helps)]
    until_s, looked, damaged = monotonic() + TAKES_MAX_S, 0, list[str]()
    for name in names[:RECORDS_MAX]:
        if monotonic() > until_s:
            break
        data, refused = await asker.ask("GET", name)
        if refused and "WRONGTYPE" not in refused:
            return [unknown("records", refused, "Whether records in L2 are whole.")]
        looked += refused != "" or data is not None
        if not _whole(name, data, refused):
            damaged.append(name.decode(errors="backslashreplace"))
    if not damaged:
        return [ok("records", f"{looked} were looked at, and are whole")] if looked else []
    return [
        Finding(
            "records",
            Severity.ADVICE,
            f"{len(damaged)} of {looked} that were looked at are damaged, or none of ours: {some(damaged)}",
            "Nothing of them is served: a read takes each for a miss, and loads anew. Something else writes under "
            "these names, or the server's memory or file is damaged.",
            otherwise="look for what else writes there (MONITOR for a moment), and give cachebus a user or a database "
            "of its own; a record that is loaded or written anew is whole again",
        )
    ]


def _whole(name: bytes, data: bytes | None, refused: str) -> bool:
    if refused:
        return False
    try:
        if data is not None:
            decode(data, name.decode().partition(_OF_RECORDS)[2])
    except (CorruptRecord, UnicodeDecodeError):
        return False
    return True


async def _some_names(asker: Asker, settings: Settings) -> tuple[list[bytes], str]:
    """Names of records, as many as a bounded look finds; and the refusal."""
    pattern = f"{{{settings.namespace.translate(GLOB)}:*{_OF_RECORDS}*"
    cursor, names = b"0", list[bytes]()
    for _ in range(SCANS_MAX):
        reply, refused = await asker.ask("SCAN", cursor, "MATCH", pattern, "COUNT", AT_ONCE)
        if refused:
            return [], refused
        cursor, found = reply
        names += found
        if cursor == b"0" or len(names) >= RECORDS_MAX:
            break
    return names, ""
