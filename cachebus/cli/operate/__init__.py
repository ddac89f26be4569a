"""Small commands for a look into a running namespace, and a hand in it."""
