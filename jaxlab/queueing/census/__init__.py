"""Occupancy of the queue: its mean, its law, simulated patients, and the beds that follow."""
