"""Side studies: what the paper and its companion planner report, and a real cohort, each `Part`."""
