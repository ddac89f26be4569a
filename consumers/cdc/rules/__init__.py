"""The rules of change data capture: which changes of which tables invalidate what."""
