"""The partitions of a table, by PostgreSQL's catalogue alone."""

from __future__ import annotations


def tree_of(root: str) -> str:
    """SQL for a table of `relid`: of the table itself, and of its partitions at every level. `root` is SQL for its oid.
    `pg_partition_tree` would wait for a lock of each partition: while one is being rewritten, nothing could be looked
    at."""
    return (
        f"(WITH RECURSIVE part (relid) AS (SELECT ({root})::oid UNION ALL SELECT i.inhrelid FROM part "
        "JOIN pg_class p ON p.oid = part.relid AND p.relkind = 'p' JOIN pg_inherits i ON i.inhparent = p.oid) "
        "SELECT relid FROM part)"
    )
