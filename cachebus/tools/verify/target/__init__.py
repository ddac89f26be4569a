"""The servers that a run is held against."""
