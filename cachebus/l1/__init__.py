"""The node's memory: a bounded dictionary of entries. Knows no clock, no key format and no coherence rule."""

from cachebus.l1.entry import ENTRY_OVERHEAD_BYTES, Entry, Group, grid, shared_int, size_class
from cachebus.l1.memory import L1

__all__ = ["ENTRY_OVERHEAD_BYTES", "L1", "Entry", "Group", "grid", "shared_int", "size_class"]
