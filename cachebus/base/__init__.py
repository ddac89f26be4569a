"""What knows nothing of caching: the clock, ids and templates, pauses between attempts, a call's budget of time."""
