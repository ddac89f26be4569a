"""The commands for operators, beside a cache that lives."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cachebus import Cache, Policy, Receipt, Settings
from cachebus.assembly.backends import redis_store, route_of
from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.core.ports import Caller
from cachebus.resp import Connection, parse_address
from cachebus.tools.doctor.access import user_of_its_own
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import QUICK, key_of, parts
from tests.support.command import cachebus, ran


def settings(redis_url: str, **more: Any) -> Settings:
    """Those of the node that is looked at."""
    policies = {"kept": Policy(negative_ttl_s=600, fail_safe_s=600)}
    return Settings(url=redis_url, shards=3, node_name="reader", policies=policies, **QUICK, **more)


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    async with Cache.open(settings(redis_url)) as opened:
        yield opened


@pytest.fixture
async def lasting(redis_url: str) -> AsyncIterator[Cache]:
    """Without write guards what is stored in the store's first minute does not expire when that is over."""
    async with Cache.open(settings(redis_url, guard_max_s=0)) as opened:
        yield opened


async def run(cache: Cache, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """The command, while the cache lives on."""
    url = cache.settings.url.get_secret_value()
    return await asyncio.to_thread(ran, *arguments, "--url", url, folder=folder)


async def test_invalidate_prints_the_receipt_and_is_applied(cache: Cache, tmp_path: Path) -> None:
    await cache.set("config", "x", 1, tenant_id="acme")
    await cache.set("config", "x", 2, tenant_id="acme", agent_id="a7")
    status, out, errors = await run(cache, tmp_path, "invalidate", "config", "x", "--tenant", "acme")
    assert (status, errors) == (0, "")
    receipt = Receipt.parse(out.strip())
    assert await cache.get("config", "x", tenant_id="acme", after=receipt) is None
    assert await cache.get("config", "x", tenant_id="acme", agent_id="a7", after=receipt) == 2
    _, out, _ = await run(cache, tmp_path, "invalidate", "config", "x", "--tenant", "acme", "--all-contexts")
    receipt = Receipt.parse(out.strip())
    assert await cache.get("config", "x", tenant_id="acme", agent_id="a7", after=receipt) is None


async def test_get_shows_what_is_there(cache: Cache, tmp_path: Path) -> None:
    receipt = await cache.set("config", "x", {"limit": [1, "ü"]}, tenant_id="acme", ttl=30, tags=["t", "u"])
    status, out, errors = await run(cache, tmp_path, "get", "config", "x", "--tenant", "acme")
    assert (status, errors) == (0, "")
    value, times, where = out.splitlines()
    assert value == "{'limit': [1, 'ü']}"
    assert re.fullmatch(r"loaded or written \d+\.\d s ago, hard expiry in \d\d\.\d s", times)
    place = f"seq {receipt.seq} of epoch {receipt.epoch} in shard {receipt.shard}"
    assert re.fullmatch(rf"{place}, version [0-9a-f]{{8}}, \d+ bytes, tags t, u", where)
    told = json.loads((await run(cache, tmp_path, "get", "config", "x", "--tenant", "acme", "--json"))[1])
    assert (told["found"], told["repr"], told["seq"], told["tags"]) == (True, value, receipt.seq, ["t", "u"])
    assert told["cut_short"] is False
    assert (await run(cache, tmp_path, "get", "config", "y", "--tenant", "acme"))[:2] == (1, "")


async def test_get_says_what_cuts_a_value_short(cache: Cache, tmp_path: Path) -> None:
    await cache.set("config", "x", 1, tenant_id="acme", ttl=86_400)  # over a server that was empty
    _, out, _ = await run(cache, tmp_path, "get", "config", "x", "--tenant", "acme")
    assert re.search(r"hard expiry in \d+\.\d s, sooner than its TTL says: L2 was empty or had lost its data", out)
    assert json.loads((await run(cache, tmp_path, "get", "config", "x", "--tenant", "acme", "--json"))[1])["cut_short"]
    args = ("get", "config", "x", "--tenant", "acme", "--agent", "a7")
    assert (await run(cache, tmp_path, *args))[0] == 1
    assert (await run(cache, tmp_path, *args, "--search"))[0] == 0
    status, _, errors = await run(cache, tmp_path, "get", "config", "x")
    assert status == 2
    assert "tenant" in errors
    assert len(errors.splitlines()) == 1


async def test_get_says_why_nothing_valid_is_there(lasting: Cache, tmp_path: Path) -> None:
    """Absent, under other names, said to be absent, expired, invalidated."""

    async def why(resource_id: str, data_type: str = "config") -> str:
        asked = ("get", data_type, resource_id, "--tenant", "acme")
        status, out, errors = await run(lasting, tmp_path, *asked)
        assert status == 1
        told = json.loads((await run(lasting, tmp_path, *asked, "--json"))[1])
        assert not told["found"]
        assert re.sub(r"\d", "", told["why"]) in re.sub(r"\d", "", errors)
        assert "repr" not in told
        assert len(errors.splitlines()) == 1
        assert len(out.splitlines()) == (2 if "seq" in told else 0)
        return errors.removeprefix("cachebus: ").strip()

    assert await why("nobody's") == "nothing lies in L2 under this key"
    await lasting.set("stock", "x", 1, "zeta", agent_id="a7")
    told = "nothing lies in L2 under this key, but under type stock of tenant zeta with agent a7"
    assert await why("x") == told
    await lasting.set("config", "tagged", 1, "acme", tags=["t"])
    await lasting.invalidate_tags(["t"], "acme")
    assert await why("tagged") == "it was invalidated, by seq 3: tag t of acme"
    assert await lasting.get_or_load("kept", "gone", lambda: None, "acme") is None
    assert await why("gone", "kept") == "the source said that there is none"
    await lasting.set("kept", "short", 1, "acme", ttl=0.001)
    assert re.fullmatch(r"it expired \d+\.\d s ago", await why("short", "kept"))


async def test_nodes_tells_who_is_alive(cache: Cache, tmp_path: Path) -> None:
    status, out, _ = await run(cache, tmp_path, "nodes")
    assert status == 0
    assert len(re.findall(r"^shard [012]  reader-\S+ +alive   applied 1, 0 behind", out, re.MULTILINE)) == 3
    _, out, _ = await run(cache, tmp_path, "nodes", "--json")
    assert {json.loads(line)["shard"] for line in out.splitlines()} == {0, 1, 2}
    status, _, told = await run(cache, tmp_path, "nodes", "--namespace", "other")
    assert (status, "there is no namespace other" in told) == (2, True)


async def killed(cache: Cache, node: str, shards: list[int]) -> None:
    """As if a node of that id had been killed just now: its rows in these shards are what it leaves."""
    store = redis_store(cache.settings, route_of(cache.settings, monotonic), monotonic)
    await store.connect()
    for shard in shards:
        await store.probe(shard, Caller(node, 0, b""), with_invalidated=False)
    await store.close()


async def test_who_was_killed_is_forgotten_by_hand(cache: Cache, tmp_path: Path) -> None:
    shard = (await cache.invalidate("config", "x", tenant_id="acme")).shard
    await killed(cache, "killed: 1", [0, 1, 2])
    await killed(cache, "elsewhere", [(shard + 1) % 3])
    receipt = await cache.invalidate("config", "x", tenant_id="acme", wait="nodes")
    assert receipt.lapsed == ("killed: 1",), "every wait waits for it"
    assert await run(cache, tmp_path, "nodes", "forget", "killed: 1") == (0, "3 of 3 shards had it\n", "")
    assert await run(cache, tmp_path, "nodes", "forget", "elsewhere") == (0, "1 of 3 shards had it\n", "")
    receipt = await cache.invalidate("config", "x", tenant_id="acme", wait="nodes")
    assert (receipt.lapsed, len(receipt.confirmed)) == ((), 1)
    _, out, _ = await run(cache, tmp_path, "nodes")
    assert "killed" not in out
    assert out.count("reader-") == 3
    assert await run(cache, tmp_path, "nodes", "forget", "killed: 1") == (1, "0 of 3 shards had it\n", "")


async def test_forgetting_where_nobody_is_leaves_nothing_behind(cache: Cache, tmp_path: Path) -> None:
    before = await keys(cache)
    url = cache.settings.url.get_secret_value()
    status, _, told = await asyncio.to_thread(
        ran, "nodes", "--url", url, "--namespace", "other", "forget", "reader", folder=tmp_path
    )
    assert (status, "there is no namespace other" in told) == (2, True)
    for option in ("--url", "--namespace"):  # of a variable that was not set
        given = ("nodes", "--url", url, "forget", "reader", option, "")
        status, _, told = await asyncio.to_thread(ran, *given, folder=tmp_path)
        assert (status, option[2:] in told) == (2, True)
    assert await keys(cache) == before


async def keys(cache: Cache) -> set[bytes]:
    """The names of all keys on the cache's server."""
    connection = await Connection.open(parse_address(cache.settings.url.get_secret_value()), Patience(5, 5, monotonic))
    found = set(await connection.call("KEYS", "*"))
    connection.close()
    return found


@pytest.mark.parametrize("as_json", [False, True])
async def test_tail_shows_events_as_they_happen(cache: Cache, tmp_path: Path, as_json: bool) -> None:
    url = cache.settings.url.get_secret_value()
    more = ("--json",) if as_json else ()
    with cachebus("tail", "--url", url, "--count", "2", *more, folder=tmp_path) as command:
        assert command.process.stderr is not None
        assert "listening to 3 shards" in await asyncio.to_thread(command.process.stderr.readline)
        await cache.invalidate("config", "x", tenant_id="acme", agent_id="a7")
        await cache.invalidate_tags(["plan:pro"], tenant_id="acme")
        out, _ = await asyncio.to_thread(command.process.communicate)
        assert command.process.returncode == 0
    first, second = out.splitlines()
    if as_json:
        (part,) = json.loads(first)["parts"]
        assert part["keys"] == [["acme", "config", "x", "a7", None, None]]
        assert part["origin"].startswith("reader-")
        (part,) = json.loads(second)["parts"]
        assert (part["keys"], part["scopes"]) == ([], [["G", "acme", "plan:pro"]])
    else:
        assert "acme | config | x | a7" in first
        assert re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z  shard ", second)
        assert re.search(r"reader-\S+: tag plan:pro of acme$", second)


@pytest.fixture
async def logged(cache: Cache) -> Cache:
    """A past: a write and invalidations of all shapes."""
    await cache.set("config", "x", 1, "acme")
    await cache.invalidate("config", "x", "acme", "a7")
    await cache.invalidate("config", "y", "acme", contexts="all")
    await cache.invalidate("stock", "x", "zeta")
    await cache.invalidate_tags(["plan:pro"], "acme")
    await cache.invalidate_scope("acme", "config", agent_id="a7")
    await cache.invalidate_scope("acme")
    return cache


BEGINS = (
    r"the log (is empty|goes back to seq \d+ of [\d-]+ [\d:]+Z); this epoch began at [\d-]+ [\d:]+Z; what was before "
    r"is not told.*"
)
EVERY_SHAPE = [
    "acme | config | x",
    "acme | config | x | a7",
    "acme | config | y, acme | config | y in every context",
    "zeta | stock | x",
    "tag plan:pro of acme",
    "all config of acme in agent a7",
    "all of acme",
]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ((), range(7)),
        (("--limit", "2"), (5, 6)),
        (("config", "x", "--tenant", "acme"), (0, 1, 4, 5, 6)),
        (("config", "y"), (2, 4, 5, 6)),
        (("stock",), (3, 4, 6)),
        (("--tenant", "zeta"), (3,)),
        (("--tag", "plan:pro"), (4,)),
        (("--tag", "plan:free"), ()),
        (("--node", "reader"), range(7)),
        (("--node", "writer"), ()),
        (("--since", "1h"), range(7)),
        (("--since", "0s"), ()),
    ],
)
async def test_log_shows_what_touches_what_is_asked_for(
    logged: Cache, tmp_path: Path, arguments: tuple[str, ...], lines: Sequence[int]
) -> None:
    status, out, errors = await run(logged, tmp_path, "log", *arguments)
    *before, begins = [line for line in errors.splitlines() if not line.endswith("nothing like it in the log")]
    assert re.fullmatch(rf"cachebus: (of all shards the youngest log is that of shard \d: )?{BEGINS}", begins)
    assert before == (["cachebus: 5 older ones are left out: --limit"] if "--limit" in arguments else [])
    assert status == (0 if lines else 1)
    assert errors.endswith("nothing like it in the log\n") == (not lines)
    said = [re.sub(r"^\S+ \S+Z  shard \d +\d+  reader-\S+: ", "", line) for line in out.splitlines()]
    assert said == [EVERY_SHAPE[number] for number in lines]


