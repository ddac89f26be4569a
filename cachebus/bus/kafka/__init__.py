"""The bus over Kafka: one topic, a partition for some shards each, heard and sent to by partition."""
