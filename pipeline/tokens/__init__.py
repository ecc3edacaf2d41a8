"""The token shard contract: parts, shards, index, readers, verification and card. No torch in here."""