async def test_log_of_all_tenants_and_for_programs(logged: Cache, tmp_path: Path) -> None:
    await logged.invalidate_type("config")
    await logged.clear()
    status, out, _ = await run(logged, tmp_path, "log", "config", "x", "--tenant", "acme", "--limit", "2", "--json")
    assert status == 0
    scopes = [json.loads(line)["parts"][0]["scopes"] for line in out.splitlines()]
    assert scopes == [[["Y", "config"]], [["N"]]]
    assert (await run(logged, tmp_path, "log", "config", "--limit", "1"))[1].endswith(": everything\n")


async def test_log_says_since_when_it_can_tell(cache: Cache, tmp_path: Path) -> None:
    shard = key_of(cache, "config", "x", "acme").shard
    for number in range(3):
        await cache.set("config", number, 1, "acme")
    store: Any = parts(cache).store
    await store._running.plain(shard, "XTRIM", store._names[shard].log, "MAXLEN", "2")
    status, out, errors = await run(cache, tmp_path, "log", "config", "--tenant", "acme")
    assert status == 0
    first = re.match(r"(\S+ [\d:]+)\.\d+Z  shard \d +(\d+) ", out)
    assert first is not None
    assert errors.startswith(f"cachebus: the log goes back to seq {first[2]} of {first[1]}Z; this epoch began at 20")
    assert "the log keeps the newest events only (log_max_len, log_max_bytes)" in errors
    status, _, errors = await run(cache, tmp_path, "log", "config", "--tenant", "acme", "--json")
    assert (status, errors) == (0, "")
    status, _, errors = await run(cache, tmp_path, "log", "config", "--tenant", "acme", "--json", "--since", "2d")
    assert (status, len(errors.splitlines())) == (0, 1)
    assert "goes back to seq" in errors


