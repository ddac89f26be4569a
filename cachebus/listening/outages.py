"""What is wrong, said in the log once: not for each shard, nor at each attempt."""

from __future__ import annotations

from typing import Literal

from cachebus.base.log import logger
from cachebus.core.ports import Store

Backend = Literal["L2", "bus"]


class Notices:
    """What is wrong with one thing at a time, by the thing's name."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def say(self, name: str, trouble: str) -> None:
        """Log the trouble where it is another than before; "" says that there is none any more."""
        if trouble == self._said.get(name, ""):
            return
        self._said[name] = trouble
        if trouble:
            logger.warning("{}: {}", name, trouble)
        else:
            logger.info("{}: all is well again", name)


class Outages:
    """Which shards are out of reach, in L2 and on the bus, and why."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._why: dict[Backend, dict[int, str]] = {"L2": {}, "bus": {}}

    def lost(self, part: Backend, shard: int, why: str) -> None:
        """The shard can't be reached; each reason is logged once."""
        known = self._why[part]
        if why not in known.values():
            logger.warning("{} out of reach: {}", part, why)
        known[shard] = why

    def back(self, part: Backend, shard: int) -> None:
        """The shard is reached; the last one to come back is logged."""
        known = self._why[part]
        if known.pop(shard, None) is not None and not known:
            logger.info("{}: all is well again", part)

    def reasons(self, part: Backend) -> dict[str, list[int]]:
        """Why it is out of reach, and for which shards each."""
        found: dict[str, list[int]] = {}
        for shard, why in sorted(self._why[part].items()):
            found.setdefault(why, []).append(shard)
        return found

    def lacks(self, shard: int) -> bool:
        """Whether the shard is known to be out of reach in L2."""
        return shard in self._why["L2"] or not self._store.reaches(shard)
