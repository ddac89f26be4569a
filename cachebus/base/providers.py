"""Objects of the user's that are asked for secrets which change: credentials of Redis, tokens of Kafka.

1. What blocks is asked in a thread of its own, what awaits in a task of its own: neither holds the loop up.
2. All who ask meanwhile share one answer, until the provider says that it has another.
3. An answer that does not come in time is given up. So many may hang, and no more are begun until one has ended.
4. Of what is wrong with an answer the class is told, and never the text, which may quote a secret.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from importlib import import_module
from threading import Thread
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from cachebus.base.clock import monotonic
from cachebus.base.ignored import ignore_error
from cachebus.base.log import logger
from cachebus.base.weak import now_in

T = TypeVar("T")
HANGING_MAX: Final = 4
TELL_EVERY_S: Final = 60.0
LATELY_S: Final = 120.0
"""For so long a provider counts as one that gives nothing, since it was last asked: who needs it asks more often."""
_DEFAULT: Final = ("redis.credentials", "CredentialProvider.get_credentials_async")
"""redis-py's own, for who has written none: it calls the other one, which may block."""


class CredentialProvider(Protocol):
    """As redis-py's class of that name: gives a password, or a user and a password. May block."""

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """What to log in with now."""


class AsyncCredentialProvider(Protocol):
    """The same, awaited: where a provider has both, this one is asked."""

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """What to log in with now."""


class TokenProvider(Protocol):
    """As aiokafka's `AbstractTokenProvider`; its `extensions`, if it has any, are sent as well."""

    async def token(self) -> str:
        """The token to log in with now."""


class ProviderFailed(ConnectionError):
    """A provider gave nothing that can be used."""


def credentials_of(given: Any) -> Any:
    """What a setting says of credentials; `ValueError`."""
    return _provider(given, "get_credentials_async", "get_credentials")


def tokens_of(given: Any) -> Any:
    """What a setting says of tokens; `ValueError`."""
    return _provider(given, "token")


def _provider(given: Any, *methods: str) -> Any:
    """An object as it is, or by `module:name`: it, or what makes it when it is called, once a process. `ValueError`
    unless it has one of the methods."""
    if given is None:
        return None
    found = _imported(given) if isinstance(given, str) else given
    if isinstance(found, type) or (callable(found) and not _has(found, methods)):
        found = _made(given, found, methods) if isinstance(given, str) else None
    if not _has(found, methods):
        raise ValueError(f"expected an object with {' or '.join(f'{method}()' for method in methods)}, or module:name")
    return found


_made_by: Final[dict[str, tuple[Callable[[], Any], Any]]] = {}
"""By `module:name`: what makes it, and what that has made. So settings that say the same are equal, and those who ask
share its answers."""


def _made(text: str, maker: Callable[[], Any], methods: Sequence[str]) -> Any:
    known, made = _made_by.get(text, (None, None))
    if known != maker:  # the module may have been loaded anew
        made = maker()
        if _has(made, methods):
            _made_by[text] = maker, made
    return made


def _has(found: object, methods: Sequence[str]) -> bool:
    return any(callable(getattr(found, method, None)) for method in methods)


def _imported(text: str) -> Any:
    module, separator, name = text.partition(":")
    if not (separator and module and name):
        raise ValueError("expected module:name, as in myservice.login:provider")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # noqa: BLE001 (told by its class)
        raise ValueError(f"{text!r} cannot be imported: {type(error).__name__}") from None
    return found


class _Failure(NamedTuple):
    """Why a provider gives nothing, since when, when that was told last, and when it was asked last."""

    why: str
    since_s: float
    told_s: float
    asked_s: float


