"""cachebus: a two-level cache that is coherent. See the README for the first five minutes."""

from cachebus.aside import Metrics
from cachebus.base.choices import Codec, ContextMatch, OnOutage, Wait
from cachebus.base.hashing import generate_resource_id_hash
from cachebus.base.lifetimes import TTL_PERMANENT
from cachebus.base.templates import Template
from cachebus.cache import Cache
from cachebus.cascade import Cascade, Target
from cachebus.context import Context, with_context
from cachebus.decided import DontCache, Fresh, NotModified, Previous
from cachebus.errors import (
    BusUnavailable,
    CacheBusError,
    ConfigError,
    InvalidationFailed,
    InvalidKey,
    L2Unavailable,
    LoadTimeout,
    NotSerializable,
    ProtocolMismatch,
    TenantRequired,
    ValueTooLarge,
)
from cachebus.handle import TypedCache
from cachebus.helpers import (
    cached,
    deserialize_from_cache,
    get_counter,
    get_with_cache_aside,
    increment_counter,
    invalidate_coordinated,
    invalidate_resource_cache,
    serialize_for_cache,
    track_cache_metrics,
)
from cachebus.listening.explanation import Explanation
from cachebus.manager import CacheManager, configure, current_cache, declare, lifespan, write_guard
from cachebus.observe import Health, Stats
from cachebus.observe.hook_events import (
    DegradedEvent,
    EvictedEvent,
    FlushedEvent,
    InvalidatedEvent,
    KeyIds,
    LeaseLapsedEvent,
    LoadedEvent,
    LoadFailedEvent,
    ScopeIds,
    StaleServedEvent,
)
from cachebus.observe.hooks import Hook
from cachebus.policy import DEFAULT_TTL_MAPPING, TTL_EXTENDED, TTL_SHORT, TTL_STANDARD, Policy
from cachebus.reading.judge import MISSING
from cachebus.reading.looked import CachedValue
from cachebus.receipt import Receipt
from cachebus.settings import Settings
from cachebus.threads import BlockingCache, BlockingFunction, BlockingWriteGuard, blocking
from cachebus.writing.guard import WriteGuard

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_TTL_MAPPING",
    "MISSING",
    "TTL_EXTENDED",
    "TTL_PERMANENT",
    "TTL_SHORT",
    "TTL_STANDARD",
    "BlockingCache",
    "BlockingFunction",
    "BlockingWriteGuard",
    "BusUnavailable",
    "Cache",
    "CacheBusError",
    "CacheManager",
    "CachedValue",
    "Cascade",
    "Codec",
    "ConfigError",
    "Context",
    "ContextMatch",
    "DegradedEvent",
    "DontCache",
    "EvictedEvent",
    "Explanation",
    "FlushedEvent",
    "Fresh",
    "Health",
    "Hook",
    "InvalidKey",
    "InvalidatedEvent",
    "InvalidationFailed",
    "KeyIds",
    "L2Unavailable",
    "LeaseLapsedEvent",
    "LoadFailedEvent",
    "LoadTimeout",
    "LoadedEvent",
    "Metrics",
    "NotModified",
    "NotSerializable",
    "OnOutage",
    "Policy",
    "Previous",
    "ProtocolMismatch",
    "Receipt",
    "ScopeIds",
    "Settings",
    "StaleServedEvent",
    "Stats",
    "Target",
    "Template",
    "TenantRequired",
    "TypedCache",
    "ValueTooLarge",
    "Wait",
    "WriteGuard",
    "blocking",
    "cached",
    "configure",
    "current_cache",
    "declare",
    "deserialize_from_cache",
    "generate_resource_id_hash",
    "get_counter",
    "get_with_cache_aside",
    "increment_counter",
    "invalidate_coordinated",
    "invalidate_resource_cache",
    "lifespan",
    "serialize_for_cache",
    "track_cache_metrics",
    "with_context",
    "write_guard",
]
