"""Transports that carry events to every node: Redis pub/sub, and memory."""
