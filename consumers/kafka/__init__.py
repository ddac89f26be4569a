"""Commands on Kafka, the reader's end: from acknowledged commands to every cache."""

from cachebus.consumers.kafka.replay import replay
from cachebus.consumers.kafka.worker import CommandsWorker, WorkerOptions
from cachebus.consumers.topics.membership import TROUBLE

__all__ = ["TROUBLE", "CommandsWorker", "WorkerOptions", "replay"]
