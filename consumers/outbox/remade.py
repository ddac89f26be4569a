"""A table of SQLite that is made anew, since SQLite alters no column: SQL for what goes with it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from cachebus.consumers.outbox.remedies import literal
from cachebus.consumers.worker.clean import clean

# Views, and triggers of other tables, name the table while it is away: with its own name a table is renamed only as
# SQLite did once. What has given ids gives them not again.
SQL: Final = """\
PRAGMA legacy_alter_table = ON; BEGIN; {create}; {moves};
DELETE FROM sqlite_sequence WHERE name = '{new}';
INSERT INTO sqlite_sequence (name, seq) SELECT '{new}', max(coalesce((SELECT max(id) FROM "{new}"), 0),
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{name}'), 0));
DROP TABLE "{name}"; ALTER TABLE "{new}" RENAME TO "{name}"; {index}{others}COMMIT;
PRAGMA legacy_alter_table = OFF;"""
OTHERS: Final = """\
SELECT name, sql FROM sqlite_master
WHERE tbl_name = ? COLLATE NOCASE AND type IN ('index', 'trigger') AND sql IS NOT NULL AND name <> ?
ORDER BY type, name"""
LONGEST: Final = 20_000
_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]")


def quoted(name: str) -> str:
    """The name of a column, as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def column(name: str, kind: str, not_null: bool, default: str | None, *, given: bool) -> str:
    """SQL that defines a column which is another's. `given`: whoever inserts may be the one who knows it."""
    must = " NOT NULL" if not_null and (given or default is not None) else ""
    return f"{quoted(name)} {kind}{must}{'' if default is None else f' DEFAULT ({default})'}"


def others(found: Iterable[tuple[bytes, bytes]]) -> tuple[str, str]:
    """What is to be done first, for what can't be told in one line; and the SQL of all other indexes and triggers, by
    their names and SQL."""
    lines, rest = "", list[str]()
    for name, sql in found:
        line = _in_a_line(sql.decode("utf-8", "replace"))
        if line:
            lines += f"{line}; "
        else:
            rest.append(literal(name.decode("utf-8", "replace")))
    sql_of = f"SELECT sql || ';' FROM sqlite_master WHERE name IN ({', '.join(rest)});"
    return f"first keep what this gives, and run it at the end: {sql_of} " if rest else "", lines


def _in_a_line(sql: str) -> str:
    """The SQL in one line; "" where it would mean something else."""
    if "--" in sql or any("\n" in each for each in _QUOTED.findall(sql)):
        return ""
    line = re.sub(r"\s*[\r\n]\s*", " ", sql)
    return line if clean(line, LONGEST) == line else ""
