"""The network: tensors in, tensors out; no files, no downloads, no numpy images."""
