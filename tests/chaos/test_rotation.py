"""Passwords that change under a running fleet, behind Sentinels and in a Cluster, and each connection ended by it."""

from __future__ import annotations

import pytest

from cachebus import Cache
from cachebus.errors import L2Unavailable
from cachebus.tools.servers.redis_cluster import ClusterGroup
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SentinelGroup
from tests.support.caches import nodes, quick, until
from tests.support.credentials import USER, Rotating, Watched, clients, let_in, rotated
from tests.support.logs import told
from tests.support.servers import any_binary

FIRST, WATCHERS = "First-s3cret", "Other-s3cret"
TURNS = 3
BACK_S = 1.5
"""What a reconnect takes at most, of which 0.8 s are the pause between two looks for a primary."""


async def test_behind_sentinels_which_know_another_user() -> None:
    async with SentinelGroup(any_binary()) as group:
        provider, of_sentinels = Rotating(FIRST), Rotating(WATCHERS, "watcher")
        await let_in(group.data, FIRST)
        await let_in(group.sentinels, WATCHERS, "watcher")
        both = {"credential_provider": provider, "sentinel_credential_provider": of_sentinels}
        async with nodes(group.url, **both, namespace="rotates") as caches:
            watched = Watched(caches, ["acme"])
            async with watched.at_work():
                for turn in range(TURNS):
                    await rotated(group.sentinels, of_sentinels, f"{WATCHERS}-{turn}")
                    ended_s = await rotated(group.data, provider, f"{FIRST}-{turn}")
                    await watched.goes_on()
                    assert [at for at in watched.failed if at[0] > ended_s + BACK_S] == []
                old = await group.primary()
                asked = of_sentinels.calls
                old.kill()

                async def moved() -> bool:
                    return await group.primary(but=old) is not old

                await until(moved, within_s=30.0)
                await watched.goes_on(within_s=30.0)
                assert of_sentinels.calls > asked
                assert {each["user"] for each in await clients(await group.primary(but=old), "rotates")} == {USER}
                of_sentinels.secret = "Wrong-s3cret"
                with told("WARNING", of="no Sentinel says where") as lines:
                    (await group.primary(but=old)).kill()
                    await until(lambda: bool(lines))
                assert "WRONGPASS" in lines[0] and "Wrong" not in lines[0]
        assert not watched.stale
        with pytest.raises(L2Unavailable, match="refused: WRONGPASS") as raised:
            async with Cache(quick(group.url, **both)):
                pass
        assert "s3cret" not in str(raised.value)


async def test_health_says_since_when_logins_to_sentinels_are_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no longer once nobody asks, as the primary is found without them."""
    monkeypatch.setattr("cachebus.base.providers.LATELY_S", 1.0)
    async with SentinelGroup(any_binary()) as group:
        of_sentinels = Rotating(WATCHERS, "watcher")
        await let_in(group.sentinels, WATCHERS, "watcher")
        async with nodes(group.url, 1, sentinel_credential_provider=of_sentinels) as (cache,):
            assert cache.health().degraded == ()
            of_sentinels.secret = f"{WATCHERS}\udcff"

            def said() -> list[str]:
                logins = "logins to Sentinels are not renewed for "
                return [why for why in cache.health().degraded if why.startswith(logins)]

            await ask(await group.primary(), "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until(said)
            [why] = said()
            assert "the provider Rotating gave " in why and WATCHERS not in why
            of_sentinels.secret = WATCHERS
            await until(lambda: not cache.health().degraded)


async def test_in_a_cluster() -> None:
    async with ClusterGroup(any_binary()) as group:
        provider = Rotating(FIRST)
        await let_in(group.servers, FIRST)
        for server in group.servers:
            await ask(server, "ACL", "SETUSER", "default", "-cluster|slots")  # else who does not log in is let in
        async with nodes(group.url, credential_provider=provider, namespace="rotates") as caches:
            watched = Watched(caches, [f"tenant-{number}" for number in range(6)])
            async with watched.at_work():
                for turn in range(TURNS):
                    ended_s = await rotated(group.servers, provider, f"{FIRST}-{turn}")
                    await watched.goes_on()
                    assert [at for at in watched.failed if at[0] > ended_s + BACK_S] == []
                there = [each for server in group.servers for each in await clients(server, "rotates")]
                assert len(there) >= 4 and {each["user"] for each in there} == {USER}
        assert not watched.stale
