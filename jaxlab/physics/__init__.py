"""Fields that obey a partial differential equation: their data, residuals and solvers."""

from jaxlab.physics.benchmarks import burgers, darcy, helmholtz, kolmogorov, poisson
from jaxlab.physics.elliptic import darcy_solve, darcy_solve_cells, poisson_solve
from jaxlab.physics.evolution import burgers_solve, kolmogorov_rollout
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
from jaxlab.physics.random_fields import burgers_start, grf2d, periodic_field
from jaxlab.physics.smooth_darcy import darcy64
from jaxlab.physics.stencils import first_difference, laplacian, second_difference

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
