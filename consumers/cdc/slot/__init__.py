"""Change data capture from a logical replication slot of PostgreSQL, without Debezium or Kafka."""
