"""SA-1B's labels to SA1B-Matte: a shard at a time, by any launcher."""
