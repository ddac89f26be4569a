"""Sets Django up, once for a process of tests."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import django
from django.conf import settings

from tests.support.caches import QUICK

BACKEND = "cachebus.django.CacheBackend"


@cache
def configured() -> None:
    """Django, with the app and its tables."""
    folder = tempfile.mkdtemp(prefix="cachebus-django-")
    settings.configure(
        CACHES={"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}},
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(folder) / "shop.db"}},
        INSTALLED_APPS=["tests.support.django_shop"],
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        SECRET_KEY="of tests",
        USE_TZ=True,
        ROOT_URLCONF="tests.support.django_shop.urls",
        ALLOWED_HOSTS=["*"],
    )
    django.setup()
    from django.core.management import call_command

    call_command("migrate", run_syncdb=True, verbosity=0)


def entry(url: str, *, more: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """An entry of CACHES. `more`: beside OPTIONS."""
    return {"BACKEND": BACKEND, "LOCATION": url, "OPTIONS": {**QUICK, **options}, **(more or {})}
