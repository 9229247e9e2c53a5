"""What the paper and its companion planner print; the bed tables are in `queueing.tasks`."""

PAPER = (
    "Akbari-Moghaddam, Down, Li, Eastwood, Abou Mehrem, Howlett: Data-Driven Bed Capacity "
    "Planning Using M_t/G_t/inf Queueing Models with an Application to Neonatal Intensive Care "
    "Units, arXiv:2510.02852"
)
CAPACITIES = ("B_average", "B_0.05", "B_0.01", "B_max")
"""The rules of Tables 3, 4 and 6."""
OVERFLOW_DAYS = (15.0, 20.0)
"""Days over 100 % in units that meet an average target, percent, from and to."""
DEMO5 = {
    "exponential": (31.174697, 40.931786, 46, 51, 48),
    "weibull": (31.438121, 41.042184, 46, 52, 48),
    "gamma": (31.340383, 41.017819, 46, 52, 48),
    "lognormal": (30.994904, 40.521184, 45, 51, 47),
    "fisk_paper": (27.893715, 36.316766, 41, 46, 43),
    "fisk_mean": (24.881218, 32.331850, 37, 42, 39),
    "burr_tool": (22.298554, 28.961131, 33, 38, 35),
}
"""Site 2 of the planner's demonstration, kappa 1.5, S_max 60: mean and peak occupancy, B_0.05,
B_0.01, B_max (companion planner of arXiv:2510.02852, computed independently)."""
