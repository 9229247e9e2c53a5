"""Test problems with known optima."""
