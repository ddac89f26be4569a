"""Workers that carry invalidations on: from an outbox, from Kafka, from a database's own log. At least once."""

from loguru import logger as _logger

_logger.disable("consumers")  # silent until its user says `logger.enable("consumers")`, as the commands do
