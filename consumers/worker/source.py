"""The port to what a worker reads from: an outbox, topics of Kafka, a replication slot.

A `Source` opens sessions. A `Session` takes items, says what each means, sets aside dead letters, acknowledges what is
done, and checks what it assumes. All else is the worker's, the same for all sources.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry

from cachebus.consumers.worker.clean import describe
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.producers.command import Command, Resource

AGAIN_S: Final = 60.0
"""How long an item rests that can be neither applied nor set aside, before it is tried again."""
SENT_FROM_S: Final = 1_420_000_000.0
"""A time before 2015 is not a real one: an item has not waited since then."""
AGREE_LOOKS: Final = 3
"""In so many checks in a row workers of one source must be seen to have different L2s: a rebalance takes a while, and
workers learn one after the other that theirs has another name."""


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
    looked: bool = True
    """Whether the source was looked through for items. A batch without items says nothing of it otherwise."""


class WaitingItem(NamedTuple):
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

    waiting: list[WaitingItem] = field(default_factory=list)
    undone: list[Item] = field(default_factory=list)
    """There was no time for these: they are not applied, or not for sure."""
    not_set_aside: list[NotSetAside] = field(default_factory=list)
    """The letters of these could not be kept. They come again after a while. What of them can be applied is applied, or
    waits."""
    size: int = 0
    """How many keys and scopes wait."""


class FindingKey(NamedTuple):
    """What a finding is known by. Of one subject one warns, by another changes go unnoticed, and a third is over: none
    of them hides another."""

    assumption: str
    subject: str
    missed: bool
    over: bool

    @property
    def about(self) -> tuple[str, str]:
        """See `Finding.about`."""
        return self.assumption, self.subject


class Cause(StrEnum):
    """What a finding comes from, where something else depends on it. The problem is for people, and may be reworded."""

    OTHER = "other"
    ABSENT = "absent"
    """What the worker reads or writes is not there."""
    UNPUBLISHED = "unpublished"
    """The publication leaves a table out, and has all it takes to add it."""
    RULES = "rules"
    """What was missed was told by other rules or cascades, and nothing else was missed."""


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
    cause: Cause = Cause.OTHER

    @property
    def about(self) -> tuple[str, str]:
        """What it is of. There may be several of one."""
        return self.assumption, self.subject

    @property
    def key(self) -> FindingKey:
        """What it is known by over several checks."""
        return FindingKey(self.assumption, self.subject, self.missed, self.over)

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}{f'; to mend it: {self.remedy}' if self.remedy else ''}"


@dataclass
class Look:
    """What a check of the source has found."""

    findings: list[Finding] = field(default_factory=list)
    backlog: int | None = None
    """How many items wait; None where nobody can tell."""
    oldest_s: float | None = None
    """How long the oldest has waited at most, in seconds; None where nobody can tell. It counts then since it was
    known last."""
    latest_s: float | None = None
    """In how many seconds the last item is due that is not due yet; infinite for one that never is, 0 for none."""
    held: int = 0
    """How many of them wait for a primary of L2 that is away, while the others go on."""
    warnings: Sequence[str] = ()
    """What may be a mistake, or go wrong later, and holds up nothing. The source logs it by itself."""


class Session(ABC):
    """One connection to the source, from its opening to its end.

    Its methods raise one of `Source.trouble` when the connection is gone. The worker then opens another session. `take`
    and `acknowledge` are called in turn; `look` and `mend` may be called at any time.
    """

    look_again = False
    """A session sets this if a check would find something else by now. The worker then checks it at once."""
    not_noted = False
    """A session sets this if what was acknowledged counts as done, and the source has yet to note it: the next `take`
    raises why it has not."""

    @abstractmethod
    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """Take at most `limit` items. Where there are none it waits a little, so that calling it in a loop costs
        nothing. It may be cancelled. `away`: shards of L2 that are not tried now; items that wait for them may be
        left."""

    @abstractmethod
    def mean(self, item: Item) -> Meaning:
        """What the item asks for. Whatever this raises becomes the reason of a dead letter."""

    def named(self, items: Sequence[Item]) -> Sequence[Resource]:
        """What the first of these items name, each one resource and nothing else, as far as that is told in a fraction
        of the time of `mean`, which says the same; nothing where the first is not. All are of one data type, and match
        contexts alike."""
        return ()

    def origin(self, item: Item) -> str:
        """Which of several the item came from, for people: a partition, a table. It is told where all of one are set
        aside, whatever the others do. It is nobody's data. "" where there are none, or where that is not told."""
        return ""

    def reads(self, origin: str) -> bool:
        """Whether what comes from there comes to this worker now; False where another one has it."""
        return True

    @abstractmethod
    def letter(self, item: Item, reason: str) -> DeadLetter:
        """The dead letter of an item, with the reason."""

    @abstractmethod
    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """Keep dead letters: all or none. They are durable when `acknowledge` returns, at the latest. If this raises,
        or is cancelled, the session goes on as if it had not been called."""

    async def has_letters(self, within_s: float) -> bool | None:
        """Whether dead letters lie there that were set aside in the last `within_s` seconds, and that nobody has
        replayed or removed; None where that can't be told. It is asked after a look, and only where all that comes is
        set aside."""
        return None

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

    def scopes(self, findings: Sequence[Finding]) -> list[Command] | None:
        """Commands for the scopes that changes may have touched that went unnoticed by these findings. None where
        nobody can name them: once they are over, everything in the namespace is let go of then."""
        return None

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """All `scopes` of these are invalidated: those that are `over` need not be found again. `NotStored` if they may
        be, for a reason that is found at the next look: then they are given once more at each look."""
        return