MISSPELT = [
    (("get", "prices", "9", "--tenant", "acme"), 1, "; did you mean price?"),
    (("get", "price", "9", "--tenant", "acmee"), 1, "; did you mean acme?"),
    (("explain", "prices", "9", "--tenant", "acme"), 1, "nothing is cached under this name; did you mean price?"),
    (("explain", "price", "9", "--tenant", "acmee"), 1, "; did you mean acme?"),
    (("log", "prices", "--tenant", "acme"), 1, "nothing like it in the log; did you mean price?"),
    (("log", "price", "--tenant", "acmee"), 1, "; did you mean acme?"),
    (("log", "gones"), 1, "; did you mean gone?"),
    (("invalidate", "prices", "9", "--tenant", "acme"), 0, "; did you mean price?"),
    (("invalidate", "price", "9", "--tenant", "acmee"), 0, "; did you mean acme?"),
    (("invalidate", "price", "--tenant", "acmee", "--dry-run"), 0, "; did you mean acme?"),
]


@pytest.mark.parametrize(("arguments", "status", "hint"), MISSPELT)
async def test_a_misspelt_type_or_tenant_is_hinted_at_by_every_command(
    cache: Cache, tmp_path: Path, arguments: tuple[str, ...], status: int, hint: str
) -> None:
    await cache.set("price", 1, 1, "acme")
    await cache.invalidate("gone", 1, "acme")  # of this the log alone has the name
    found, out, errors = await run(cache, tmp_path, *arguments)
    assert found == status
    assert hint in out + errors


