"""Object removal, filling and replacing, on top of zim."""
