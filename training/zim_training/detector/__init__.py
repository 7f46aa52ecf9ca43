"""Training of the mini detector: names and colours in, boxes out."""
