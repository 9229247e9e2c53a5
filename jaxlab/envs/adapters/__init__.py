"""Environments of other libraries as tasks and environments of this one; see the room's README."""
