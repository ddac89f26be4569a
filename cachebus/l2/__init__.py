"""The shared store: on Redis, and in memory."""
