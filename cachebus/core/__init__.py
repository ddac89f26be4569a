"""What a node may believe of each shard, and what it keeps under that belief. Nothing here awaits."""
