"""A small RESP2 client for the store and the bus: one socket, everything pipelined, bytes in and bytes out.

hiredis packs and parses (in C); what is here is what a cache needs around it: reads of one loop tick become one MGET,
one timer a connection instead of a time-out a call, and every failure is an error of `cachebus.errors`.

In the order in which it is best read:

1. `address` and `endpoints`: what a URL says. `names` and `dial`: from there to a socket. `handshake`: to be let in,
   by what `credentials` say at that moment; `reauth`: links that stay open are told when those change.
2. `link`: one socket; `watchdog` and `unsent`: when it is given up. `connection`: commands; `script`: scripts;
   `replies`: what comes back. `subscriber`: pub/sub.
3. `route`: where primaries are. `asked_route`: by asking; `sentinels`, `cluster_map` and `cluster_answers`: whom.
4. `links`: a link to every primary, by shard. `tasks`: attempts that several wait for.
"""

from cachebus.resp.address import Address, Login, parse_address
from cachebus.resp.cluster_map import ClusterMap, slot_of
from cachebus.resp.connection import Connection
from cachebus.resp.credentials import ProvidedCredentials
from cachebus.resp.endpoints import CLUSTER, SENTINEL, Endpoints, parse_endpoints
from cachebus.resp.handshake import NoPrimary, must_be_primary
from cachebus.resp.links import Links
from cachebus.resp.replies import (
    Misshapen,
    NotAsked,
    Reads,
    Refused,
    host_port_in,
    is_no_primarys,
    is_of_another_type,
    is_replicas,
    knows_no_script,
    leads_elsewhere,
    mapped,
)
from cachebus.resp.route import Fixed, Route
from cachebus.resp.script import Script
from cachebus.resp.sentinels import Sentinels
from cachebus.resp.subscriber import Subscriber
from cachebus.resp.tasks import ended, shared

__all__ = [
    "CLUSTER",
    "SENTINEL",
    "Address",
    "ClusterMap",
    "Connection",
    "Endpoints",
    "Fixed",
    "Links",
    "Login",
    "Misshapen",
    "NoPrimary",
    "NotAsked",
    "ProvidedCredentials",
    "Reads",
    "Refused",
    "Route",
    "Script",
    "Sentinels",
    "Subscriber",
    "ended",
    "host_port_in",
    "is_no_primarys",
    "is_of_another_type",
    "is_replicas",
    "knows_no_script",
    "leads_elsewhere",
    "mapped",
    "must_be_primary",
    "parse_address",
    "parse_endpoints",
    "shared",
    "slot_of",
]
