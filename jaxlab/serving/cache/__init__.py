"""The paged cache of keys and values, and eight-bit floats."""
