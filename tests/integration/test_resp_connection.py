"""A connection against real servers of every kind."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.errors import L2Unavailable, ProtocolMismatch
from cachebus.resp import Address, Connection, Fixed, Links, Login, Script, Subscriber, parse_address
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.require import require
from tests.support.servers import any_binary


async def opened(address: Address) -> Connection:
    return await Connection.open(address, Patience(10.0, 10.0, monotonic))


@pytest.fixture
async def connection(server_kinds: EmbeddedServer) -> AsyncIterator[Connection]:
    connection = await opened(parse_address(server_kinds.url))
    await connection.call("CONFIG", "RESETSTAT")
    yield connection
    assert connection.pending == 0
    connection.close()


async def calls(connection: Connection) -> dict[str, int]:
    """How often the server ran each command since the test began."""
    text = (await connection.call("INFO", "commandstats")).decode()
    stats = [line.removeprefix("cmdstat_").split(":") for line in text.splitlines() if line.startswith("cmdstat_")]
    return {name: int(rest.partition("calls=")[2].partition(",")[0]) for name, rest in stats}


async def test_replies_come_in_order(connection: Connection) -> None:
    replies = await asyncio.gather(
        *[connection.call("INCR", "n") for _ in range(1000)], connection.call("NOPE"), return_exceptions=True
    )
    assert replies[:-1] == list(range(1, 1001))
    assert isinstance(replies[-1], L2Unavailable)
    assert "unknown command" in str(replies[-1])


async def test_a_hundred_gets_of_one_tick_are_one_mget(connection: Connection) -> None:
    await asyncio.gather(*[connection.call("SET", f"k{number}", number) for number in range(100)])
    values = await asyncio.gather(*[connection.get(f"k{number}") for number in range(100)], connection.get("none"))
    assert values == [*(b"%d" % number for number in range(100)), None]
    assert await connection.get("k7") == b"7"
    ran = await calls(connection)
    assert (ran["mget"], ran["get"]) == (1, 1)


async def test_a_get_sees_the_set_before_it(connection: Connection) -> None:
    for turn in range(50):  # more than it takes to be treated as alone
        _, value = await asyncio.gather(connection.call("SET", "k", turn), connection.get("k"))
        assert value == b"%d" % turn
        assert await connection.get("k") == b"%d" % turn


async def test_one_cancelled_among_many(connection: Connection) -> None:
    await connection.call("SET", "k", "v")

    async def read() -> bytes | None:
        return await connection.get("k")

    tasks = [asyncio.create_task(read()) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[4].cancel()
    values = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(values.pop(4), asyncio.CancelledError)
    assert values == [b"v"] * 9


async def test_big_values(connection: Connection) -> None:
    big = bytes(range(256)) * (5 * 4096)
    await connection.call("SET", "big", big)
    assert await asyncio.gather(connection.get("big"), connection.get("none")) == [big, None]
    assert await connection.get("big") == big


async def test_more_than_the_socket_takes_at_once(connection: Connection) -> None:
    chunk = b"x" * 1_000_000
    sizes = await asyncio.gather(*[connection.call("APPEND", "big", chunk) for _ in range(40)])
    assert sizes == [1_000_000 * number for number in range(1, 41)]


async def test_a_script_is_loaded_when_the_server_does_not_know_it(connection: Connection) -> None:
    script = Script("return {KEYS[1], ARGV[1], tonumber(ARGV[2])}")
    assert await connection.script(script, ["k"], [b"\x00", 5]) == [b"k", b"\x00", 5]
    await connection.call("SCRIPT", "FLUSH")
    assert await connection.script(script, ["k"], ["a", 6]) == [b"k", b"a", 6]
    assert await connection.script(script, ["k"], ["a", 7]) == [b"k", b"a", 7]
    ran = await calls(connection)
    assert (ran["evalsha"], ran["eval"]) == (3, 2)


async def test_of_many_whose_script_the_server_does_not_know_one_sends_the_source(connection: Connection) -> None:
    """Each shard runs the same one in the tick after a failover, and the source has 10 kB."""
    script = Script("return tonumber(ARGV[1])")
    for _ in range(2):
        answers = await asyncio.gather(*(connection.script(script, [], [number]) for number in range(50)))
        assert answers == list(range(50))
        await connection.call("SCRIPT", "FLUSH")
    assert (await calls(connection))["eval"] == 2


async def test_a_scripts_refusal_is_a_protocol_mismatch(connection: Connection) -> None:
    refusal = Script("return redis.error_reply('CACHEBUS protocol 3 there, 4 here')")
    with pytest.raises(ProtocolMismatch, match=r"^protocol 3 there, 4 here$"):
        await connection.script(refusal, [], [])
    with pytest.raises(L2Unavailable, match="WRONGTYPE"):
        await connection.script(Script("redis.call('LPUSH', KEYS[1], 1); return redis.call('GET', KEYS[1])"), ["l"], [])


async def test_each_connection_has_its_own_number_and_hears_its_server(
    connection: Connection, server_kinds: EmbeddedServer
) -> None:
    other = await opened(parse_address(server_kinds.url))
    assert other.generation > connection.generation
    before = connection.last_reply_s
    await connection.call("PING")
    assert connection.last_reply_s > before
    other.close()
    assert other.closed


async def test_password_user_database_and_name(server_kinds: EmbeddedServer) -> None:
    admin = await opened(parse_address(server_kinds.url))
    await admin.call("ACL", "SETUSER", "app", "on", ">pass:word", "~*", "+@all")
    await admin.call("ACL", "SETUSER", "shy", "on", ">x", "~*", "+ping", "+get", "+client|id")
    address = parse_address(
        server_kinds.url.replace("/0", "/3"), Login(username="app", password="pass:word", client_name="w")
    )
    app = await opened(address)
    await app.call("SET", "only", "here")
    listed = (await admin.call("CLIENT", "LIST")).decode()
    assert any(" db=3 " in line and " name=w " in line and " user=app " in line for line in listed.splitlines())
    assert await admin.get("only") is None
    shy = await opened(parse_address(server_kinds.url, Login(username="shy", password="x", client_name="w")))
    with pytest.raises(L2Unavailable, match="NOPERM"):
        await shy.call("SET", "a", "b")
    for refused, told in (("wrong", "WRONGPASS"), ("", "WRONGPASS")):
        with pytest.raises(L2Unavailable, match=told) as caught:
            await opened(parse_address(server_kinds.url, Login(username="app", password=refused)))
        assert str(caught.value).startswith(f"127.0.0.1:{server_kinds.port} refused: ")
        assert "wrong" not in str(caught.value)
    await admin.call("ACL", "DELUSER", "app", "shy")
    for connection in (admin, app, shy):
        connection.close()


async def test_a_server_with_a_password() -> None:
    with EmbeddedServer(any_binary(), password="hunter2") as server:
        right = await opened(parse_address(server.url))
        assert await right.get("k") is None
        right.close()
        for url in (server.url.replace("hunter2", "hunter3"), server.url.replace(":hunter2@", "")):
            with pytest.raises(L2Unavailable, match=rf"^127\.0\.0\.1:{server.port} refused: (WRONGPASS|NOAUTH)") as no:
                await opened(parse_address(url))
            assert "hunter" not in str(no.value)


async def test_a_database_that_is_not_there(server_kinds: EmbeddedServer) -> None:
    with pytest.raises(L2Unavailable, match=r"refused: ERR .*index"):
        await opened(parse_address(server_kinds.url.replace("/0", "/999")))


async def test_a_unix_socket() -> None:
    with tempfile.TemporaryDirectory(prefix="cb-") as folder:  # short: such a path has 108 bytes at most
        path = Path(folder, "s")
        with EmbeddedServer(any_binary(), extra=("--unixsocket", str(path))):
            connection = await opened(parse_address(f"unix://{path}?db=1"))
            await connection.call("SET", "k", "v")
            assert await connection.get("k") == b"v"
            connection.close()
        with pytest.raises(L2Unavailable, match=f"^cannot connect to {path}: (No such file|Connection refused)"):
            await opened(parse_address(f"unix://{path}"))


def test_another_event_loop(redis_server: EmbeddedServer) -> None:
    """uvloop replaces every part below the protocol."""
    require(find_spec("uvloop"), "uvloop", "pip install uvloop", can_exist=False)
    import uvloop

    async def use() -> None:
        connection = await opened(parse_address(redis_server.url))
        values = await asyncio.gather(connection.call("SET", "k", "v" * 600_000), connection.get("k"))
        assert values == [b"OK", b"v" * 600_000]
        heard = asyncio.get_running_loop().create_future()
        ears = await Subscriber.open(
            parse_address(redis_server.url),
            Patience(10.0, 10.0, monotonic),
            on_push=lambda *message: heard.set_result(message),
        )
        await ears.subscribe("c")
        await connection.call("PUBLISH", "c", "m")
        assert await heard == (b"c", b"m")
        ears.close()
        connection.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(use())


async def test_shards_of_one_primary_that_are_reached_one_after_the_other_share_its_link(
    redis_server: EmbeddedServer,
) -> None:
    made: list[Connection] = []

    async def opens(address: Address) -> Connection:
        made.append(await opened(address))
        return made[-1]

    route = Fixed(parse_address(redis_server.url), 2)
    links = Links(route, opens, clock=monotonic, on_changed=lambda _: None)
    assert await links.reach(0) is await links.reach(1)
    assert len(made) == 1
    await links.close()
    assert made[0].closed
