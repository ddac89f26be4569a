"""What a thing is called: its key, its scopes and tags, and the shard they lie in."""
