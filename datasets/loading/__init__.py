"""From stored bytes to batches: storage, the node's cache, loader processes, counters."""
