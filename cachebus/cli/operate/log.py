"""`cachebus log`: the invalidations and writes of the past, out of the log in L2."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Final

import typer

from cachebus.cascade import WHOLE_SCOPE
from cachebus.cli.operate.events import Filter, keys_named, line_of
from cachebus.cli.operate.layout import layout_of
from cachebus.cli.operate.look import AsJson
from cachebus.cli.operate.stored import WantedRecords, meant
from cachebus.cli.performance import until_signalled
from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.core.ports import LogEntry
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.keys.key import shard_of
from cachebus.l2.inspection import whole_of
from cachebus.l2.names import ShardNames
from cachebus.l2.replies import message_of
from cachebus.listening.explanation import KnownSince
from cachebus.listening.touching import known_since
from cachebus.settings import Settings
from cachebus.tools.doctor.asking import Asker
from cachebus.tools.doctor.primaries import whereabouts
from cachebus.wire.event import published_us

DataType = Annotated[
    str | None, typer.Argument(metavar="TYPE", help="What touches this data type.", show_default=False)
]
ResourceId = Annotated[str | None, typer.Argument(metavar="ID", help="And this resource id.", show_default=False)]
Tenant = Annotated[str | None, typer.Option("--tenant", metavar="ID", help="And this tenant.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="Invalidations of this tag, or another.")]
Node = Annotated[str | None, typer.Option("--node", metavar="NAME", help="What such a node, producer or worker made.")]
Since = Annotated[str | None, typer.Option("--since", metavar="AGE", help="Not older than this: 30s, 15m, 6h, 2d.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")]
AT_ONCE: Final = 1_000
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_age = re.compile(r"(\d+(?:\.\d+)?)([smhd])").fullmatch


def log(
    data_type: DataType = None,
    resource_id: ResourceId = None,
    tenant: Tenant = None,
    tags: Tags = None,
    node: Node = None,
    since: Since = None,
    limit: Limit = 1_000,
    as_json: AsJson = False,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Show invalidations and writes of the past, oldest first: when, seq, who, which keys, which scopes and tags.

    L2 keeps the last of them only, and of the present epoch (log_max_len, log_max_bytes): since when that is, is said
    on stderr; with --json, only where it is younger than --since asks for, or nothing is found. What touches a key is
    also what replaced its type, its tenant, or everything; and each tag of its tenant, since nobody knows which tags a
    value had. --tag shows those of a tag alone.

    Exit status: 0, 1 if there is nothing like it, 2 if the server could not be reached.
    """
    resource_id = None if resource_id == WHOLE_SCOPE else resource_id
    wanted = Filter(data_type, resource_id, tenant, tuple(tags or ()), node).checked()
    found = until_signalled(_logged(settings_for(url, namespace), wanted, _age_s(since), limit, as_json))
    sys.stdout.writelines(f"{line}\n" for line in found.lines)
    sys.stdout.flush()
    if found.left_out:
        sys.stderr.write(f"cachebus: {found.left_out:,} older ones are left out: --limit\n")
    if found.begins and (not as_json or found.younger or not found.lines):
        sys.stderr.write(f"cachebus: {found.begins}\n")
    if found.troubles:
        raise L2Unavailable(f"not all of the log could be read: {'; '.join(found.troubles)}")
    if not found.lines:
        sys.stderr.write(f"cachebus: nothing like it in the log{found.hint}\n")
    raise typer.Exit(0 if found.lines else 1)


def _age_s(text: str | None) -> float | None:
    if text is None:
        return None
    found = _age(text)
    if found is None:
        raise ConfigError(f"--since takes a number with s, m, h or d, such as 15m, not {text!r}")
    return float(found[1]) * _SECONDS[found[2]]


@dataclass
class _Logged:
    """What the logs of some shards have."""

    lines: list[str] = field(default_factory=list)
    left_out: int = 0
    """How many more there are, that are older."""
    begins: str = ""
    """Since when the log can tell."""
    younger: bool = False
    """Whether that is later than what was asked for."""
    hint: str = ""
    """What may have been meant, where there is nothing like it."""
    troubles: Sequence[str] = ()
    """What could not be read."""


