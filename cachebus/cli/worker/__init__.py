"""`cachebus worker`: the processes that carry invalidations on."""
