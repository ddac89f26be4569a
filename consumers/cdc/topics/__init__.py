"""Changes as Debezium writes them into topics."""
