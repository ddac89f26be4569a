"""A Cluster as most are: each node on a machine of its own, and all of them on one port. Here by 127.0.0.2 and on."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack
from typing import Final

from cachebus.errors import L2Unavailable
from cachebus.resp.cluster_map import SLOTS
from cachebus.tools.servers.redis import EmbeddedServer, free_port
from cachebus.tools.servers.redis_group import ask
from tests.support.caches import until
from tests.support.require import require
from tests.support.servers import any_binary

FIRST: Final = 2


class HostedServer(EmbeddedServer):
    """A server at another address of the loopback."""

    def __init__(self, host: str, port: int, *conf: str) -> None:
        place = (f"bind {host}", f"bind-source-addr {host}", f"cluster-announce-ip {host}", "protected-mode no")
        super().__init__(any_binary(), port=port, conf=(*conf, *place))
        self.host = host

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    def connected(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), 2.0)


async def one_port_cluster(stack: ExitStack, primaries: int, *conf: str) -> list[HostedServer]:
    """So many primaries, and behind them a replica of each, in the same order."""
    require(sys.platform == "linux", "addresses of the loopback beside 127.0.0.1", "run it on Linux", can_exist=False)
    port, conf = free_port(), ("cluster-enabled yes", "cluster-node-timeout 3000", *conf)
    hosts = [f"127.0.0.{FIRST + i}" for i in range(2 * primaries)]
    nodes = [stack.enter_context(HostedServer(host, port, *conf)) for host in hosts]
    heads, tails = nodes[:primaries], nodes[primaries:]
    for i, node in enumerate(heads):
        await ask(node, "CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        await ask(node, "CLUSTER", "ADDSLOTS", *range(SLOTS * i // primaries, SLOTS * (i + 1) // primaries))
    for node in nodes[1:]:
        await ask(nodes[0], "CLUSTER", "MEET", node.host, port)

    async def acquainted() -> bool:
        lines = [(await ask(node, "CLUSTER", "NODES")).decode().splitlines() for node in nodes]
        return all(len(each) == len(nodes) and "handshake" not in "".join(each) for each in lines)

    async def whole() -> bool:
        try:
            texts = [await ask(node, "INFO", "replication") for node in nodes]
            states = [await ask(node, "CLUSTER", "INFO") for node in nodes]
            lines = [(await ask(node, "CLUSTER", "NODES")).count(b"slave") for node in nodes]
        except L2Unavailable:
            return False
        online = all(b"state=online" in text for text in texts[:primaries])
        return online and set(lines) == {primaries} and all(b"cluster_state:ok" in state for state in states)

    await until(acquainted)
    for head, tail in zip(heads, tails, strict=True):
        await ask(tail, "CLUSTER", "REPLICATE", (await ask(head, "CLUSTER", "MYID")).decode())
    await until(whole, within_s=30.0)
    return nodes
