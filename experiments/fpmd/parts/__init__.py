"""Studies beside the comparison: how long an action takes, and why one step is enough."""
