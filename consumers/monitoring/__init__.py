"""The monitoring of a worker: its health, its metrics, and the HTTP endpoint that serves both."""
