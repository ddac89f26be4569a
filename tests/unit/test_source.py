"""A source is called with what it takes, is not kept alive by having been called, and gives what callers can share."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import io
import operator
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from cachebus import context
from cachebus.base import parameters
from cachebus.errors import ConfigError, LoadTimeout
from cachebus.reading.source import awaited, bind, call
from tests.support.logs import told


def passes_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def passes_names_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(**kwargs: Any) -> Any:
        return function(**kwargs)

    return wrapper


def gives_session(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(a: Any) -> Any:
        return function("session", a)

    return wrapper


class Method:
    @passes_on
    def wrapped_load(self, resource_id: str, tenant_id: str) -> Any:
        return resource_id, tenant_id

    @functools.lru_cache  # noqa: B019 (an instance for this test alone)
    def cached_load(self, resource_id: str, tenant_id: str) -> Any:
        return resource_id, tenant_id

    def load(self, resource_id: str, tenant_id: str) -> Any:
        return resource_id, tenant_id

    def __call__(self, resource_id: str) -> Any:
        return resource_id


def two(resource_id: str, tenant_id: str) -> Any:
    return resource_id, tenant_id


@functools.wraps(two)
def wrapped(*args: Any) -> Any:
    return two(*args)


def three(a: Any, b: Any, c: Any) -> Any:
    return a, b, c


def by_name(resource_id: str, *, ctx: Any, other: int = 5) -> Any:
    return resource_id, ctx, other


SHAPES = [
    (lambda: "none", "none"),
    (lambda a: a, "r"),
    (two, ("r", "t")),
    (lambda a, b, c: (a, b, c), ("r", "t", "c")),
    (lambda a, b, c, d=4: (a, b, c, d), ("r", "t", "c", 4)),
    (lambda *a: a, ("r", "t", "c")),
    (lambda **k: k, {"resource_id": "r", "tenant_id": "t", "ctx": "c"}),
    (lambda a, **k: (a, k), ("r", {"tenant_id": "t", "ctx": "c"})),
    (by_name, ("r", "c", 5)),
    (wrapped, ("r", "t")),
    (Method().load, ("r", "t")),
    (Method(), "r"),
    (functools.partial(lambda x, a, b: (x, a, b), "x"), ("x", "r", "t")),
    (str, "r"),
    # by these names, wherever they stand
    (lambda tenant_id, resource_id: (tenant_id, resource_id), ("t", "r")),
    (lambda ctx, a: (ctx, a), ("c", "r")),
    (lambda a, ctx=None: (a, ctx), ("r", "c")),
    (lambda a, tenant_id=None: (a, tenant_id), ("r", "t")),
    (lambda a, page=1, tenant_id=None: (a, page, tenant_id), ("r", 1, "t")),
    (lambda a, *, page=1, ctx: (a, page, ctx), ("r", 1, "c")),
    (lambda tenant_id, a, /: (tenant_id, a), ("t", "r")),
    (lambda a, page=1, tenant_id=None, /: (a, page, tenant_id), ("r", 1, None)),
    (lambda a, b, tenant_id: (a, b, tenant_id), ("r", "c", "t")),
    # what is optional keeps its default
    (lambda a, include_deleted=False: (a, include_deleted), ("r", False)),
    (lambda a=7: a, 7),
    (lambda a, page=1, *rest, **more: (a, page, rest, more), ("r", 1, (), {"tenant_id": "t", "ctx": "c"})),
    ({}.get, None),
    ({"r": 1}.get, 1),
    ({"r": 1}.__getitem__, 1),
    (operator.itemgetter(0), "r"),
    (list, []),
    # the rest of the three
    (lambda a, *rest: (a, rest), ("r", ("t", "c"))),
    (lambda *rest, **more: (rest, more), (("r", "t", "c"), {})),
    (lambda ctx, *rest: (ctx, rest), ("c", ("r", "t"))),
    (lambda *rest, ctx: (rest, ctx), (("r", "t"), "c")),
    (lambda tenant_id, **rest: (tenant_id, rest), ("t", {"resource_id": "r", "ctx": "c"})),
    (functools.partial(two, tenant_id="mine"), ("r", "mine")),
    (functools.partial(lambda a, **rest: (a, rest), tenant_id="mine"), ("r", {"tenant_id": "mine", "ctx": "c"})),
    # wrappers
    (Method().wrapped_load, ("r", "t")),
    (Method().cached_load, ("r", "t")),
    (passes_on(two), ("r", "t")),
    (passes_on(passes_on(two)), ("r", "t")),
    (passes_on(lambda a, page=1: (a, page)), ("r", 1)),
    (passes_names_on(two), ("r", "t")),
    (passes_on(gives_session(lambda session, a: (session, a))), ("session", "r")),
    (passes_on(functools.partial(two, tenant_id="mine")), ("r", "mine")),
    (functools.partial(passes_on(two), tenant_id="mine"), ("r", "mine")),
    (functools.lru_cache(two), ("r", "t")),
    (context.with_context(tenant=False)(lambda a, ctx=None: (a, ctx)), ("r", "c")),
]


@pytest.mark.parametrize(("source", "expected"), SHAPES)
def test_called_with_what_it_takes(source: Any, expected: Any) -> None:
    for _ in range(2):  # worked out, then remembered
        assert bind(source, "r", "t", "c")() == expected


def test_a_default_belongs_to_the_function_and_not_to_its_code() -> None:
    """Functions of one code may differ in what they require."""

    def made(optional: bool) -> Callable[..., Any]:
        def required(a: Any, b: Any) -> Any:
            return a, b

        if optional:
            required.__defaults__ = (2,)
        return required

    assert bind(made(False), "r", "t", "c")() == ("r", "t")
    assert bind(made(True), "r", "t", "c")() == ("r", 2)
    assert bind(made(False), "r", "t", "c")() == ("r", "t")


def test_ways_to_hold_one_function_are_told_apart() -> None:
    method = Method()
    for _ in range(2):
        assert bind(method.load, "r", "t", "c")() == ("r", "t")
        assert bind(Method.load, "r", "t", "c").args == ("c", "r", "t"), "a parameter like any other"
        for args, given in (((), ("r", "t", "c")), (("x",), ("x", "r", "t")), (("x", "y"), ("x", "y", "r"))):
            assert bind(functools.partial(lambda a, b, c: (a, b, c), *args), "r", "t", "c")() == given
            assert bind(functools.partial(three, *args), "r", "t", "c")() == given
        assert bind(functools.partial(three, c=1), "r", "t", "c")() == ("r", "t", 1)


def test_a_signature_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    signature = inspect.signature
    monkeypatch.setattr(inspect, "signature", lambda *a, **k: looked_at.append(1) or signature(*a, **k))
    method, wrapper = Method(), passes_on(lambda a, b: (a, b))
    for _ in range(3):
        for source in (lambda a: a, method.load, method.wrapped_load, method, wrapper, functools.partial(two, "r")):
            bind(source, "r", "t", "c")()
    first = len(looked_at)
    bind(method.wrapped_load, "r", "t", "c")
    bind(Method(), "r", "t", "c")
    bind(functools.partial(two, "r"), "r", "t", "c")
    assert len(looked_at) == first <= 8


def test_what_is_remembered_is_bounded() -> None:
    for i in range(parameters.PASSINGS_MAX + 2):
        bind(eval(f"lambda a, b={i}: a"), "r", "t", "c")
    assert 0 < len(parameters._by_code) <= parameters.PASSINGS_MAX


def bound_and_called() -> weakref.ref[Method]:
    held = Method()
    bind(lambda resource_id: (held, resource_id), "r", "t", None)()
    bind(held.load, "r", "t", None)()
    bind(held.wrapped_load, "r", "t", None)()
    bind(passes_on(lambda resource_id: (held, resource_id)), "r", "t", None)()
    bind(functools.partial(lambda held, resource_id: held, held), "r", "t", None)()
    return weakref.ref(held)


def test_a_closure_is_not_kept_alive() -> None:
    seen = bound_and_called()
    gc.collect()
    assert seen() is None


def four(resource_id: str, tenant_id: str, ctx: Any, session: Any) -> Any:
    return session


def keyword(resource_id: str, *, session: Any, tenant_id: Any) -> Any:
    return session


class Needy:
    def load(self, a: str, b: str, c: str, d: str, e: str) -> Any:
        return e

    async def __call__(self, a: str, b: str, c: str, d: str) -> Any:
        return d


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (four, "the loader four needs session too"),
        (lambda a, b, tenant_id, ctx: a, "the loader .*<lambda> needs b too"),
        (lambda a, b, c, d, tenant_id: a, "the loader .*<lambda> needs c, d too"),
        (passes_on(four), "the loader four needs session too"),
        (keyword, "the loader keyword needs session too"),
        (Needy().load, "the loader Needy.load needs d, e too"),
        (Needy(), "the loader Needy needs d too"),
        (functools.partial(four, "r"), None),
        (functools.partial(keyword, session=1), None),
        (functools.partial(four, session=1), None),
        (lambda a, b, c, d=1: d, None),
        (lambda a, *, session=1: session, None),
        (lambda a, *rest, **more: a, None),
    ],
)
def test_a_source_that_needs_more_than_it_can_be_given_is_told(source: Any, said: str | None) -> None:
    if said is None:
        bind(source, "r", "t", "c")
        return
    with pytest.raises(ConfigError, match=f"^{said}: .*functools.partial"):
        bind(source, "r", "t", "c")


@pytest.mark.parametrize("thing", [5, None, "load", {"a": 1}])
def test_what_is_no_function_is_refused(thing: Any) -> None:
    with pytest.raises(ConfigError, match=r"a loader is a function, not a .*: give the function itself"):
        bind(thing, "r", "t", "c")


async def test_a_coroutine_in_place_of_its_function_is_refused() -> None:
    async def load() -> int:
        return 1

    coroutine = load()
    with pytest.raises(ConfigError, match="not a coroutine"):
        bind(coroutine, "r", "t", "c")  # type: ignore[arg-type]
    coroutine.close()


# -- what can't be shared --------------------------------------------------------------------------------


def rows(resource_id: str) -> Iterator[int]:
    yield 1


async def rows_later(resource_id: str) -> AsyncIterator[int]:
    yield 1


class Rows:
    def load(self, resource_id: str) -> Iterator[int]:
        yield 1

    async def __call__(self, resource_id: str) -> AsyncIterator[int]:
        yield 1


@pytest.mark.parametrize(
    "source", [rows, rows_later, Rows().load, Rows(), functools.partial(rows), functools.partial(Rows().load)]
)
def test_a_generator_is_refused_before_it_is_called(source: Any) -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"is a generator: .* Let it return a list"):
            bind(source, "r", "t", "c")


def test_a_wrapper_that_reads_a_generator_is_none() -> None:
    @functools.wraps(rows)
    def read(*args: Any) -> list[int]:
        return list(rows(*args))

    assert bind(read, "r", "t", "c")() == [1]


async def run(source: Callable[..., Any], **changed: Any) -> Any:
    limits = {"timeout_s": 5.0, "retries": 0, "retry_on": (ConnectionError,), "backoff_s": 0.001} | changed
    return await call(bind(source, "r", "t", "c"), **limits)


class Cursor:
    """As a driver's: read once, asynchronously."""

    def __aiter__(self) -> AsyncIterator[int]:
        return self  # type: ignore[return-value]

    async def __anext__(self) -> int:
        raise StopAsyncIteration


