"""The path of an event, and the heartbeat that makes up for those that did not arrive."""
