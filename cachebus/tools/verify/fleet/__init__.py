"""The node processes of a run: what they read and write, and what they note of it."""