class Provided(Generic[T]):
    """What a provider gives, read by `reads`, which raises `ValueError` for what is of no use. Made by `provided`."""

    def __init__(self, provider: Any, method: str, reads: Callable[[Any], T], blocking: str) -> None:
        asked: Any = getattr(provider, method, None)
        of = getattr(asked, "__func__", asked)
        is_default = (getattr(of, "__module__", ""), getattr(of, "__qualname__", "")) == _DEFAULT
        self._awaits = callable(asked) and not is_default
        self._provider = provider  # whose id is no other one's as long as this is there
        self.name = type(provider).__name__
        self._call: Callable[[], Any] = asked if self._awaits else getattr(provider, blocking)
        self._reads = reads
        self._asking: WeakKeyDictionary[asyncio.AbstractEventLoop, _Asking[T]] = WeakKeyDictionary()
        self._under_way = 0
        self._said = 0
        self._failure: _Failure | None = None

    @property
    def trouble(self) -> str:
        """Since when it gives nothing, and why; "" where it does, or where nobody has asked lately: who finds another
        way, as to a primary without its Sentinels, does not ask again, and would never learn that it gives by now."""
        failure, now_s = self._failure, monotonic()
        if failure is None or now_s - failure.asked_s > LATELY_S:
            return ""
        return f"for {now_s - failure.since_s:.0f} s: {failure.why}"

    def gave(self) -> None:
        """It has given something of use."""
        self._failure = None

    async def get(self, timeout_s: float) -> T:
        """What it gives; `ProviderFailed`."""
        loop = asyncio.get_running_loop()
        asking = self._asking.get(loop)
        if asking is None or asking.task.done() or asking.said != self._said:
            task = loop.create_task(self._ask(timeout_s), name="cachebus-provider")
            asking = self._asking[loop] = _Asking(task, self._said)
        return await asking.shared()

    def changed(self) -> None:
        """The provider says that it gives something else by now: who asks from here on shares no earlier answer. May be
        called from any thread."""
        self._said += 1

    async def _ask(self, timeout_s: float) -> T:
        said, answer = self._said, self._begun()
        try:
            await asyncio.wait([answer], timeout=timeout_s)
            read = self._read(answer, timeout_s)
        except ValueError as why:
            if said != self._said:  # who asks now is answered apart: this one says nothing of how it is
                raise ProviderFailed(self._told_of(why)) from None
            raise self.failed(str(why)) from None
        finally:
            answer.cancel()
        if said == self._said:
            self.gave()
        return read

    def _read(self, answer: asyncio.Future[Any], timeout_s: float) -> T:
        """What it gave; `ValueError`, which says what it did instead."""
        if not answer.done():
            raise ValueError(f"gave nothing in {timeout_s:g} s")
        if answer.cancelled() or (error := answer.exception()) is not None:
            raise ValueError("was cancelled" if answer.cancelled() else f"raised {_kind_of(error)}")
        try:
            return self._reads(answer.result())
        except ValueError as error:
            raise ValueError(f"gave {error}") from None

    def _told_of(self, why: object) -> str:
        return f"the provider {self.name} {why}"

    def _begun(self) -> asyncio.Future[Any]:
        if self._under_way >= HANGING_MAX:
            raise self.failed(f"hangs in {HANGING_MAX} calls")
        self._under_way += 1
        if self._awaits:
            task: asyncio.Future[Any] = asyncio.ensure_future(_awaited(self._call))
            task.add_done_callback(self._ended)
            return task
        answer: Future[Any] = Future()
        answer.set_running_or_notify_cancel()  # so who gives up can't cancel it
        answer.add_done_callback(self._ended)
        thread = Thread(target=_run, args=(self._call, answer), name="cachebus-provider", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread is to be had
            answer.set_exception(error)
        return asyncio.wrap_future(answer)

    def _ended(self, answer: Any) -> None:
        self._under_way -= 1
        ignore_error(answer)

    def failed(self, why: str, *, lasts: bool = False) -> ProviderFailed:
        """The error that says it; told in the log, and again each minute until the provider has given something.
        `lasts`: the provider itself has said so, and will say when it gives something, whether it is asked or not."""
        text, now_s, last = self._told_of(why), monotonic(), self._failure
        since_s = now_s if last is None else last.since_s
        told_s = now_s if last is None or now_s - last.told_s >= TELL_EVERY_S else last.told_s
        self._failure = _Failure(text, since_s, told_s, math.inf if lasts else now_s)
        if told_s == now_s:
            logger.warning("{}; it is asked again", text)
        return ProviderFailed(text)


_provided: Final[WeakValueDictionary[tuple[int, str], Provided[Any]]] = WeakValueDictionary()
"""By the provider's id, which it has for as long as this is there: as it is while a call of it hangs."""


def provided(provider: Any, method: str, reads: Callable[[Any], T], blocking: str = "") -> Provided[T]:
    """One for all who ask this provider. `method`: asked in the loop if there is one, and awaited; else `blocking`."""
    found = _provided.get((id(provider), method))
    if found is None:
        found = _provided[id(provider), method] = Provided(provider, method, reads, blocking)
    return found


def trouble_of(provider: Any) -> str:
    """What is wrong with a provider that somebody of this process has asked: see `Provided.trouble`."""
    known = [_provided.get(key) for key in now_in(_provided) if key[0] == id(provider)]
    return next((trouble for one in known if one is not None and (trouble := one.trouble)), "")


class _Asking(Generic[T]):
    """One question, and how many wait for its answer: it is ended when nobody does any more."""

    def __init__(self, task: asyncio.Task[T], said: int) -> None:
        self.task = task
        self.said = said
        """How often the provider had said by then that it gives something else."""
        self._waiting = 0

    async def shared(self) -> T:
        self._waiting += 1
        try:
            await asyncio.wait([self.task])
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.task.cancel()
        if self.task.cancelled():
            raise ProviderFailed("the provider's answer is not waited for any more")
        error = self.task.exception()
        if isinstance(error, ProviderFailed):
            raise ProviderFailed(*error.args)  # the answer is everybody's: a trace would grow with each
        return self.task.result()


class _Exits(Exception):
    """Stands for a `SystemExit`, by which a task would end the loop, and with it the process, without a word."""


async def _awaited(call: Callable[[], Any]) -> Any:
    try:
        given = call()
        return await given if inspect.isawaitable(given) else given
    except SystemExit:
        raise _Exits from None


def _kind_of(error: BaseException | None) -> str:
    return SystemExit.__name__ if isinstance(error, _Exits) else type(error).__name__


def _run(call: Callable[[], Any], answer: Future[Any]) -> None:
    try:
        given = call()
    except BaseException as error:  # noqa: BLE001 (whoever waits is told, whatever it is)
        answer.set_exception(error)
    else:
        answer.set_result(given)


class NothingToAwait(Awaitable[None]):
    """For who may await what a callback returned, and may not: nothing is left undone either way."""

    def __await__(self) -> Any:
        """At once."""
        return iter(())
