"""Workers that carry invalidations on: from an outbox, from Kafka, from a database's own log. At least once."""
