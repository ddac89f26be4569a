"""`cachebus verify`: a fleet under faults, and every read held against the history of all writes."""
