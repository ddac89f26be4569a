"""Several servers that make one service on 127.0.0.1: a primary with replicas and Sentinels, or a Cluster."""

from cachebus.tools.servers.redis_cluster import BUS, ClusterGroup
from cachebus.tools.servers.redis_group import ask
from cachebus.tools.servers.redis_sentinels import SERVICE, SentinelGroup

__all__ = ["BUS", "SERVICE", "ClusterGroup", "SentinelGroup", "ask"]
