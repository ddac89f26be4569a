"""Change data capture: from rows that changed to invalidations, by rules, from a PostgreSQL slot or from Debezium."""
