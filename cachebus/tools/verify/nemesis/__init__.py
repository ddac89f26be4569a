"""What goes wrong during a run."""
