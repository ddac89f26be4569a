"""`cachebus demo` and `cachebus replay`: node processes that read and write a catalogue, and the check of their
history.

1. `plan`, `generator` and `trace`: the accesses of a run.
2. `node`, `traffic`, `subjects` and `catalogue`: one node, its load, the caches that are compared, and the source.
3. `pipeline`, `server` and `database`: what runs beside the nodes.
4. `run`, `incident`, `board` and `screen`: the course of a run, and its display.
5. `history`, `event_log`, `lag`, `figures` and `report`: what the nodes saw, the check of it, and the outcome.
"""
