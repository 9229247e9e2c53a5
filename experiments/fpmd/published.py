"""Returns that the papers report, data only."""

TASKS = (
    "half_cheetah",
    "humanoid",
    "ant",
    "hopper",
    "walker2d",
    "swimmer",
    "reacher",
    "pusher",
    "inverted_pendulum",
)
"""In the order of `RETURNS`."""
RETURNS = {
    "PPO": (4852, 952, 3442, 3227, 4114, 84.5, -8.7, -25.5, 1000),
    "TD3": (8149, 5816, 3733, 1934, 2476, 71.9, -3.1, -25.1, 1000),
    "SAC": (8981, 2858, 2500, 3197, 3233, 63.5, -65, -31.2, 1000),
    "QSM": (10740, 5652, 938, 2804, 2523, 57.0, -4.2, -80.8, 1000),
    "DIPO": (9063, 4880, 965, 1191, 1961, 46.7, -3.3, -32.9, 1000),
    "DACER": (11203, 2755, 4301, 3212, 3194, 103, -3.3, -30.8, 801),
    "QVPO": (7321, 421, 718, 2873, 2337, 53.4, -30.6, -129, 1000),
    "DPMD": (11924, 6959, 5683, 3275, 4365, 79.3, -3.1, -30.4, 1000),
}
"""After 200,000 updates by arXiv:2502.00361, at second hand; FPMD's own are not at hand."""
