"""The path of a write: L2 in one script, then the own memory, then the bus."""
