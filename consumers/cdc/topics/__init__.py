"""Change data capture from topics of Kafka that Debezium writes."""
