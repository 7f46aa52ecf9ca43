"""The label converter: a segmentation label and its picture in, a matte out (Sec. 3.1)."""
