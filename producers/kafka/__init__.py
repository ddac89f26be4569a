"""Commands on Kafka, the writer's end: an invalidation as a message, for those who reach no Redis or wait for none."""

from cachebus.producers.kafka.producer import KafkaProducer

__all__ = ["KafkaProducer"]
