"""Medical segmentation and its evaluation, on top of zim."""
