"""A small RESP2 client for the store and the bus: one socket, everything pipelined, bytes in and bytes out.

hiredis packs and parses (in C); what is here is what a cache needs around it: reads of one loop tick become one MGET,
one timer a connection instead of a time-out a call, and every failure is an error of `cachebus.errors`.
"""

from cachebus.resp.address import Address, parse_address
from cachebus.resp.cluster_map import ClusterMap, slot_of
from cachebus.resp.connection import Connection
from cachebus.resp.handshake import NoPrimary, must_be_primary
from cachebus.resp.links import Links
from cachebus.resp.places import CLUSTER, SENTINEL, Places, parse_places
from cachebus.resp.replies import (
    Misshapen,
    NotAsked,
    Reads,
    Refused,
    is_no_primarys,
    is_of_another_type,
    is_replicas,
    knows_no_script,
    leads_elsewhere,
    mapped,
    place_in,
)
from cachebus.resp.route import Fixed, Route
from cachebus.resp.script import Script
from cachebus.resp.sentinels import Sentinels
from cachebus.resp.subscriber import Subscriber
from cachebus.resp.tasks import ended, heard, shared

__all__ = [
    "CLUSTER",
    "SENTINEL",
    "Address",
    "ClusterMap",
    "Connection",
    "Fixed",
    "Links",
    "Misshapen",
    "NoPrimary",
    "NotAsked",
    "Places",
    "Reads",
    "Refused",
    "Route",
    "Script",
    "Sentinels",
    "Subscriber",
    "ended",
    "heard",
    "is_no_primarys",
    "is_of_another_type",
    "is_replicas",
    "knows_no_script",
    "leads_elsewhere",
    "mapped",
    "must_be_primary",
    "parse_address",
    "parse_places",
    "place_in",
    "shared",
    "slot_of",
]
