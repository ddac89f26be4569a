"""Row-level security in PostgreSQL: whether it may hide rows of a worker's tables from the worker, by the catalogue
alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import asyncpg

SELECT: Final = "r"
INSERT: Final = "a"
UPDATE: Final = "w"
DELETE: Final = "d"


async def remedies(connection: asyncpg.Connection, needed: Mapping[str, str]) -> dict[str, str]:
    """For each table whose rows this role may not reach all of: the SQL that lets it reach them.

    `needed`: by table, as SQL names it, the commands that must reach every row. Rows that are locked by SELECT ... FOR
    UPDATE need those of UPDATE as well. A policy that shows a part of the rows counts as one that shows none.
    """
    found = await connection.fetch(_SHUT, list(needed), list(needed.values()))
    return {row["name"]: row["remedy"] for row in found if row["remedy"]}


# Policies of one command and role: a row is reached if one permissive policy shows it, and every restrictive one does.
_SHUT: Final = """\
WITH policy AS (
    SELECT polrelid, polname, polpermissive, command,
        (command = 'a' OR coalesce(pg_get_expr(polqual, polrelid), otherwise) = 'true')
        AND (command IN ('r', 'd') OR coalesce(pg_get_expr(polwithcheck, polrelid), pg_get_expr(polqual, polrelid),
            otherwise) = 'true') AS whole
    FROM pg_policy, unnest(ARRAY['r', 'a', 'w', 'd']) AS command,
        (VALUES (true, 'false'), (false, 'true')) AS without (permissive, otherwise)
    WHERE polpermissive = permissive AND polcmd::text IN ('*', command)
        AND EXISTS (SELECT FROM unnest(polroles) AS one WHERE one = 0 OR pg_has_role(one, 'USAGE')))
SELECT name, concat_ws(' ',
    (SELECT string_agg(DISTINCT format('DROP POLICY %I ON %s;', polname, name), ' ') FROM policy
     WHERE polrelid = r AND NOT polpermissive AND NOT whole AND strpos(commands, command) > 0),
    (SELECT format('CREATE POLICY %I ON %s TO %I USING (true) WITH CHECK (true);', free, name, current_user)
     FROM (SELECT free FROM generate_series(1, 1000) AS n, concat_ws('_', 'cachebus', nullif(n, 1)) AS free
         WHERE NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = r AND polname = free) ORDER BY n LIMIT 1) AS names
     WHERE EXISTS (SELECT FROM regexp_split_to_table(commands, '') AS needed WHERE NOT EXISTS (
         SELECT FROM policy WHERE polrelid = r AND polpermissive AND whole AND command = needed)))) AS remedy
FROM unnest($1::text[], $2::text[]) AS asked (name, commands), to_regclass(name) AS r
WHERE row_security_active(r)"""
