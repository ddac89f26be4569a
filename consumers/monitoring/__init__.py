"""What is told of a worker while it runs: health, metrics, and the endpoint that serves both."""