@pytest.mark.parametrize(
    "make",
    [
        lambda: iter([1]),
        lambda: (i for i in range(3)),
        lambda: zip([1], [2], strict=True),
        lambda: map(str, [1]),
        lambda: enumerate([1]),
        lambda: io.StringIO("a"),
        lambda: rows("r"),
        lambda: rows_later("r"),
        Cursor,
    ],
)
async def test_an_iterator_is_refused(make: Callable[[], Any]) -> None:
    async def later() -> Any:
        return make()

    for source in (later, make):
        with pytest.raises(ConfigError, match=r" gave an iterator .* Let it return a list"):
            await run(source, retries=3, retry_on=(Exception,))


async def test_an_awaitable_that_was_not_awaited_is_refused(recwarn: pytest.WarningsRecorder) -> None:
    async def row() -> int:
        return 1

    async def forgets() -> Awaitable[int]:
        return row()

    def pending() -> Any:
        return asyncio.get_running_loop().create_future()

    async def gives_future() -> Any:
        return pending()

    for source, kind in ((forgets, "coroutine"), (gives_future, "Future")):
        with pytest.raises(ConfigError, match=rf"{source.__name__} gave an awaitable \(.*{kind}\).*await it in there"):
            await run(source)
    gc.collect()
    assert not recwarn.list
    assert await run(row) == 1


