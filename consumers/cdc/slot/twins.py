"""Workers of one slot show each other, by advisory locks of PostgreSQL, which L2 they are for, and by which rules they
tell changes: whichever leads next must do the same."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from cachebus.consumers.worker.source import AGREE_LOOKS, Finding
from cachebus.consumers.worker.transactions import joined, workers_named

if TYPE_CHECKING:
    from asyncpg import Connection, Record

L2: Final = "l2"
RULES: Final = "rules"
_SUBJECT: Final = {L2: "{}, workers for another Redis", RULES: "{}, workers with other rules"}
_PROBLEM: Final = {
    L2: "a worker of this slot is for another Redis: whichever of them leads, nothing is told where the other is for",
    RULES: "a worker of this slot has other rules: changes are told by the rules of whichever leads",
}
_REMEDY: Final = {
    L2: "give all of them the same CACHEBUS_URL, that of the caches: who leads then lets go of what was applied "
    "elsewhere",
    RULES: "give all of them the same rules (--rules): who leads then lets go of what was told by others",
}


def lock_of(slot: str) -> str:
    """The name of the lock that the worker has which reads the slot."""
    return f"cachebus-cdc {slot}"


class Twins:
    """The other workers of a slot that live, by one session of a worker: their locks end with their sessions."""

    def __init__(self, connection: Connection, slot: str) -> None:
        self._connection = connection
        self._slot = slot
        self._shown: dict[str, str] = {}
        """What is shown by a lock of each kind."""
        self._looks = Counter[str]()
        """In how many checks in a row another worker had something else of each kind."""

    async def show(self, kind: str, ours: str) -> None:
        """Show the others what this worker has, until the session ends."""
        before = self._shown.get(kind)
        if ours and ours != before:
            await self._connection.execute(_SHOW, self._name(kind), ours)
            self._shown[kind] = ours
            if before is not None:
                await self._connection.execute(_HIDE, self._name(kind), before)

    async def hide(self) -> None:
        """Show nothing any more."""
        for kind, shown in self._shown.items():
            await self._connection.execute(_HIDE, self._name(kind), shown)
        self._shown.clear()

    async def finding(self, kind: str, ours: str, looks: int = AGREE_LOOKS) -> Finding | None:
        """The finding that others have something else, in so many checks in a row: they learn one after the other that
        their L2 has another name, and are replaced one after the other. `ours` is "" while it is not known."""
        others = await self._connection.fetch(_OTHERS, self._name(kind), ours) if ours else []
        self._looks[kind] = self._looks[kind] + 1 if others else 0
        if not others or self._looks[kind] < looks:
            return None
        who, ends = workers_named(others)
        return Finding(
            "leader", _SUBJECT[kind].format(self._slot), f"{_PROBLEM[kind]} ({who})", joined([_REMEDY[kind], ends])
        )

    async def leader(self) -> list[Record]:
        """The session that has the slot's lock, if it is another one's."""
        found: list[Record] = await self._connection.fetch(_LEADER, lock_of(self._slot))
        return found

    def _name(self, kind: str) -> str:
        return f"cachebus-cdc {kind} {self._slot}"


# Locks are a database's own, and the view of them is the whole server's.
_KIND: Final = "hashtext($1 || ' ' || current_database())"
_SHOW: Final = f"SELECT pg_try_advisory_lock_shared({_KIND}, hashtext($2))"
_HIDE: Final = f"SELECT pg_advisory_unlock_shared({_KIND}, hashtext($2))"
_OTHERS: Final = f"""\
SELECT DISTINCT l.pid, host(a.client_addr) AS host FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND l.pid <> pg_backend_pid()
    AND classid::bigint = ({_KIND}::bigint & 4294967295) AND objid::bigint <> (hashtext($2)::bigint & 4294967295)
ORDER BY l.pid"""
_LEADER: Final = """\
SELECT l.pid, host(a.client_addr) AS host FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32) | objid::bigint = hashtextextended($1, 0)"""
