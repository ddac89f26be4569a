"""The worker for commands on Kafka: it applies what `KafkaProducer` has sent."""

from cachebus.consumers.kafka.replay import replay
from cachebus.consumers.kafka.worker import CommandsWorker, WorkerOptions
from cachebus.consumers.topics.membership import TROUBLE

__all__ = ["TROUBLE", "CommandsWorker", "WorkerOptions", "replay"]