@pytest.mark.parametrize("command", ["get", "explain", "log", "invalidate"])
async def test_what_is_spelt_right_is_not_hinted_at(cache: Cache, tmp_path: Path, command: str) -> None:
    await cache.set("price", 1, 1, "acme")
    _, out, errors = await run(cache, tmp_path, command, "price", "9", "--tenant", "acme")
    assert "did you mean" not in out + errors


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("{}", "price", "7"),
            "--tenant is needed for data type 'price': give --tenant, or set CACHEBUS_DEFAULT_TENANT",
        ),
        (("{}", "price", "7", "--tenant", ""), "--tenant is empty"),
        (("{}", "", "7", "--tenant", "acme"), "TYPE is empty"),
        (("{}", "price", "\x1b", "--tenant", "acme"), "ID has a control character"),
        (("{}", "price", "7", "--tenant", "acme", "--agent", "a" * 513), "--agent is too long"),
        (("{}", "price", "7", "--tenant", "acme", "--conversation", ""), "--conversation is empty"),
        (("{}", "price", "7", "--tenant", "acme", "--collection", ""), "--collection is empty"),
        (("invalidate", "--tag", "t"), "give --tenant, or set CACHEBUS_DEFAULT_TENANT"),
        (("invalidate", "--agent", "a"), "--tenant is needed for a scope"),
        (
            ("invalidate", "price", "--tenant", "acme", "--agent", "a", "--collection", "c"),
            "a scope takes at most one of --agent, --conversation, --collection",
        ),
        (("get", "price", "*", "--tenant", "acme"), 'ID "*" names all of a data type'),
        (("log", ""), "TYPE is empty"),
        (("log", "price", ""), "ID is empty"),
        (("log", "--tenant", ""), "--tenant is empty"),
        (("log", "--tag", ""), "tag is empty"),
        (("log", "--node", ""), "--node is empty"),
    ],
)
async def test_what_is_wrong_with_an_id_is_told_by_its_option(
    cache: Cache, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    for command in ("get", "explain", "invalidate") if "{}" in arguments else ("",):
        status, out, errors = await run(cache, tmp_path, *(part.replace("{}", command) for part in arguments))
        assert (status, out) == (2, "")
        assert told in errors
        assert "_id" not in errors
        assert "Context" not in errors


async def test_log_refuses_an_age_that_is_none(cache: Cache, tmp_path: Path) -> None:
    status, _, errors = await run(cache, tmp_path, "log", "--since", "yesterday")
    assert status == 2
    assert "--since takes a number" in errors


async def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for arguments in (
        ("nodes",),
        ("nodes", "forget", "x"),
        ("tail",),
        ("log",),
        ("get", "t", "i", "--tenant", "a"),
        ("invalidate", "t", "i", "--tenant", "a"),
    ):
        url = ("--url", "redis://:hunter2@127.0.0.1:1/0")
        status, out, errors = await asyncio.to_thread(ran, *arguments, *url, folder=tmp_path)
        assert (status, out) == (2, "")
        assert "127.0.0.1:1" in errors
        assert "hunter2" not in errors
        assert "CACHEBUS_SHARDS" not in errors, "that would not help"
        assert len(errors.splitlines()) == 1


async def several(cache: Cache) -> None:
    """Values of two tenants and two types, some in contexts or with tags."""
    for tenant in ("acme", "zeta"):
        for number in (1, 2):
            await cache.set("price", number, number, tenant, tags=[f"t{number}"])
        await cache.set("price", 1, 3, tenant, agent_id="a:7")
        await cache.set("stock*", "x", 4, tenant)


ALL = {
    "id": ("price", "1", "--tenant", "acme"),
    "id in a context": ("price", "1", "--tenant", "acme", "--agent", "a:7"),
    "id in all": ("price", "1", "--tenant", "acme", "--all-contexts"),
    "type": ("price", "--tenant", "acme"),
    "star": ("price", "*", "--tenant", "acme"),
    "type in a context": ("price", "--tenant", "acme", "--agent", "a:7"),
    "odd type": ("stock*", "--tenant", "zeta"),
    "tenant": ("--tenant", "acme"),
    "tag": ("--tag", "t1", "--tag", "t3", "--tenant", "acme"),
    "all tenants": ("price", "--all-tenants"),
    "all": ("--everything", "--yes"),
}


@pytest.mark.parametrize(("which", "count"), list(zip(ALL, (1, 1, 2, 3, 3, 1, 1, 4, 1, 6, 8), strict=True)))
async def test_invalidate_meets_what_a_dry_run_counts(cache: Cache, tmp_path: Path, which: str, count: int) -> None:
    await several(cache)
    where = [(t, r, tenant, a) for tenant in ("acme", "zeta") for t, r, a in PLACES]
    held = [await cache.get(*place) for place in where]
    assert None not in held
    status, out, errors = await run(cache, tmp_path, "invalidate", *ALL[which], "--dry-run")
    assert (status, errors) == (0, "")
    assert out.startswith(f"{count} record"), out
    assert [await cache.get(*place) for place in where] == held, "it only counts"
    status, out, errors = await run(cache, tmp_path, "invalidate", *ALL[which])
    assert (status, errors) == (0, "")
    receipt = Receipt.parse(out.strip())
    gone = [await cache.get(*place, after=receipt, use_memory=False) for place in where].count(None)
    assert gone == count


PLACES = [("price", 1, None), ("price", 2, None), ("price", 1, "a:7"), ("stock*", "x", None)]


async def test_what_nobody_has_is_said(cache: Cache, tmp_path: Path) -> None:
    await several(cache)
    told = "nothing lies in L2 under type prices of tenant acmee; did you mean acme?"
    assert (await run(cache, tmp_path, "invalidate", "prices", "--tenant", "acmee", "--dry-run"))[1].strip() == told
    status, out, errors = await run(cache, tmp_path, "invalidate", "prices", "--tenant", "acme")
    assert status == 0
    assert Receipt.parse(out.strip()).seq
    assert errors == "cachebus: nothing lies in L2 under type prices of tenant acme; did you mean price?\n"
    assert (await run(cache, tmp_path, "invalidate", "price", "--tenant", "acme"))[2] == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "nothing to invalidate"),
        (("--everything",), "add --yes"),
        (("price", "--everything", "--yes"), "--everything goes with no other name"),
        (("price", "1", "--all-tenants"), "--all-tenants takes a TYPE alone"),
        (("--all-tenants",), "--all-tenants takes a TYPE alone"),
        *(  # of a variable that was not set
            (("price", *empty, "--all-tenants", *more), "--all-tenants takes a TYPE alone")
            for empty in [("",), ("--tenant", ""), ("--agent", "")]
            for more in [(), ("--dry-run",)]
        ),
        (("", "--all-tenants"), "TYPE is empty"),
        (("price", "--tag", "t1", "--tenant", "acme"), "--tag takes --tenant alone"),
        (("price", "--tenant", "acme", "--all-contexts"), "--all-contexts takes a TYPE and an ID"),
        (("price",), "--tenant is needed"),
        (("--tag", "t1"), "tags belong to a tenant"),
    ],
)
async def test_what_does_not_fit_invalidates_nothing(
    cache: Cache, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    await several(cache)
    status, out, errors = await run(cache, tmp_path, "invalidate", *arguments)
    assert (status, out) == (2, "")
    assert told in errors
    assert len(errors.splitlines()) == 1
    assert await cache.get("price", 1, "acme", use_memory=False) == 1


LOOKS = [("get", "config", "x", "--tenant", "acme"), ("log",), ("tail",), ("nodes",)]
ACTS = [("invalidate", "config", "x", "--tenant", "acme"), ("invalidate", "--everything", "--yes")]


@pytest.mark.parametrize("arguments", [*LOOKS[:3], *ACTS, ("invalidate", "config", "--tenant", "acme", "--dry-run")])
async def test_nobody_lays_a_namespace_out_who_only_looks(
    redis_url: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Services that start later may have another number of shards."""
    asked = (*arguments, "--url", redis_url, "--namespace", "nobodys")
    status, out, errors = await asyncio.to_thread(ran, *asked, folder=tmp_path)
    assert (status, out) == (2, "")
    assert "there is no namespace nobodys at redis://" in errors
    assert len(errors.splitlines()) == 1
    connection = await Connection.open(parse_address(redis_url), Patience(5, 5, monotonic))
    assert await connection.call("KEYS", "*nobodys*") == []
    connection.close()


async def test_any_shard_tells_how_many_there_are(cache: Cache, tmp_path: Path) -> None:
    tenant = next(f"t{n}" for n in range(100) if key_of(cache, "config", "x", f"t{n}").shard == 2)
    await cache.set("config", "x", 1, tenant)
    connection = await Connection.open(parse_address(cache.settings.url.get_secret_value()), Patience(5, 5, monotonic))
    await connection.call("DEL", f"{{{cache.settings.namespace}:0}}:meta")
    connection.close()
    assert (await run(cache, tmp_path, "get", "config", "x", "--tenant", tenant))[0] == 0
    status, out, _ = await run(cache, tmp_path, "invalidate", "config", "x", "--tenant", tenant)
    assert status == 0
    assert Receipt.parse(out.strip()).shard == 2
    assert await cache.get("config", "x", tenant, after=Receipt.parse(out.strip())) is None


async def test_a_name_that_is_none_of_ours_is_passed_over(cache: Cache, tmp_path: Path) -> None:
    await several(cache)
    connection = await Connection.open(parse_address(cache.settings.url.get_secret_value()), Patience(5, 5, monotonic))
    for odd in (b"acme:price:agent:x", b"acme", b"acme:price:\xff", b"acme:price:odd"):
        await connection.call("SET", b"{%s:1}:r:%s" % (cache.settings.namespace.encode(), odd), b"x")
    connection.close()
    status, out, errors = await run(cache, tmp_path, "invalidate", "nothing", "--tenant", "acme")
    assert status == 0
    assert Receipt.parse(out.strip()).seq
    assert "nothing lies in L2 under type nothing of tenant acme" in errors
    _, out, _ = await run(cache, tmp_path, "invalidate", "--tenant", "nobody", "--dry-run")
    assert out.startswith("nothing lies in L2 under anything of tenant nobody")
    assert (await run(cache, tmp_path, "get", "price", "nowhere", "--tenant", "acme"))[:2] == (1, "")
    assert (await run(cache, tmp_path, "invalidate", "price", "--tenant", "acme", "--dry-run"))[0] == 0


async def test_get_only_looks(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever services are told by the environment, and though the server takes no writes."""
    await cache.set("config", "x", 1, "acme")
    monkeypatch.setenv("CACHEBUS_ENABLED", "0")
    connection = await Connection.open(parse_address(cache.settings.url.get_secret_value()), Patience(5, 5, monotonic))
    try:
        await connection.call("CLIENT", "PAUSE", 60_000, "WRITE")
        status, out, errors = await run(cache, tmp_path, "get", "config", "x", "--tenant", "acme")
    finally:
        await connection.call("CLIENT", "UNPAUSE")
        connection.close()
    assert (status, errors) == (0, "")
    assert out.splitlines()[0] == "1"
    assert {
        row["node"] for row in map(json.loads, (await run(cache, tmp_path, "nodes", "--json"))[1].splitlines())
    } == {cache._live().node.id}


async def test_a_dry_run_knows_the_default_tenant_and_what_is_refused(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await several(cache)
    monkeypatch.setenv("CACHEBUS_DEFAULT_TENANT", "acme")
    assert (await run(cache, tmp_path, "invalidate", "price", "--dry-run"))[1].startswith("3 records")
    assert (await run(cache, tmp_path, "invalidate", "price", "--tenant", "", "--dry-run"))[0] == 2
    assert (await run(cache, tmp_path, "invalidate", "", "--dry-run"))[0] == 2
    status, _, errors = await run(cache, tmp_path, "invalidate", "price")
    assert (status, errors) == (0, "")


async def test_commands_that_only_look_need_no_more_rights_than_a_node(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    made = user_of_its_own(Settings(url=own_server.url), "svc").replace(">PASSWORD", ">Zx9-pass")
    assert own_server.command(*made.split()) == "+OK"
    url = own_server.url.replace("redis://", "redis://svc:Zx9-pass@")
    async with Cache(Settings(url=url, **QUICK)) as cache:
        await cache.set("config", "x", 1, tenant_id="acme", tags=["t"])
        for command in (
            ("get", "config", "x", "--tenant", "acme"),
            ("explain", "config", "x", "--tenant", "acme"),
            ("log", "config", "x", "--tenant", "acme"),
            ("nodes",),
        ):
            status, _, errors = await run(cache, tmp_path, *command)
            assert (status, "refused" in errors) == (0, False), (command, errors)
        await cache.invalidate_tags(["t"], tenant_id="acme")
        status, out, errors = await run(cache, tmp_path, "get", "config", "x", "--tenant", "acme")
        assert re.search(r"it was invalidated, by seq \d+: tag t of acme", out + errors)
        assert status == 1
