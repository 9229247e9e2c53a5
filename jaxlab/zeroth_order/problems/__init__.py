"""Test problems with known optima, each built by a function that returns a `Problem`.

They need the root of the room alone: `problem.make_problem`, and `noise` where a source adds it.
"""
