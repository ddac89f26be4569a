"""Change data capture from a logical replication slot of PostgreSQL, without Debezium or Kafka.

In the order in which it is best read:

1. `postgres`: the source, and what its worker is told. `connecting`: how it connects. `session`: it is
   open; `beside`: its second connection.
2. `reader` peeks and advances: `peek` is one transaction, `slices` its parts, `commits` those that wait for a standby,
   `too_large` those that no server can tell; `nearer`: from where the server reads.
3. `pgoutput`: what a change says; `encodings`: where it is no UTF-8; `meaning`: by the rules; `shortcut`: the quick way
   to that.
4. `passed`: how far all is done; `older`: whether that is undone. `held`: what waits. `dead` and `replay`: letters.
5. What is assumed: `standing` looks at it all, at the `slot`, the `publication`, the `catalogue` and the `lineage` of
   its tables; `identity`: of their rows; `needs`: of the rules; `others`: who else uses it, `twins`: and does
   otherwise. `mending` repairs it, by `making` a slot; `storage` remembers, in the worker's `own_tables`: `figures`
   counts what lies there, `locks` says who is in the way.
"""
