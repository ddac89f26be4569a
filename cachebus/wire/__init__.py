"""What travels and what is stored, byte for byte: records, events, and how values become records."""
