"""What is told of a row of an outbox as the place that it came from: its data type, and nobody's data."""

from __future__ import annotations

from typing import Any

import pytest

from cachebus.consumers.outbox.rows import OutboxSession, SqliteRow
from cachebus.consumers.worker.source import Item
from cachebus.producers.command import InvalidateCoordinated, Related, encode

COORDINATED = InvalidateCoordinated(
    data_type="order", resource_id=1, tenant_id="acme", related=(Related(data_type="embedding"),)
)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (encode(COORDINATED), "the type order"),
        (encode(COORDINATED).decode(), "the type order"),
        ('{"op": "scope", "data_type" : "query_result", "tenant_id": 7}', "the type query_result"),
        ('{"op": "invalidate", "data_type": "order", "resource_', "the type order"),
        ('{"op": "tags", "tenant_id": "acme", "tags": ["plan:pro"]}', ""),
        ('{"op": "scope", "data_type": "ann@example.com"}', ""),
        ('{"op": "scope", "data_type": "Ann Smith"}', ""),
        ('{"reason": "\\"data_type\\": \\"order\\"", "op": "tags"}', ""),
        (b"\xff\x00", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_the_type_is_told_where_it_is_a_name(command: Any, told: str) -> None:
    row = SqliteRow(1, command, 0.0, 0.0, -1, 0)
    assert OutboxSession.origin(None, Item("row 1", row)) == told  # type: ignore[arg-type]
