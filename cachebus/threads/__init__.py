"""For synchronous code: a cache on an event loop of its own, and loaders in threads."""

from cachebus.threads.cache import BlockingCache
from cachebus.threads.decorator import BlockingFunction
from cachebus.threads.guard import BlockingWriteGuard
from cachebus.threads.loaders import blocking
from cachebus.threads.loop import close_all

__all__ = ["BlockingCache", "BlockingFunction", "BlockingWriteGuard", "blocking", "close_all"]
