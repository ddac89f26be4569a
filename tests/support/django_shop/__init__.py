"""A project of Django for tests: two databases in files, caches over a real server, and an app with models."""
