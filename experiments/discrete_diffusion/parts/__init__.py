"""Studies beside the comparison: error by steps, and where each estimate of a ratio points."""
