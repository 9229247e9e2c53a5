"""Attention and feed-forward layers on separate devices."""