@pytest.mark.parametrize("value", [None, 1, "a", b"a", [1], (1,), {1}, {"a": 1}, range(3), {"a": 1}.keys(), object()])
async def test_what_can_be_read_again_passes(value: Any) -> None:
    assert await run(lambda: value) is value


async def test_what_an_async_function_must_give() -> None:
    async def one() -> int:
        return 1

    async def cursor() -> Iterator[int]:
        return iter([1])

    assert await awaited(one(), one) == 1
    with pytest.raises(ConfigError, match="cursor gave an iterator"):
        await awaited(cursor(), cursor)
    with pytest.raises(ConfigError, match="two is none: make it `async def`"):
        await awaited(two("r", "t"), two)


# -- again after errors ----------------------------------------------------------------------------------


class Failing:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.attempts = 0

    async def load(self) -> int:
        self.attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.attempts


async def test_attempts_are_as_many_as_the_policy_says() -> None:
    source = Failing(ConnectionError("1"), ConnectionError("2"))
    assert await run(source.load, retries=2) == 3
    source = Failing(*(ConnectionError(str(i)) for i in range(9)))
    with pytest.raises(ConnectionError, match="2"):
        await run(source.load, retries=2)
    assert source.attempts == 3
    source = Failing(KeyError("x"))
    with pytest.raises(KeyError):
        await run(source.load, retries=2)
    assert source.attempts == 1


