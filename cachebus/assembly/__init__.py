"""From settings to a cache that runs, and its end. The only room that names concrete stores and buses."""
