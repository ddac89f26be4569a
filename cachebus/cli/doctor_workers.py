"""What the doctor tells of workers: those whose database, Kafka or rules it is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from cachebus.cli.worker.cdc_options import ChangeOrigin
from cachebus.cli.worker.checking import WorkerReport, made_by, reports_of
from cachebus.cli.worker.command import checks
from cachebus.settings import Settings

if TYPE_CHECKING:
    from cachebus.consumers.worker.source import Finding

OPTIONAL: Final = "there is none here ({}): all right where nobody wants one, as change data capture does not. Else: {}"
_SOURCE, _TABLE, _TOPIC = "CACHEBUS_CDC_SOURCE", "CACHEBUS_OUTBOX_TABLE", "CACHEBUS_KAFKA_COMMANDS_TOPIC"


class Workers(NamedTuple):
    """The workers to look at, by what was given of each."""

    settings: Settings
    database_url: str | None
    bootstrap_servers: str | None
    rules: Path | None

    def check_options(self) -> None:
        """Whether the workers can be made by these: nothing is looked at, and nothing connected to. `ConfigError`."""
        made_by(checks, self._commands())

    def reports(self) -> list[WorkerReport]:
        """What they would find, in this order: an outbox, commands on Kafka, change data capture."""
        return [self._without_unwanted(report) for report in reports_of(checks, self._commands())]

    def _commands(self) -> list[list[str]]:
        database = [] if self.database_url is None else ["--database-url", self.database_url]
        brokers = [] if self.bootstrap_servers is None else ["--bootstrap-servers", self.bootstrap_servers]
        commands = [["outbox", *database]] if database else []
        commands += [["kafka", *brokers]] if brokers else []
        commands += [] if self.rules is None else [["cdc", "--rules", str(self.rules), *database, *brokers]]
        at = ["--url", self.settings.url.get_secret_value(), "--namespace", self.settings.namespace]
        return [[*command, *at] for command in commands]

    def _without_unwanted(self, report: WorkerReport) -> WorkerReport:
        """The report; of an outbox, or of commands, that are not there at all, a warning alone, where the database or
        Kafka is given as the source of the rules, and nobody has named the table or the topic."""
        if self.rules is None:
            return report
        in_kafka = os.environ.get(_SOURCE) == ChangeOrigin.KAFKA
        if (report.name, in_kafka) == ("outbox", False) and _TABLE not in os.environ:
            return _told_as_optional(report, "table", None)
        if (report.name, in_kafka) == ("kafka", True) and _TOPIC not in os.environ:
            return _told_as_optional(report, "topic", self.settings.kafka_commands_topic)
        return report


def _told_as_optional(report: WorkerReport, assumption: str, name: str | None) -> WorkerReport:
    absent = next((one for seen in report.seen for one in seen.findings if _is_absence(one, assumption, name)), None)
    if absent is None:
        return report
    l2, source, *_ = report.seen
    warning = OPTIONAL.format(absent.subject, absent.remedy)
    return report._replace(seen=[l2, source._replace(warnings=(*source.warnings, warning))])


def _is_absence(found: Finding, assumption: str, name: str | None) -> bool:
    """Whether all that a worker reads is not there. `name`: of it; None: it is what stops the worker."""
    from cachebus.consumers.worker.source import Cause  # with what found it, the worker's own packages are here

    is_it = found.stops if name is None else found.subject == name
    return found.assumption == assumption and is_it and found.cause is Cause.ABSENT
