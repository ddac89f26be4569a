"""Real servers for tests, demos and first tries. One call starts a server; it ends with the process that started it."""
