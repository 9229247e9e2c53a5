"""Fields that obey a partial differential equation: their data, residuals and solvers."""

from jaxlab.physics.base import BaseState, denoiser_of, make_base
from jaxlab.physics.benchmarks import burgers, darcy, helmholtz, kolmogorov, poisson
from jaxlab.physics.detector import Signs, detect_hacking
from jaxlab.physics.elliptic import darcy_solve, darcy_solve_cells, poisson_solve
from jaxlab.physics.evolution import burgers_solve, kolmogorov_rollout
from jaxlab.physics.gaussian import gaussian_law
from jaxlab.physics.pde import (
    Check,
    Pde,
    check_data,
    make_dataset,
    normalize,
    own_pde,
    post,
    residual,
    reward,
    solution_error,
)
from jaxlab.physics.pirf import make_pirf
from jaxlab.physics.random_fields import burgers_start, grf2d, periodic_field
from jaxlab.physics.smooth_darcy import darcy64
from jaxlab.physics.stencils import first_difference, laplacian, second_difference
from jaxlab.physics.tuning import TuningState, make_tuning, tuned_params

__all__ = [
    # Laws
    "Pde",
    "burgers",
    "darcy",
    "darcy64",
    "helmholtz",
    "kolmogorov",
    "own_pde",
    "poisson",
    # What a law says of fields
    "Check",
    "check_data",
    "make_dataset",
    "normalize",
    "post",
    "residual",
    "reward",
    "solution_error",
    # Base models
    "BaseState",
    "denoiser_of",
    "gaussian_law",
    "make_base",
    # Fine-tuning
    "TuningState",
    "make_pirf",
    "make_tuning",
    "tuned_params",
    # Whether a reward was hacked
    "Signs",
    "detect_hacking",
    # Random fields
    "burgers_start",
    "grf2d",
    "periodic_field",
    # Solvers
    "burgers_solve",
    "darcy_solve",
    "darcy_solve_cells",
    "kolmogorov_rollout",
    "poisson_solve",
    # Differences
    "first_difference",
    "laplacian",
    "second_difference",
]
