"""ZOFL against its rivals: equal query budgets, equal tuning, theory, scale and phase portraits."""

import dataclasses
import os

# A batch of LAPACK calls waits, on a thread of XLA's CPU pool, for parts of it that it has queued
# to the same pool: as many such batches at a time as there are threads lock up for good (jaxlib
# 0.10.2). It must be set before JAX starts its backend.
os.environ.setdefault("PJRT_NPROC", "16")
SUMMARY = "Constrained optimization from function values: ZOFL against 13 zeroth-order rivals"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison and of the studies beside it, on arXiv:2509.24056."""

    seed: int = 0
    """Seed of every random draw."""
    num_seeds: int = 10
    """Runs a figure rests on, per problem, method and noise level."""
    tuning_seeds: int = 2
    """Other runs that choose each method's settings; 0 takes the published ones."""
    sigmas: tuple[float, ...] = (0.0, 1e-3, 1e-2)
    """Standard deviations of the noise on every (scaled) value."""
    max_queries: int = 20_000
    """Most queries of a run; the budget is 1000 (n + 1), at least 50,000, cut to this; a quarter or
    a tenth where a query is dear."""
    problems: tuple[str, ...] = ()
    """Problems to compare on; all when empty."""
    methods: tuple[str, ...] = ()
    """Methods to compare; all when empty."""
    external: bool = False
    """Run external solvers too, on small budgets: SciPy's, and others that are installed."""
    thorough: bool = True
    """Measure all that theory and the published figures say, not its core alone."""
    instances: int = 256
    """Problem instances solved in one vmapped call in the study of scale."""
    largest_n: int = 1000
    """Most variables in the study of scale."""
    largest_ratio: int = 250
    """Most variables per direction there: the number of steps is a multiple of it."""

    def __post_init__(self):
        least = {
            "num_seeds": 2,
            "tuning_seeds": 0,
            "max_queries": 200,
            "instances": 1,
            "largest_n": 2,
            "largest_ratio": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not self.sigmas or min(self.sigmas) < 0.0 or len(set(self.sigmas)) < len(self.sigmas):
            raise ValueError(f"sigmas must be different numbers, none negative, got {self.sigmas}")


PRESETS = {
    "smoke": Config(
        num_seeds=2,
        tuning_seeds=1,
        sigmas=(0.0, 1e-2),
        max_queries=2000,
        problems=("HS43",),
        methods=("zofl", "zob-gda"),
        thorough=False,
        instances=64,
        largest_n=100,
    ),
    "cpu": Config(external=True, largest_n=10_000),
    "gpu": Config(
        num_seeds=100,
        max_queries=1_000_000,
        instances=100_000,
        largest_n=1_000_000,
        largest_ratio=4000,
    ),
}
