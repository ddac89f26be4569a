"""Whether settings agree with each other."""

from __future__ import annotations

from typing import Any, Final

PREFIX: Final = "CACHEBUS_"
"""Of the variables in the environment."""


def check_kafka(settings: Any) -> None:
    """`ValueError` for settings of Kafka that contradict each other."""
    if settings.bus == "kafka":
        if settings.kafka_bootstrap_servers is None:
            raise ValueError("bus=kafka needs kafka_bootstrap_servers (CACHEBUS_KAFKA_BOOTSTRAP_SERVERS)")
        if settings.url.get_secret_value().startswith("memory://"):
            raise ValueError("bus=kafka (CACHEBUS_BUS) needs a Redis in url (CACHEBUS_URL): memory:// is its own bus")
    for field in ("kafka_ssl_ca_certs", "kafka_ssl_certfile", "kafka_ssl_keyfile"):
        if getattr(settings, field) is not None and not settings.kafka_ssl:
            raise ValueError(f"{field} ({PREFIX}{field.upper()}) is for TLS: set kafka_ssl (CACHEBUS_KAFKA_SSL=1)")
    if settings.kafka_ssl_keyfile is not None and settings.kafka_ssl_certfile is None:
        raise ValueError(
            "kafka_ssl_keyfile (CACHEBUS_KAFKA_SSL_KEYFILE) needs kafka_ssl_certfile (CACHEBUS_KAFKA_SSL_CERTFILE)"
        )
    of_tokens, mechanism = "kafka_sasl_oauth_token_provider", settings.kafka_sasl_mechanism
    wanted = {None: [], "OAUTHBEARER": [of_tokens]}.get(mechanism, ["kafka_username", "kafka_password"])
    for field in ("kafka_username", "kafka_password", of_tokens):
        given = getattr(settings, field) is not None
        if given and field not in wanted:
            which = "=OAUTHBEARER" if field == of_tokens else " other than OAUTHBEARER" if mechanism else ""
            raise ValueError(
                f"{field} ({PREFIX}{field.upper()}) needs kafka_sasl_mechanism (CACHEBUS_KAFKA_SASL_MECHANISM){which}"
            )
        if not given and field in wanted:
            raise ValueError(
                f"kafka_sasl_mechanism (CACHEBUS_KAFKA_SASL_MECHANISM) needs {field} ({PREFIX}{field.upper()})"
            )


def check_credentials(settings: Any) -> None:
    """`ValueError` for two who say what to log in with, or nobody."""
    for field in ("username", "password"):
        if getattr(settings, field) is not None and settings.credential_provider is not None:
            raise ValueError(
                f"{field} ({PREFIX}{field.upper()}) and credential_provider (CACHEBUS_CREDENTIAL_PROVIDER) both say "
                "what to log in with: leave one out"
            )
    if settings.sentinel_credential_provider is not None and "+sentinel" not in settings.safe_url:
        raise ValueError(
            "sentinel_credential_provider (CACHEBUS_SENTINEL_CREDENTIAL_PROVIDER) is for redis+sentinel:// in url"
        )
    if settings.reauth_interval_s is not None and not (
        settings.credential_provider or settings.sentinel_credential_provider
    ):
        raise ValueError(
            "reauth_interval_s (CACHEBUS_REAUTH_INTERVAL_S) needs credential_provider (CACHEBUS_CREDENTIAL_PROVIDER)"
        )


def check_times(settings: Any) -> None:
    """`ValueError` for times that contradict each other."""
    if settings.probe_interval_s > settings.staleness_bound_s / 2:
        raise ValueError(
            "probe_interval_s (CACHEBUS_PROBE_INTERVAL_S) must be at most half of staleness_bound_s "
            "(CACHEBUS_STALENESS_BOUND_S), or leases lapse between probes"
        )
    if settings.gap_grace_s >= settings.staleness_bound_s:
        raise ValueError(
            "gap_grace_s (CACHEBUS_GAP_GRACE_S) must be below staleness_bound_s (CACHEBUS_STALENESS_BOUND_S)"
        )
    if settings.db_timeout_s is not None and 0 < settings.guard_max_s <= settings.db_timeout_s:
        raise ValueError(
            "db_timeout_s (CACHEBUS_DB_TIMEOUT_S) must be below guard_max_s (CACHEBUS_GUARD_MAX_S): a write guard "
            "outlasts the transaction"
        )
