"""How a peek into a slot ends: what it has passed over is remembered, whoever ends it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cachebus.consumers.cdc.slot.passed import PassedOver, Reached, Transaction, TransactionProgress
from cachebus.consumers.cdc.slot.peek import Peek
from cachebus.consumers.cdc.slot.reader import SlotReader
from cachebus.consumers.cdc.slot.slices import Slices


class Connection:
    """Takes every statement."""

    async def execute(self, sql: str, timeout: float) -> str:
        return sql


@pytest.mark.parametrize("sql", ["COMMIT", "ROLLBACK"])
async def test_what_nobody_sees_yet_outlives_the_peek(sql: str) -> None:
    """Behind it more may be done already, and by that alone it would count as done."""
    reader: Any = SlotReader.__new__(SlotReader)
    reader._main, reader._source = Connection(), SimpleNamespace(peek_timeout_s=1.0)
    reader.passed = PassedOver({Transaction(100): 7}, Reached(Transaction(300), 5))
    reader.peek = Peek(TransactionProgress(), reader.passed, lambda _: True)
    reader.peek.slices = Slices(None, 1.0)
    reader.peek.unseen = {Transaction(200): 8}
    await reader._closed(sql)
    assert reader.peek is None
    assert [reader.passed.skip_to(Transaction(lsn)) for lsn in (100, 200)] == [0, 0]
    assert reader.passed.skip_to(Transaction(250)) == float("inf")
    assert reader.passed.since_s is not None
