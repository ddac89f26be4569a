"""Listening to a namespace from a command: nothing is written, and no topic is made."""

from __future__ import annotations

from dataclasses import replace

from cachebus.assembly.backends import channels_of
from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.bus.kafka.bus import KafkaBus
from cachebus.bus.kafka.client import kafka_access
from cachebus.bus.kafka.envelope import Envelope
from cachebus.bus.redis import RedisBus
from cachebus.core.ports import Bus, Listener
from cachebus.observe import Counters
from cachebus.resp import Route
from cachebus.settings import Settings
from cachebus.tools.doctor.asking import ASK_TIMEOUT_S


def bus_of(settings: Settings, route: Route, listener: Listener, counters: Counters) -> Bus:
    """Where the settings say that events go, not yet connected; `ConfigError`."""
    if settings.bus == "kafka":
        access = replace(kafka_access(settings), makes_topic=False)
        return KafkaBus(access, Envelope.of(settings), listener, counters, monotonic)
    patience = Patience(ASK_TIMEOUT_S, settings.connect_timeout_s, monotonic)
    return RedisBus(route, channels_of(settings), listener, patience)
