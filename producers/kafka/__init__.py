"""The producer of commands on Kafka, for code that can't reach Redis, or must not wait for it."""

from cachebus.producers.kafka.producer import KafkaProducer

__all__ = ["KafkaProducer"]
