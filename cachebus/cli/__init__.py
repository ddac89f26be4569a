"""The commands: the only floor that prints, adds log sinks or starts servers."""
