"""For `INSTALLED_APPS`: `"cachebus.django"` has `CACHEBUS_INVALIDATE_ON` followed, if the settings say it."""

from __future__ import annotations

from django.apps import AppConfig
from django.conf import settings

from cachebus.django.invalidation import invalidate_on


class CacheBusConfig(AppConfig):  # type: ignore[misc]
    """Follows the mapping of the settings: `CACHEBUS_INVALIDATE_ON = {"shop.Product": "shop.caching.names_of"}`, whose
    values are functions, or their dotted names; see `invalidate_on`."""

    name = "cachebus.django"
    label = "cachebus"

    def ready(self) -> None:
        """Called by Django when all models are there."""
        mapping = getattr(settings, "CACHEBUS_INVALIDATE_ON", {})
        if mapping:
            invalidate_on(mapping)