@pytest.mark.parametrize("error", [ConfigError("x"), ExceptionGroup("x", [KeyError("x"), ConfigError("x")])])
async def test_an_error_of_the_programs_is_not_tried_again(error: Exception) -> None:
    source = Failing(error)
    with pytest.raises(type(error)):
        await run(source.load, retries=2, retry_on=(Exception,))
    assert source.attempts == 1
    source = Failing(ExceptionGroup("x", [KeyError("x")]))
    assert await run(source.load, retries=2, retry_on=(Exception,)) == 2


async def test_pauses_double_with_jitter_and_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses_s: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses_s.append(pause_s)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    for backoff_s, fixed_s in ((1.0, [1, 2, 4, 5, 5]), (7.0, [7, 7, 7, 7, 7])):
        pauses_s.clear()
        with pytest.raises(ConnectionError):
            await run(Failing(*[ConnectionError()] * 9).load, retries=5, backoff_s=backoff_s)
        assert all(low <= pause_s <= low + backoff_s for pause_s, low in zip(pauses_s, fixed_s, strict=True))
        assert len({pause_s % 1 for pause_s in pauses_s}) == 5


async def test_pauses_count_for_the_limit() -> None:
    with pytest.raises(LoadTimeout):
        await run(Failing(ConnectionError()).load, retries=2, backoff_s=60.0, timeout_s=0.01)


QUIET = """
import asyncio, logging, sys
from cachebus import Cache

class Loud(logging.Handler):
    def emit(self, record):
        print("logged", record.getMessage())

logging.getLogger().addHandler(Loud())
logging.getLogger().setLevel(logging.INFO)

async def main():
    tries = 0
    async def load(resource_id):
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConnectionError("postgresql://app:s3cret@db/prod refused")
        return tries
    logging.getLogger("cachebus").setLevel(logging.WARNING)
    async with Cache.open("memory://") as cache:
        logging.getLogger("asyncio").setLevel(logging.WARNING)
        assert await cache.get_or_load("doc", "x", load, tenant_id="acme") == 3

asyncio.run(main())
print(*{"stamina", "tenacity", "structlog", "prometheus_client", "loguru"}.intersection(sys.modules))
"""


def test_another_attempt_is_silent_and_touches_nothing_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "selector" not in line]
    assert (lines, done.stderr) == ([""], "")


async def test_who_reads_the_log_is_told_of_another_attempt_without_the_errors_text() -> None:
    with told("DEBUG") as lines:
        await run(Failing(ConnectionError("s3cret")).load, retries=2)
    assert lines == ["Failing.load failed with ConnectionError, 2 more attempts"]
