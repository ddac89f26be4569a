"""Where a node hears events, as its row in L2 tells it: whether two nodes hear each other is told by their rows alone.

| a row says | as | what it means where two differ |
|---|---|---|
| `topic` | the topic of Kafka | neither hears the other |
| `kafka` | the id of the Kafka cluster | neither hears the other |
| `keys` | fingerprints of the keys of events, the one that signs first | who accepts no such signature is deaf to it |

A fingerprint tells keys apart, and neither is a key nor signs anything. "" as `keys`: no keys, so nothing is signed,
and everything is accepted. What a row does not say may be anything: nobody is blamed for it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Self

TOPIC: Final = "topic"
KAFKA: Final = "kafka"
KEYS: Final = "keys"


def beside(more: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
    """What a row's `more` says that is not about where its node hears events."""
    return tuple(said for said in more if said[0] not in (TOPIC, KAFKA, KEYS))


class Hearing(NamedTuple):
    """Where a node hears events over Kafka, and by which keys it tells its own."""

    topic: str
    kafka: str = ""
    """"" where it is not known."""
    keys: str | None = None

    @classmethod
    def of(cls, more: tuple[tuple[str, Any], ...]) -> Self | None:
        """What a row says; None for a node that does not hear by Kafka."""
        said = {name: value for name, value in dict(more).items() if isinstance(value, str)}
        return cls(said[TOPIC], said.get(KAFKA, ""), said.get(KEYS)) if TOPIC in said else None

    @property
    def in_row(self) -> tuple[tuple[str, str], ...]:
        """As `more` of a row."""
        said = ((TOPIC, self.topic), (KAFKA, self.kafka), (KEYS, self.keys))
        return tuple((name, value) for name, value in said if value is not None and (value or name == KEYS))

    def barrier(self, other: Hearing) -> str:
        """What keeps events of one from the other, in this order: `TOPIC`, `KAFKA`, `KEYS`; "" where nothing does."""
        if self.topic != other.topic:
            return TOPIC
        if self.kafka and other.kafka and self.kafka != other.kafka:
            return KAFKA
        return "" if _accepted(self.keys, other.keys) and _accepted(other.keys, self.keys) else KEYS


def _accepted(signer: str | None, listener: str | None) -> bool:
    """Whether who has these keys believes what is signed by the first of those."""
    return not listener or signer is None or signer.partition(",")[0] in listener.split(",")
