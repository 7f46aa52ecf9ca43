"""Data engine: sources, scenes, prompts and packs for training small matting models."""
