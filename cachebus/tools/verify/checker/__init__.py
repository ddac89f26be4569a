"""Holds what was read against all that was written."""
