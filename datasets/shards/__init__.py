"""What a shard set holds: tar files, the index, labels, boxes; and indexing of shards from other tools."""
