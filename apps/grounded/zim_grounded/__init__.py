"""Text prompts to mattes, on top of zim."""
