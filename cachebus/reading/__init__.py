"""The path of a read: memory, else L2, else one load for all who ask."""
