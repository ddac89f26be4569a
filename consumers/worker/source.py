"""The port to what a worker reads from: an outbox, topics of Kafka, a replication slot.

A `Source` opens sessions. A `Session` takes items, says what each means, sets aside dead letters, acknowledges what is
done, and checks what it assumes. All else is the worker's, the same for all sources.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry

from cachebus.consumers.worker.clean import describe
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.producers.command import Command

AGAIN_S: Final = 60.0
"""How long an item rests that can be neither applied nor set aside, before it is tried again."""


@dataclass(slots=True)
class Item:
    """One row, message or change, as it was taken from the source."""

    place: str
    """Where it came from, for people: "row 7", "commands/0@12"."""
    raw: Any
    """The source's own form of it."""
    sent_s: float | None = None
    """When it was written or committed, in Unix seconds, where that is known."""
    again: bool = False
    """Whether this worker has applied it before, as far as it knows."""


class Meaning(NamedTuple):
    """What an item asks for. An item without commands and problems is ignored."""

    commands: Sequence[Command | bytes | str] = ()
    problems: Sequence[str] = ()
    """What is wrong with it, or with a part of it. That makes a dead letter; the commands are applied all the same."""


NOTHING: Final = Meaning()


@dataclass
class Batch:
    """Items that were taken together, in the source's order."""

    items: list[Item] = field(default_factory=list)
    full: bool = False
    """Whether the source has more right now."""


class Waiting(NamedTuple):
    """An item, or a part of it, that waits for a primary of L2 that is away, while everything else goes on."""

    item: Item
    commands: Sequence[Command | bytes | str]
    shards: frozenset[int]
    of: Sequence[int] = ()
    """The shard of each command."""


class NotSetAside(NamedTuple):
    """An item that can't be applied, or not as a whole, and could not be set aside either."""

    item: Item
    letter: DeadLetter


@dataclass
class Left:
    """What is left of a batch. All else of it is applied, ignored, or a dead letter."""

    waiting: list[Waiting] = field(default_factory=list)
    undone: list[Item] = field(default_factory=list)
    """There was no time for these: they are not applied, or not for sure."""
    not_set_aside: list[NotSetAside] = field(default_factory=list)
    """The letters of these could not be kept. They come again after a while. What of them can be applied is applied, or
    waits."""
    size: int = 0
    """How many keys and scopes wait."""


class Finding(NamedTuple):
    """A broken assumption of the source."""

    assumption: str
    """One of `Source.assumptions`."""
    subject: str
    """What it is about: a table, a topic, a slot."""
    problem: str
    """What is wrong, as a sentence without its full stop."""
    remedy: str = ""
    """What repairs it: exact SQL, a command, a setting."""
    missed: bool = False
    """Whether changes may go unnoticed by it."""
    stops: bool = False
    """Whether nothing may be taken while it lasts."""
    over: bool = False
    """Whether the problem is over, and only what was missed is left to make up for: see `Session.made_up`."""
    state: str = ""
    """What it was found by. With another state it has happened once more, and is to be made up for once more, though
    the problem reads the same."""

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}{f'; to mend it: {self.remedy}' if self.remedy else ''}"


@dataclass
class Look:
    """What a check of the source has found."""

    findings: list[Finding] = field(default_factory=list)
    backlog: int | None = None
    """How many items wait; None where nobody can tell."""
    oldest_s: float | None = None
    """How long the oldest has waited, in seconds."""
    latest_s: float | None = None
    """In how many seconds the last item is due that is not due yet; infinite for one that never is, 0 for none."""
    held: int = 0
    """How many of them wait for a primary of L2 that is away, while the others go on."""


class Session(ABC):
    """One connection to the source, from its opening to its end.

    Its methods raise one of `Source.trouble` when the connection is gone. The worker then opens another session. `take`
    and `acknowledge` are called in turn; `look` and `mend` may be called at any time.
    """

    look_again = False
    """A session sets this if a check would find something else by now. The worker then checks it at once."""

    @abstractmethod
    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """Take at most `limit` items. Where there are none it waits a little, so that calling it in a loop costs
        nothing. It may be cancelled. `away`: shards of L2 that are not tried now; items that wait for them may be
        left."""

    @abstractmethod
    def mean(self, item: Item) -> Meaning:
        """What the item asks for. Whatever this raises becomes the reason of a dead letter."""

    @abstractmethod
    def letter(self, item: Item, reason: str) -> DeadLetter:
        """The dead letter of an item, with the reason."""

    @abstractmethod
    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """Keep dead letters: all or none. They are durable when `acknowledge` returns, at the latest. If this raises,
        or is cancelled, the session goes on as if it had not been called."""

    @abstractmethod
    async def acknowledge(self, batch: Batch, left: Left) -> None:
        """Acknowledge the last batch, except what is `left` of it:

        1. What waits is kept, and comes again when its primary may answer.
        2. What is undone comes again at once.
        3. What is not_set_aside comes again after a while, and holds up nothing.
        """

    @abstractmethod
    async def look(self) -> Look:
        """Check the assumptions, and count what waits. Changes nothing."""

    async def mend(self, findings: Sequence[Finding]) -> bool:
        """Repair what may be repaired without asking, such as a missing table; returns whether anything was."""
        return False

    def scopes(self, findings: Sequence[Finding]) -> tuple[list[Command], list[str]]:
        """Commands for the scopes that changes may have touched that went unnoticed by these findings; and the subjects
        for which nobody can name them."""
        return [], [finding.subject for finding in findings]

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """All `scopes` of these are invalidated: those that are `over` need not be found again."""
        return


class Source(ABC):
    """Where items come from, over any number of sessions."""

    part: str
    """Its name in health and logs: "database", "kafka"."""
    trouble: tuple[type[BaseException], ...] = ()
    """The errors that mean that it is out of reach. The worker waits for it then."""
    assumptions: tuple[str, ...] = ()
    """The names of its assumptions, for metrics: few, and always the same."""
    if_unnamed: str = "Invalidate it by hand"
    """What helps where nobody can name what missed changes have touched, as a sentence without its full stop."""
    limit: int = 500
    """The most items of a batch."""
    poison: tuple[type[BaseException], ...] = (ValueError, TypeError)
    """What `Session.set_aside` raises for a letter that can never be kept as it is, but perhaps without its payload."""
    set_aside_s: float = 2.0
    """How long it may take to keep the letters of a batch. After that they are tried again later."""
    again_s: float = AGAIN_S
    """About how long an item rests that could not be set aside."""
    identity: Callable[[], str] = staticmethod(lambda: "")
    """What tells the worker's L2 from all others, "" before it is known. All workers of a source must agree on it."""
    hold_s: float | None = None
    """How long a batch may be in hand while L2 does not answer. With it, nothing is taken while L2 is known to be away.
    None: for ever."""

    @abstractmethod
    def opened(self) -> AbstractAsyncContextManager[Session]:
        """A session, connected. Entering raises one of `trouble`, or `ConfigError` where no waiting helps."""

    def describe(self, error: BaseException) -> str:
        """One of its errors, in a line without values and secrets."""
        return describe(error)

    def register(self, registry: CollectorRegistry) -> None:
        """Add metrics of its own."""
        return


POLL_S: Final = 0.3
"""About how long a `take` waits that finds nothing."""
