"""`@cached`: no two calls share a result that may differ: by what is bound, by the class, by who made the function."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cachebus import TTL_PERMANENT, Cache, ConfigError, Settings, cached, configure, lifespan
from cachebus.testing import override_settings

partial = functools.partial


@pytest.fixture(autouse=True)
def _nothing_declared() -> Iterator[None]:
    with override_settings():
        yield


@pytest.fixture
async def cache() -> AsyncIterator[Cache]:
    """The process-wide one."""
    async with lifespan("memory://") as opened:
        yield opened


by_hash = cached("row", tenant_id="acme")


async def fetch(table: str, n: int, **options: str) -> str:
    """What differs in all of them."""
    return f"{table} {n} {options}"


class Repo:
    """With a state of its own."""

    def __init__(self, table: str) -> None:
        self.table = table

    async def plain(self, n: int) -> str:
        """Not cached."""
        return f"{self.table} {n}"

    async def __call__(self, n: int) -> str:
        return f"{self.table} {n}"


@dataclass(frozen=True)
class Shop:
    """Can be hashed."""

    name: str

    async def __call__(self, n: int) -> str:
        return f"{self.name} {n}"

    async def plain(self, n: int) -> str:
        """Not cached."""
        return f"{self.name} {n}"


# -- what is bound -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (partial(fetch, "users"), partial(fetch, "orders")),
        (partial(partial(fetch, "users"), deep="1"), partial(partial(fetch, "orders"), deep="1")),
        (partial(fetch, "users", sort="up"), partial(fetch, "users", sort="down")),
        (Shop("acme"), Shop("globex")),
        (Shop("acme").plain, Shop("globex").plain),
        (partial(Shop.plain, Shop("acme")), partial(Shop.plain, Shop("globex"))),
    ],
)
async def test_what_is_bound_counts(cache: Cache, one: Callable[..., Any], other: Callable[..., Any]) -> None:
    for _ in range(2):
        for function in (one, other):
            assert await by_hash(function)(7) == await function(7)
    assert by_hash(one).key(7) != by_hash(other).key(7)
    assert by_hash(one).key(7) == by_hash(one).key(7)


async def test_a_keyword_that_is_bound_may_be_given_again(cache: Cache) -> None:
    of_users: Any = by_hash(partial(fetch, table="users", sort="up"))
    assert await of_users(n=1) == "users 1 {'sort': 'up'}"
    assert await of_users(n=1, sort="down") == "users 1 {'sort': 'down'}"
    assert await of_users(n=1, table="orders") == "orders 1 {'sort': 'up'}"
    assert of_users.key(n=1, sort="up") == of_users.key(n=1)


REPO = Repo("users")
BOUND = [REPO, REPO.plain, partial(REPO), partial(Repo.plain, REPO)]


@pytest.mark.parametrize("function", BOUND)
def test_what_is_bound_and_can_not_be_hashed_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"self is bound to an object of type Repo.*ignore=\('self',\)"):
        by_hash(function)
    assert by_hash(Repo.plain)  # of which nobody knows the instance


@pytest.mark.parametrize("function", [*BOUND, partial(fetch, "users")])
def test_what_is_bound_and_in_no_template_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"calls that differ in (self|table)\b.* would share one result"):
        cached("row", resource_id="{n}", tenant_id="acme")(function)


@pytest.mark.parametrize("make", [Repo, lambda table: Repo(table).plain])
async def test_what_is_bound_may_be_in_a_template(cache: Cache, make: Callable[[str], Callable[..., Any]]) -> None:
    for table in ("users", "orders", "users"):
        function: Any = cached("row", resource_id="{self.table}:{n}", tenant_id="acme")(make(table))
        assert await function(1) == f"{table} 1"
        assert function.key(1)["resource_id"] == f"{table}:1"


def test_what_is_bound_and_makes_no_difference_may_be_ignored() -> None:
    of_users: Any = cached("row", tenant_id="acme", ignore=("self",))(Repo("users"))
    assert of_users.key(1) == cached("row", tenant_id="acme", ignore=("self",))(Repo("orders")).key(1)
    assert cached("row", resource_id="{n}", tenant_id="acme", ignore=("self",))(REPO.plain)


def test_what_is_no_function_is_told() -> None:
    for wrong in (5, partial(fetch, "users", 7, "more")):
        with pytest.raises(ConfigError):
            by_hash(wrong)  # type: ignore[arg-type, call-overload, unused-ignore]


# -- who made the function ---------------------------------------------------------------------------------------


def module(name: str, file: Path | None = None) -> Callable[..., Any]:
    """A function of a module of this name."""
    if file is not None:
        sys.modules[name] = type(sys)(name)
        sys.modules[name].__file__ = str(file)
    found: dict[str, Any] = {"__name__": name}
    exec("async def load(n): return __name__", found)
    function: Callable[..., Any] = found["load"]
    return function


def test_functions_of_one_name_in_two_modules_are_refused() -> None:
    assert by_hash(module("users"))
    assert by_hash(module("users"))  # as one that was loaded anew
    with pytest.raises(ConfigError, match=r"orders\.load and users\.load would share results, cached by 'load'.*'row'"):
        by_hash(module("orders"))
    assert cached("order", tenant_id="acme")(module("orders"))
    assert cached("row", resource_id="{n}", tenant_id="acme")(module("orders"))


def test_functions_of_one_name_share_nothing_in_caches_of_their_own() -> None:
    own = {"users": Cache.open("memory://"), "orders": Cache.open("memory://"), "rows": None}
    for name, given in own.items():
        function: Any = cached("row", tenant_id="acme", cache=given)(module(name))
        assert function.key(1)["resource_id"]
    with pytest.raises(ConfigError, match=r"other\.load and users\.load would share results"):
        cached("row", tenant_id="acme", cache=own["users"])(module("other"))


def test_two_caches_of_one_place_share_what_is_in_it() -> None:
    one, other = Cache.open("memory://place"), Cache.open("memory://place")
    elsewhere = Cache.open(Settings(url="memory://place", namespace="elsewhere"))
    kept = cached("row", tenant_id="acme", cache=one)(module("users"))
    assert cached("row", tenant_id="acme", cache=elsewhere)(module("orders"))
    with pytest.raises(ConfigError, match=r"orders\.load and users\.load would share results"):
        cached("row", tenant_id="acme", cache=other)(module("orders"))
    configure("memory://place")
    with pytest.raises(ConfigError, match=r"orders\.load and users\.load would share results"):
        by_hash(module("orders"))
    assert kept


async def test_what_the_process_wide_cache_shares_is_found_when_it_is_opened() -> None:
    given = Cache.open("memory://place")
    assert cached("row", tenant_id="acme", cache=given)(module("users"))
    assert by_hash(module("orders"))
    async with lifespan("memory://elsewhere"):
        pass
    with pytest.raises(ConfigError, match=r"orders\.load and users\.load would share results"):
        async with lifespan("memory://place"):
            pass
    async with lifespan("memory://elsewhere"):
        pass


def test_classes_of_one_name_share_nothing_in_caches_of_their_own() -> None:
    for name in ("users", "orders"):

        class Rows:
            """Of one name."""

            @cached("class", tenant_id="acme", cache=Cache.open("memory://"))
            async def get(self, n: int) -> int:
                return n

        kind = type("Child", (Rows,), {"__module__": name})
        assert kind().get.key(1)


def test_a_program_that_is_imported_too_is_one_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    assert by_hash(module("the_program", tmp_path / "app.py"))
    assert by_hash(module("app", tmp_path / "app.py"))
    with pytest.raises(ConfigError, match="would share results"):
        by_hash(module("other", tmp_path / "other.py"))


def test_what_is_declared_in_a_test_ends_with_it() -> None:
    for name in ("users", "orders"):
        with override_settings():
            assert by_hash(module(name))


def make(answer: str, **options: Any) -> Any:
    """A function that knows more than its arguments."""

    @cached("made", tenant_id="acme", **options)
    async def load(n: int) -> str:
        return f"{answer} {n}"

    return load


def test_a_function_that_takes_more_from_around_it_needs_an_id() -> None:
    with pytest.raises(ConfigError, match=r"load: it takes answer from around it.*ignore=\('answer',\)"):
        make("first")
    for options in ({"ignore": ("answer",)}, {"resource_id": "{n}"}):
        assert make("first", **options).key(1) == make("second", **options).key(1)
    with pytest.raises(ConfigError, match="ignore names other"):
        make("first", ignore=("answer", "other"))


async def test_itself_and_a_decorator_are_not_around_it(cache: Cache) -> None:
    def passes_on(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(*args: Any) -> Any:
            return await function(*args)

        return wrapper

    @by_hash
    @passes_on
    async def down(n: int) -> int:
        return 1 + await down(n - 1) if n else 0

    assert await down(3) == 3


# -- the class ---------------------------------------------------------------------------------------------------


class Base:
    """Each class has a table."""

    table = "base"

    @cached("class", tenant_id="acme")
    @classmethod
    async def get(cls, n: int) -> str:
        """Of a class."""
        return f"{cls.table} {n}"

    @cached("class", tenant_id="acme")
    async def of_instance(self, n: int) -> str:
        """Of an instance."""
        return f"{self.table} {n}"

    @cached("class", tenant_id="acme", ignore=("cls",))
    @classmethod
    async def of_all(cls, n: int) -> int:
        """The same for all."""
        return n


class Users(Base):
    """One."""

    table = "users"


class Orders(Base):
    """Another, which asks the first."""

    table = "orders"

    @cached("class", tenant_id="acme")
    @classmethod
    async def get(cls, n: int) -> str:
        """Of a class."""
        return f"its {await super().get(n)}"


async def test_the_class_that_a_method_is_called_on_counts(cache: Cache) -> None:
    for _ in range(2):
        assert [await kind.get(1) for kind in (Base, Users, Orders)] == ["base 1", "users 1", "its orders 1"]
        assert [await kind().of_instance(1) for kind in (Base, Users)] == ["base 1", "users 1"]
    await Users.get.invalidate(1)
    assert await Users.get.get(1) is None
    assert await Base.get.get(1) == "base 1"
    assert str(Base.get.key(1)["resource_id"]).startswith("Base.get:")
    assert str(Users().of_instance.key(1)["resource_id"]).startswith("Base.of_instance[Users]:")
    assert Base.of_instance.key(Users(), 1) == Users().of_instance.key(1)
    assert Users.of_all.key(1) == Base.of_all.key(1)


def test_classes_of_one_name_in_two_modules_are_refused() -> None:
    kinds = [type("Rows", (Base,), {"__module__": name}) for name in ("users", "orders")]
    assert kinds[0].get.key(1)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"orders\..* would share results"):
        kinds[1].get.key(1)  # type: ignore[attr-defined]
    namesake = type("Base", (Base,), {"__module__": "orders"})
    with pytest.raises(ConfigError, match=r"orders\..* would share results"):
        namesake().of_instance.key(1)  # type: ignore[attr-defined]


def row_class(table: str) -> Any:
    """A class of a name that all have which are made here."""
    return type("Rows", (Base,), {"table": table, "__module__": __name__})


async def test_classes_of_one_name_in_one_module_are_refused(cache: Cache) -> None:
    users, orders = row_class("users"), row_class("orders")
    assert await users.get(1) == "users 1"
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"two classes are called .*Rows.*share results of Base.get.*\('cls',\)"):
            await orders.get(1)
    assert await users.get(1) == "users 1"
    assert await orders.of_all(1) == 1


def test_a_class_that_is_gone_leaves_its_name_to_the_next() -> None:
    for table in ("users", "orders"):
        assert row_class(table).get.key(1)  # it holds itself until it is collected


def test_a_class_of_a_module_that_was_loaded_anew_has_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    former, now = row_class("users"), row_class("users")
    assert former.get.key(1)
    monkeypatch.setattr(sys.modules[__name__], "Rows", now, raising=False)
    assert now.get.key(1) == former.get.key(1)


def test_in_a_template_the_class_is_an_argument_like_others() -> None:
    @classmethod  # type: ignore[misc]
    async def get(kind: type, n: int) -> str:
        return kind.__name__

    with pytest.raises(ConfigError, match=r"calls that differ in kind alone.*write \{kind.__name__\}.*\('kind',\)"):
        cached("class", resource_id="{n}", tenant_id="acme")(get)
    assert cached("class", resource_id="{kind.__name__}:{n}", tenant_id="acme")(get)
    assert cached("class", resource_id="{n}", tenant_id="acme", ignore=("kind",))(get)


# -- what is wrong whatever the arguments are --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"ttl": ttl}, "ttl must be a number of seconds above 0") for ttl in (0, -1, float("nan"), "5", True)),
        *(({"data_type": text}, "data_type (is|has)") for text in ("", "a\nb", "x" * 600)),
        ({"data_type": None}, "data_type must be str"),
        ({"resource_id": "*"}, "names all of a data type"),
        ({"resource_id": "a\n{n}"}, "resource_id has a control character"),
        ({"tenant_id": "x" * 600}, "tenant_id is too long"),
        ({"tags": ["a\n"]}, "tag has a control character"),
        ({"tags": ["a"] * 256}, "at most 255 tags"),
    ],
)
def test_what_can_never_be_called_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^fetch: .*{message}"):
        cached(**{"data_type": "row", "tenant_id": "acme", **options})(fetch)


def test_what_can_be_is_not() -> None:
    for ttl in (1, 0.5, TTL_PERMANENT, None):
        cached("row", resource_id="{table}:{n}", tenant_id="acme", tags=["a"] * 255, ttl=ttl, ignore=["options"])(fetch)