class NotStored(Exception):
    """A source can't store yet that something is made up for."""


class Source(ABC):
    """Where items come from, over any number of sessions."""

    part: str
    """Its name in health and logs: "database", "kafka"."""
    trouble: tuple[type[BaseException], ...] = ()
    """The errors that mean that it is out of reach. The worker waits for it then."""
    assumptions: tuple[str, ...] = ()
    """The names of its assumptions, for metrics: few, and always the same."""
    """What helps where nobody can name what missed changes have touched, as a sentence without its full stop."""
    limit: int = 500
    """The most items of a batch."""
    poison: tuple[type[BaseException], ...] = (ValueError, TypeError)
    """What `Session.set_aside` raises for a letter that can never be kept as it is, but perhaps without its payload."""
    set_aside_s: float = 2.0
    """How long it may take to keep the letters of a batch. After that they are tried again later."""
    again_s: float = AGAIN_S
    """About how long an item rests that could not be set aside."""
    letters_at: str = ""
    """Where dead letters lie, for people: "the table cachebus_cdc_dead"."""
    options: Mapping[str, str | None] = MappingProxyType({})
    """Options by which commands find what this worker has set aside, as "--table", with their values: None for the
    default."""
    variables: tuple[str, ...] = ()
    """Variables of the environment by which they do, too: those of URLs, which may have passwords."""
    if_all_is_dead: str = ""
    """What to look at where all that comes is set aside, as a sentence without its full stop."""
    identity: Callable[[], str] = staticmethod(lambda: "")
    """What tells the worker's L2 from all others, "" before it is known. What workers of another L2 have applied is
    missing in this one."""
    followed: str = ""
    """What tells the cascades that the worker follows from others, "" for none: see `cascades.digest`."""
    checks_for: str | None = None
    """Of a check, which takes nothing: its L2, as `identity` tells that of a worker; "" if it does not answer. None: a
    worker runs."""
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

    def look_once(self) -> None:
        """No more than one look follows: what would be told once it has lasted for a while is told by that one."""
        self.checks_for = ""


POLL_S: Final = 0.3
"""About how long a `take` waits that finds nothing."""
