"""Pallas kernels, one folder per operation, imported as `jaxlab.kernels.<op>`."""
