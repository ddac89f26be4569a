"""Runs node processes, and a proxy between them and a server that misbehaves on request."""
