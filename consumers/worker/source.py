"""What a worker reads from. A source takes, says what it means, lets go, and says what it assumes; all else is the
worker's, once for all of them.
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
"""So long an item rests that can be neither applied nor set aside, where it may."""


@dataclass(slots=True)
class Item:
    """One row, message or change, as it was taken."""

    place: str
    """Where it came from, for people: "row 7", "commands/0@12"."""
    raw: Any
    """The source's own."""
    sent_s: float | None = None
    """Unix time at which it was written, or committed, where that is known."""
    again: bool = False
    """Whether this worker has applied it before, as far as it knows."""


class Meaning(NamedTuple):
    """What an item asks for. One that asks for nothing, and has no problem, is ignored."""

    commands: Sequence[Command | bytes | str] = ()
    problems: Sequence[str] = ()
    """What of it can't be used: it makes a dead letter, beside what can."""


NOTHING: Final = Meaning()


@dataclass
class Batch:
    """What was taken together, in its order."""

    items: list[Item] = field(default_factory=list)
    full: bool = False
    """Whether there is more at once."""


class Waiting(NamedTuple):
    """An item, or what of it waits for a primary of L2 that is away, while everything else goes on."""

    item: Item
    commands: Sequence[Command | bytes | str]
    shards: frozenset[int]
    of: Sequence[int] = ()
    """By command: its shard."""


class Unburied(NamedTuple):
    """An item that can't be used, or not all of it, and could not be set aside."""

    item: Item
    letter: DeadLetter


@dataclass
class Left:
    """What of a batch is not done with. Of all else L2 has let go, or it is a dead letter."""

    waiting: list[Waiting] = field(default_factory=list)
    undone: list[Item] = field(default_factory=list)
    """For these there was no time: nothing has happened to them, or not for sure."""
    unburied: list[Unburied] = field(default_factory=list)
    """Their letters could not be kept: they come again, at a pace. What of them can be applied is, or waits."""
    size: int = 0
    """Of keys, scopes and tags that wait."""


class Finding(NamedTuple):
    """Something that the source assumes, and that is not so."""

    assumption: str
    """One of `Source.assumptions`."""
    subject: str
    """What of: a table, a topic, a slot."""
    problem: str
    """What is wrong, in a sentence without its full stop."""
    remedy: str = ""
    """What helps: exact SQL, a command, a setting."""
    missed: bool = False
    """Whether changes go unnoticed by it."""
    stops: bool = False
    """Whether nothing is taken meanwhile."""
    over: bool = False
    """Whether all is well again, and only what was missed is left to be made up for: see `Session.made_up`."""

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}{f'; to mend it: {self.remedy}' if self.remedy else ''}"


@dataclass
class Look:
    """What a look at the source has found."""

    findings: list[Finding] = field(default_factory=list)
    backlog: int | None = None
    """How many wait; None where nobody can tell."""
    oldest_s: float | None = None
    """For how long the oldest has waited."""
    latest_s: float | None = None
    """In how many seconds the last of those is due that are not yet: infinite for one that never is; 0 for none."""
    held: int = 0
    """How many of them wait for a primary of L2 that is away, while the others go on."""


class Session(ABC):
    """One connection's life. Its methods raise one of `Source.trouble` when the connection is gone; then comes another
    session. `take` and `let_go` take turns; `look` and `mend` may be called at any time."""

    look_again = False
    """Set by a session of which a look would tell something else by now: it is looked at once more, at once."""

    @abstractmethod
    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """At most so many items. Waits a little where there are none, so that whoever calls it again and again costs
        nothing; may be cancelled. `away`: shards of L2 that are not tried now: what waits for them may stay where it
        is."""

    @abstractmethod
    def mean(self, item: Item) -> Meaning:
        """What it asks for. Whatever it raises is one dead letter's reason."""

    @abstractmethod
    def letter(self, item: Item, reason: str) -> DeadLetter:
        """The item as it is set aside."""

    @abstractmethod
    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Keep what can't be used: durable when `let_go` returns, at the latest. All of it or nothing; whatever it
        raises, and if it is cancelled, the session goes on as if it had not been called."""

    @abstractmethod
    async def let_go(self, batch: Batch, left: Left) -> None:
        """What is not `left` of the last batch is done with: it need not come again. What waits is kept, and comes
        again when its primary may be there; what is undone comes at once; what is unburied comes again after a while,
        and nothing waits for it."""

    @abstractmethod
    async def look(self) -> Look:
        """What is assumed and is not so, and what waits. Changes nothing."""

    async def mend(self, findings: Sequence[Finding]) -> bool:
        """Whether something of it was mended: what may be mended by anybody, such as a table that is not there yet."""
        return False

    def scopes(self, findings: Sequence[Finding]) -> tuple[list[Command], list[str]]:
        """What changes that were missed by these may have touched, as whole scopes; and where nobody can name it."""
        return [], [finding.subject for finding in findings]

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """Caches have let go of all `scopes` of these: those that are `over` need not be found again."""
        return


class Source(ABC):
    """Where items come from, over any number of sessions."""

    part: str
    """What it is called in health and logs: "database", "kafka"."""
    trouble: tuple[type[BaseException], ...] = ()
    """What is raised when it is out of reach: it is waited for."""
    assumptions: tuple[str, ...] = ()
    """The names of what it assumes, for figures: few, and always the same."""
    if_unnamed: str = "Invalidate it by hand"
    """What helps where nobody can name what missed changes have touched: a sentence without its full stop."""
    limit: int = 500
    """Items in hand together, at most."""
    poison: tuple[type[BaseException], ...] = (ValueError, TypeError)
    """What `Session.bury` raises for a letter that can't be kept as it is, however often that is tried: without what is
    in it it may be."""
    bury_s: float = 2.0
    """So long the letters of a batch may take to be kept: then they are tried again later."""
    again_s: float = AGAIN_S
    """About so long rests what could not be set aside."""
    identity: Callable[[], str] = staticmethod(lambda: "")
    """What tells the worker's L2 from all others, "" before it is known: two workers of one source must agree."""
    hold_s: float | None = None
    """How long a batch may be in hand while L2 does not answer, and nothing is taken while it is known to be away;
    None: for ever."""

    @abstractmethod
    def opened(self) -> AbstractAsyncContextManager[Session]:
        """Connected. One of `trouble`, or `ConfigError` where no waiting helps."""

    def describe(self, error: BaseException) -> str:
        """An error of its, in a line without values and secrets."""
        return describe(error)

    def register(self, registry: CollectorRegistry) -> None:
        """Add figures of its own."""
        return


POLL_S: Final = 0.3
"""About so long a `take` waits that finds nothing."""
