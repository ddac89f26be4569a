"""A transaction of which no server can tell.

A row of more than a gigabyte takes long to write. A publication's row filter is computed where rows are told, and the
text that this one makes has the same limit, and its error is the same.
"""

from __future__ import annotations

from tests.support.cdc_slot import ORDER

STORY = [
    ORDER.format(1),
    "CREATE TABLE shop.large (size int PRIMARY KEY)",
    "ALTER PUBLICATION cachebus_cdc ADD TABLE shop.large WHERE (repeat('x', size) <> '')",
    "INSERT INTO shop.large VALUES (1073741824)",
    "ALTER PUBLICATION cachebus_cdc DROP TABLE shop.large",
    ORDER.format(2),
]