async def _logged(settings: Settings, wanted: Filter, age_s: float | None, limit: int, as_json: bool) -> _Logged:
    """The lines, by the times at which the servers published the events."""
    settings = (await layout_of(settings)).over(settings)
    lines: list[tuple[int, str]] = []
    begins: list[tuple[float, int, KnownSince]] = []
    fitting, younger = 0, False

    async def visit(asker: Asker, shard: int) -> None:
        nonlocal fitting, younger
        since_us = 0 if age_s is None else await asker.now_us() - int(age_s * 1_000_000)
        known = await _known_since(asker, settings, shard)
        from_s = max((at.timestamp() for at in (known.epoch_began, known.log_begins) if at is not None), default=0.0)
        begins.append((from_s, shard, known))
        younger = younger or since_us < from_s * 1_000_000
        kept: deque[tuple[int, str]] = deque(maxlen=limit)
        async for message in _messages(asker, settings, shard):
            at_us = published_us(message)
            if at_us >= since_us and (line := line_of(shard, message, wanted, as_json=as_json)):
                kept.append((at_us, line))
                fitting += 1
        lines.extend(kept)

    troubles = await _each_log(settings, wanted.tenant, visit)
    hint = "" if lines or troubles else await _hint(settings, wanted)
    newest = [line for _, line in sorted(lines)[-limit:]]
    younger = younger and age_s is not None
    return _Logged(newest, fitting - len(newest), _least(begins), younger, hint, troubles)


async def _each_log(
    settings: Settings, tenant: str | None, visit: Callable[[Asker, int], Awaitable[None]]
) -> list[str]:
    """Visit the shards, or the one that the tenant lies in; gives what could not be read."""
    some = range(settings.shards) if tenant is None else [shard_of(tenant, settings.shards)]
    primaries, lost = await whereabouts(settings)
    troubles = [why for shard, why in lost.items() if shard in some]
    for primary in primaries:
        shards = [shard for shard in some if primary.has(shard)]
        if not shards:
            continue
        try:
            asker = await Asker.open(primary.address, settings.connect_timeout_s)
        except L2Unavailable as error:
            troubles.append(str(error))
            continue
        async with asker:
            try:
                for shard in shards:
                    await visit(asker, shard)
            except L2Unavailable as error:
                troubles.append(f"{primary.address}: {error}")
    return troubles


async def _known_since(asker: Asker, settings: Settings, shard: int) -> KnownSince:
    names = ShardNames(settings.namespace, shard)
    born, _ = await asker.ask("HGET", names.meta, "born")
    entries, refused = await asker.ask("XRANGE", names.log, "-", "+", "COUNT", 1)
    if refused:
        raise L2Unavailable(f"the log can't be read: {refused}")
    oldest = [LogEntry(int(entry[0].split(b"-")[0]), message_of(entry[1])) for entry in entries]
    return known_since(whole_of(born), oldest)


def _least(begins: list[tuple[float, int, KnownSince]]) -> str:
    """Since when all of it is told: by the shard that can tell least."""
    if not begins:
        return ""
    _, shard, known = max(begins, key=lambda begin: begin[0])
    return str(known) if len(begins) == 1 else f"of all shards the youngest log is that of shard {shard}: {known}"


async def _hint(settings: Settings, wanted: Filter) -> str:
    """What may have been meant, by what lies in L2, and by what the log names."""
    named = set[tuple[str, str]]()

    async def visit(asker: Asker, shard: int) -> None:
        async for message in _messages(asker, settings, shard):
            named.update(keys_named(message))

    if wanted.tenant is None and wanted.data_type is None:
        return ""
    await _each_log(settings, None, visit)  # a misspelt tenant's shard is any
    with suppress(L2Unavailable):  # other keys may not be looked at by this user, or at this primary
        return await meant(settings, WantedRecords(wanted.tenant, wanted.data_type), also=named)
    return ""


async def _messages(asker: Asker, settings: Settings, shard: int) -> AsyncIterator[bytes]:
    """What the log of a shard holds, oldest first; `L2Unavailable` where it may not be read."""
    log, after = ShardNames(settings.namespace, shard).log, b"-"
    while True:
        entries, refused = await asker.ask("XRANGE", log, after, "+", "COUNT", AT_ONCE)
        if refused:
            raise L2Unavailable(f"the log can't be read: {refused}")
        for entry in entries:
            yield message_of(entry[1])
        if len(entries) < AT_ONCE:
            return
        after = b"(" + entries[-1][0]
