"""Writes rows over the caller's own connection, of any known driver, inside its transaction; it never commits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Literal, get_args

from cachebus.errors import ConfigError

AT_ONCE: Final = 500
"""The most rows of one statement."""
Paramstyle = Literal["qmark", "numeric", "named", "format", "pyformat"]
"""How a DB-API driver has parameters written in a statement."""
PARAMSTYLES: Final = get_args(Paramstyle)
Row = tuple[str, str]
"""A row: namespace and command."""
AsyncWrite = Callable[[Any, "Insert", Sequence[Row]], Coroutine[Any, Any, None]]
WriteRow = Callable[[Any, "Insert", Sequence[Row]], None]


class Insert:
    """The INSERT statement, in the form that each driver takes. The statement for one row is kept once made."""

    def __init__(self, table: str, *, counts_rows: bool = True) -> None:
        self.table = table
        """As SQL names it."""
        self.counts_rows = counts_rows
        """Whether fewer rows than were given are refused."""
        self._head = f"INSERT INTO {table} (namespace, command) VALUES "
        self._of_one: dict[str, Any] = {}

    def sql(self, style: str, count: int) -> Any:
        """The statement for so many rows. `style`: a paramstyle of the DB-API, "dollar" for asyncpg, or
        "sqlalchemy"."""
        if count != 1:
            return self._made(style, count)
        if style not in self._of_one:
            self._of_one[style] = self._made(style, 1)
        return self._of_one[style]

    def _made(self, style: str, count: int) -> Any:
        places = [_place(style, number) for number in range(2 * count)]
        sql = self._head + ", ".join(f"({a}, {b})" for a, b in zip(places[::2], places[1::2], strict=True))
        return sys.modules["sqlalchemy"].text(sql) if style == "sqlalchemy" else sql


def _place(style: str, number: int) -> str:
    match style:
        case "qmark":
            return "?"
        case "format":
            return "%s"
        case "numeric":
            return f":{number + 1}"
        case "dollar":
            return f"${number + 1}"
        case "pyformat":
            return f"%(p{number})s"
        case _:
            return f":p{number}"


def _values(style: str, rows: Sequence[Row]) -> Any:
    flat = [part for row in rows for part in row]
    by_name = style in ("named", "pyformat", "sqlalchemy")
    return {f"p{number}": part for number, part in enumerate(flat)} if by_name else flat


def _arguments(style: str, insert: Insert, rows: Sequence[Row]) -> tuple[Any, Any]:
    return insert.sql(style, len(rows)), _values(style, rows)


def in_parts(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """The rows, split into those of each statement."""
    return [rows[at : at + AT_ONCE] for at in range(0, len(rows), AT_ONCE)]


# -- which driver it is ----------------------------------------------------------------------------------------


def async_writer(connection: object) -> AsyncWrite:
    """The function that writes over this connection; `ConfigError` if its driver is not known."""
    for kind in _kinds(connection):
        if kind in _ASYNC:
            return _ASYNC[kind]
    raise ConfigError(
        "OutboxProducer takes an AsyncSession or AsyncConnection of SQLAlchemy's, a connection of asyncpg's or an "
        f"AsyncConnection of psycopg's, not {type(connection).__name__}; for sync ones there is SyncOutboxProducer"
    )


def writer(connection: Any, paramstyle: Paramstyle | None) -> WriteRow:
    """The function that writes over this connection; `ConfigError` if there is none. `paramstyle`: for a DB-API
    connection whose module does not declare it."""
    kinds = _kinds(connection)
    for kind in kinds:
        if kind in _SYNC:
            return _SYNC[kind]
    if any(kind in _ASYNC for kind in kinds) or not callable(getattr(connection, "cursor", None)):
        raise ConfigError(
            "SyncOutboxProducer takes a Session or Connection of SQLAlchemy's, or a DB-API connection such as "
            f"psycopg's, not {type(connection).__name__}; for async ones there is OutboxProducer"
        )
    style = paramstyle or _declared_paramstyle(type(connection).__module__)
    if style is None or style not in PARAMSTYLES:
        raise ConfigError(f"paramstyle must be one of {', '.join(PARAMSTYLES)}: give the one of this connection")
    return _over_dbapi(style)


def _kinds(connection: object) -> list[tuple[str, str]]:
    """Package and name of its class and of all bases: so no driver has to be imported."""
    return [(cls.__module__.partition(".")[0], cls.__name__) for cls in type(connection).__mro__]


def _declared_paramstyle(module: str) -> str | None:
    while module:
        style = getattr(sys.modules.get(module), "paramstyle", None)
        if isinstance(style, str):
            return style
        module = module.rpartition(".")[0]
    return None


# -- writing over each driver ----------------------------------------------------------------------------------


def _refuse_autocommit(autocommit: object) -> None:
    """Refuse a connection that commits each statement by itself: the row could be lost, or be there without its write,
    which an outbox exists to prevent."""
    if autocommit is True:
        raise ConfigError("no transaction: this connection commits each statement by itself; begin a transaction first")


def _refuse_fewer(count: object, insert: Insert, rows: Sequence[Row]) -> None:
    """Raise if the database has said nothing against the rows, and has not inserted all of them: the caller would
    commit a write that nobody hears of. A driver that does not know the `count` says -1."""
    if insert.counts_rows and isinstance(count, int) and 0 <= count < len(rows):
        raise ConfigError(
            f"the invalidation is not written: the database has inserted {count} of {len(rows)} rows into "
            f"{insert.table}, and raised nothing. A rule (ON INSERT DO INSTEAD) or a trigger (BEFORE INSERT) of that "
            "table keeps them out: `cachebus worker check outbox` names it. Roll the transaction back, drop what keeps "
            "them out, and open the connections anew: what was prepared under a rule goes on by it. Or, where it puts "
            "them into a table that relays look into, as a child of this one: Outbox(..., counts_rows=False)"
        )


async def _over_async_session(session: Any, insert: Insert, rows: Sequence[Row]) -> None:
    await _over_async_connection(await session.connection(), insert, rows)


async def _over_async_connection(connection: Any, insert: Insert, rows: Sequence[Row]) -> None:
    statement, values = _arguments("sqlalchemy", insert, rows)
    _refuse_autocommit(_commits_by_itself(connection.sync_connection))
    result = await connection.execute(statement, values)
    _refuse_fewer(result.rowcount, insert, rows)


async def _over_asyncpg(connection: Any, insert: Insert, rows: Sequence[Row]) -> None:
    _refuse_autocommit(not connection.is_in_transaction())
    statement, values = _arguments("dollar", insert, rows)
    count = int((await connection.execute(statement, *values)).rpartition(" ")[2])
    if count < len(rows):
        await connection.reload_schema_state()  # prepared under a rule it stays nothing
    _refuse_fewer(count, insert, rows)


async def _over_async_psycopg(connection: Any, insert: Insert, rows: Sequence[Row]) -> None:
    _refuse_autocommit(connection.autocommit and not connection.info.transaction_status)
    cursor = await connection.execute(*_arguments("pyformat", insert, rows))
    if cursor.rowcount < 0:  # in a pipeline: the end of one, of an inner one too, waits for what was sent
        async with connection.pipeline():
            pass
    _refuse_fewer(cursor.rowcount, insert, rows)


def _over_session(session: Any, insert: Insert, rows: Sequence[Row]) -> None:
    _over_connection(session.connection(), insert, rows)


def _over_connection(connection: Any, insert: Insert, rows: Sequence[Row]) -> None:
    _refuse_autocommit(_commits_by_itself(connection))
    result = connection.execute(*_arguments("sqlalchemy", insert, rows))
    _refuse_fewer(result.rowcount, insert, rows)


def _over_psycopg(connection: Any, insert: Insert, rows: Sequence[Row]) -> None:
    _refuse_autocommit(connection.autocommit and not connection.info.transaction_status)
    cursor = connection.execute(*_arguments("pyformat", insert, rows))
    if cursor.rowcount < 0:  # as above
        with connection.pipeline():
            pass
    _refuse_fewer(cursor.rowcount, insert, rows)


def _over_dbapi(style: str) -> WriteRow:
    def write(connection: Any, insert: Insert, rows: Sequence[Row]) -> None:
        cursor = connection.cursor()
        try:
            # Asked after `cursor()`: that connects Django's connection, which only then knows.
            _refuse_autocommit(getattr(connection, "autocommit", False))
            cursor.execute(*_arguments(style, insert, rows))
            _refuse_fewer(getattr(cursor, "rowcount", -1), insert, rows)
        finally:
            cursor.close()

    return write


def _over_sqlite(connection: Any, insert: Insert, rows: Sequence[Row]) -> None:
    _refuse_autocommit(_sqlite_commits(connection))
    cursor = connection.execute(*_arguments("qmark", insert, rows))
    count = cursor.rowcount
    cursor.close()
    _refuse_fewer(count, insert, rows)


def _sqlite_commits(connection: Any) -> bool:
    """Whether the connection begins no transaction by itself, and is in none."""
    by_itself = connection.isolation_level is None or getattr(connection, "autocommit", False) is True
    return bool(by_itself and not connection.in_transaction)


def _commits_by_itself(connection: Any) -> object:
    """Whether a connection of SQLAlchemy commits each statement. Its engine or its own options may say so, so the
    driver's connection is asked."""
    if connection is None:
        return False
    if type(connection.connection.driver_connection).__module__.partition(".")[0] in ("sqlite3", "aiosqlite"):
        return _sqlite_commits(connection.connection.driver_connection)
    return getattr(connection.connection.dbapi_connection, "autocommit", False)


_ASYNC: Final[dict[tuple[str, str], AsyncWrite]] = {
    ("sqlalchemy", "AsyncSession"): _over_async_session,
    ("sqlalchemy", "async_scoped_session"): _over_async_session,
    ("sqlalchemy", "AsyncConnection"): _over_async_connection,
    ("asyncpg", "Connection"): _over_asyncpg,
    ("asyncpg", "PoolConnectionProxy"): _over_asyncpg,
    ("psycopg", "AsyncConnection"): _over_async_psycopg,
}
_SYNC: Final[dict[tuple[str, str], WriteRow]] = {
    ("sqlalchemy", "Session"): _over_session,
    ("sqlalchemy", "scoped_session"): _over_session,
    ("sqlalchemy", "Connection"): _over_connection,
    ("psycopg", "Connection"): _over_psycopg,
    ("sqlite3", "Connection"): _over_sqlite,
}
