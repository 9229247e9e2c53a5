"""What arXiv:2507.19427 measures of its decode attention."""

SHARE = 94.0
"""Percent of the data sheet's bandwidth of an H800, in bfloat16: the rate from 8K to 32K."""
