"""The checker: it reads the history logs of a run, and judges every read against all writes."""
