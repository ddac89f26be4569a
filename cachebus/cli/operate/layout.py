"""How a namespace is laid out: an operator need not know, and nothing is laid out by who only looks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from cachebus.core.ports import PROTOCOL
from cachebus.errors import ConfigError, L2Unavailable, ProtocolMismatch
from cachebus.l2.names import ShardNames
from cachebus.settings import CLUSTER_SHARDS, Settings
from cachebus.tools.doctor.asking import Asker
from cachebus.tools.doctor.primaries import Primary, primaries_of

_FACTS: Final = re.compile(r"protocol=(\d+) shards=(\d+) bus=(\w+)").fullmatch


class AgreedLayout(NamedTuple):
    """What the nodes of a namespace have agreed on."""

    shards: int
    bus: str

    def over(self, settings: Settings) -> Settings:
        """The settings, with as many shards."""
        return settings.model_copy(update={"shards": self.shards})


async def layout_of(settings: Settings) -> AgreedLayout:
    """As any shard's meta says: the first one's may lie on a primary that is away, or be evicted. Where there is none,
    as the settings say, if they name the shards.

    Raises `ConfigError` where nobody has laid the namespace out, `ProtocolMismatch` where others than this version
    have, and `L2Unavailable` where it can't be told.
    """
    troubles: list[str] = []
    for primary in await primaries_of(settings):
        try:
            asker = await Asker.open(primary.address, settings.connect_timeout_s)
        except L2Unavailable as error:
            troubles.append(str(error))
            continue
        async with asker:
            with suppress(L2Unavailable):  # it was lost: others may tell
                found = await _layout_at(asker, settings, primary, troubles)
                if found is not None:
                    return found
    if "shards" in settings.model_fields_set:
        return AgreedLayout(settings.shards, settings.bus)
    if troubles:
        raise L2Unavailable(f"{settings.namespace} can't be looked at: {'; '.join(dict.fromkeys(troubles))}")
    raise ConfigError(
        f"there is no namespace {settings.namespace} at {settings.safe_url}: look at --namespace, --url and its "
        "database. Where the server has lost it, its nodes lay it out again"
    )


async def _layout_at(asker: Asker, settings: Settings, primary: Primary, troubles: list[str]) -> AgreedLayout | None:
    shards: Iterable[int] = range(CLUSTER_SHARDS) if primary.shards is None else primary.shards
    for shard in shards:
        facts, refused = await asker.ask("HMGET", ShardNames(settings.namespace, shard).meta, "facts")
        if refused:
            troubles.append(f"{primary.address} refuses: {refused}")
        elif facts and facts[0]:
            return _read(facts[0].decode(errors="replace"), settings)
    return None


def _read(facts: str, settings: Settings) -> AgreedLayout:
    found = _FACTS(facts)
    if found is None or int(found[1]) != PROTOCOL:
        raise ProtocolMismatch(
            f"{settings.namespace} is laid out as {facts!r}, and this is protocol {PROTOCOL}: take the command of the "
            "version that its nodes have"
        )
    return AgreedLayout(int(found[2]), found[3])
