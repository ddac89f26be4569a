"""Changes as PostgreSQL's own slot tells them."""
