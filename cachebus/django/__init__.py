"""cachebus in Django: `CACHES = {"default": {"BACKEND": "cachebus.django.CacheBackend", "LOCATION": "redis://..."}}`.

`invalidate_on` has what is cached of a model invalidated when it is saved or deleted. Needs Django:
`pip install 'cachebus[django]'`.
"""

from importlib.util import find_spec

if find_spec("django") is None:
    raise ModuleNotFoundError("cachebus.django needs Django: pip install 'cachebus[django]'", name="django")

from cachebus.django.backend import CacheBackend
from cachebus.django.invalidation import Invalidation, blocking_cache, invalidate_on, invalidate_on_commit
from cachebus.django.options import surrounding_tenant
from cachebus.django.shared import close_caches

__all__ = [
    "CacheBackend",
    "Invalidation",
    "blocking_cache",
    "close_caches",
    "invalidate_on",
    "invalidate_on_commit",
    "surrounding_tenant",
]
