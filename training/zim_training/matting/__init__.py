"""Training and fine-tuning of ZIM itself on SA1B-Matte shards or one's own pictures (Sec. 3.2)."""
