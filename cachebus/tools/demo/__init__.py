"""What `cachebus demo` and `cachebus replay` run: node processes over a catalogue, and the check of what they saw."""
