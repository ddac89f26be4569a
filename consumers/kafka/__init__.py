"""Commands on Kafka, the reader's end: from acknowledged commands to every cache."""

from consumers.kafka.replay import replay
from consumers.kafka.worker import CommandsWorker, WorkerOptions
from consumers.topics.membership import TROUBLE

__all__ = ["TROUBLE", "CommandsWorker", "WorkerOptions", "replay"]
