"""Training: label converter, SA1B-Matte and ZIM itself, on top of zim."""
