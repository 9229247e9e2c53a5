"""What decoding a token costs: bytes, FLOPs, dollars; least batches and sparsities."""
