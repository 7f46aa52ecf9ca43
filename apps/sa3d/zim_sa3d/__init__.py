"""3D segmentation from one click, on top of zim."""
