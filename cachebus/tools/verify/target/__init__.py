"""The servers under test, and what faults may do to them."""
