"""Writing shards: the plan, the files, and the check of the destination."""
