"""The node processes of a run: what they read and write, and the history logs that they keep of it."""
