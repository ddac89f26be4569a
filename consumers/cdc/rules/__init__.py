"""Which changes of which tables invalidate what."""
