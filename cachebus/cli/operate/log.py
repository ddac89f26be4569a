"""`cachebus log`: the invalidations and writes of the past, out of the log in L2."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import AsyncIterator
from typing import Annotated, Final

import typer

from cachebus.cascade import WHOLE_SCOPE
from cachebus.cli.operate.events import Filter, line_of
from cachebus.cli.operate.layout import layout_of
from cachebus.cli.operate.look import AsJson
from cachebus.cli.performance import until_signalled
from cachebus.cli.settings import Namespace, Url, settings_for
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.keys.key import shard_of
from cachebus.l2.names import ShardNames
from cachebus.l2.replies import message_of
from cachebus.settings import Settings
from cachebus.tools.doctor.facts import Asker
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

    L2 keeps the last of them only, and of the present epoch (log_max_len, log_max_bytes). What touches a key is also
    what replaced its type, its tenant, or everything; tags by --tag, since nobody knows which tags a value had.

    Exit status: 0, 1 if there is nothing like it, 2 if the server could not be reached.
    """
    wanted = Filter(data_type, None if resource_id == WHOLE_SCOPE else resource_id, tenant, tuple(tags or ()), node)
    lines, troubles = until_signalled(_logged(settings_for(url, namespace), wanted, _age_s(since), limit, as_json))
    sys.stdout.writelines(f"{line}\n" for line in lines)
    if troubles:
        raise L2Unavailable(f"not all of the log could be read: {'; '.join(troubles)}")
    if not lines:
        sys.stderr.write("cachebus: nothing like it in the log, which has the last events of the present epoch only\n")
    raise typer.Exit(0 if lines else 1)


def _age_s(text: str | None) -> float | None:
    if text is None:
        return None
    found = _age(text)
    if found is None:
        raise ConfigError(f"--since takes a number with s, m, h or d, such as 15m, not {text!r}")
    return float(found[1]) * _SECONDS[found[2]]


async def _logged(
    settings: Settings, wanted: Filter, age_s: float | None, limit: int, as_json: bool
) -> tuple[list[str], list[str]]:
    """The lines, by the times at which the servers published the events; and what could not be read."""
    settings = (await layout_of(settings)).over(settings)
    some = range(settings.shards) if wanted.tenant is None else [shard_of(wanted.tenant, settings.shards)]
    found: list[tuple[int, str]] = []
    troubles: list[str] = []
    primaries, lost = await whereabouts(settings)
    troubles += (why for shard, why in lost.items() if shard in some)
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
                since_us = 0 if age_s is None else await asker.now_us() - int(age_s * 1_000_000)
                for shard in shards:
                    kept: deque[tuple[int, str]] = deque(maxlen=limit)
                    async for message in _messages(asker, settings, shard):
                        at_us = published_us(message)
                        if at_us >= since_us and (line := line_of(shard, message, wanted, as_json=as_json)):
                            kept.append((at_us, line))
                    found += kept
            except L2Unavailable as error:
                troubles.append(f"{primary.address}: {error}")
    return [line for _, line in sorted(found)[-limit:]], troubles


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
