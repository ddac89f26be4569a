"""Node processes and what lies between them and a server: a supervisor, and a proxy that misbehaves on demand."""
