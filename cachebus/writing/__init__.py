"""The path of a write: L2 in one script, then the own memory, then the bus.

1. `write` is the verbs: each says what it asks L2 for, and what becomes of it where L2 does not answer.
2. `delivery` carries one change out: L2, this node's own memory, the bus; `tell` is the step that producers share.
3. `pending` holds invalidations that L2 could not be told of, in order, until it can.
4. `confirm` waits until every node has applied a change; `guard` spans a database's transaction.
5. `resend_buffer` keeps what was acknowledged lately; `repeat` says it again where a failover may have lost it.
"""
