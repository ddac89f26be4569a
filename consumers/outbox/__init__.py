"""The relay of the transactional outbox: it applies committed rows, and deletes them.

In the order in which it is best read:

1. `relay`: the worker. `options`: what it is told. `kinds`: which database a URL means.
2. `postgres`: rows are taken and acknowledged, over `database`. `rows`: what is taken; `reading`: which rows;
   `letting`: they are let go; `waiting`: since when others wait; `dead`: letters of them. `knowledge`: what a relay
   knows over all its connections.
3. `standing`: what is assumed of the tables, with `columns`. `inserts`: what swallows rows as they are written.
   `vacuum`: rows that the database can't forget. `locked`: rows that another session keeps. `elsewhere`: rows that lie
   where no relay takes them. `serving`: what relays show each other. `memory`: what they leave to each other.
   `remedies`: what repairs a missing table.
4. `sqlite`, over `sqlite_file`: the same in SQLite, with `sqlite_standing`. `remade`: a table that is made anew.
"""

from cachebus.consumers.outbox.kinds import create_tables, replay
from cachebus.consumers.outbox.options import RelayOptions
from cachebus.consumers.outbox.relay import OutboxRelay

__all__ = ["OutboxRelay", "RelayOptions", "create_tables", "replay"]
