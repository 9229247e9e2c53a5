"""Small problems on which methods that stay feasible are compared.

Every start is strictly feasible and every constraint an inequality, as methods of safe learning
need. Float32 keeps 6 digits of the values.

Source: Usmanova, As, Kamgarpour and Krause 2022 (LB-SGD, arXiv:2207.10415), synthetic experiments.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.zeroth_order import noise
from jaxlab.zeroth_order.problem import Problem, make_problem

NAMES = ("qp", "rosenbrock", "gaussian", "gaussian_inactive")
"""Names of the problems."""
PUBLISHED_SIGMA = 1e-3
"""Standard deviation of the value noise in the LB-SGD experiments."""
_ROSENBROCK = {  # f and x at the optimum, by Newton's method on the KKT system
    2: (0.48408321091192, [0.30470336387676, 0.09030288297036]),
    3: (1.33439833817048, [0.29138251927459, 0.08898894746994, 0.00537030578146]),
    4: (
        2.34036240538985,
        [0.27936628415702, 0.08340363289246, 0.01369061291772, -0.00243579334032],
    ),
}


def safe_learning_problem(name: str, d: int, *, sigma: float | Array = 0.0) -> Problem:
    """Makes a problem of the LB-SGD set in d dimensions.

    | name | f | h <= 0 | start |
    |---|---|---|---|
    | qp | ||x - 2||^2 / 4d | x - 1/sqrt(d), -x - 1/sqrt(d) | 0 |
    | rosenbrock | R(x) | ||x||^2 - 1, ||x + 0.1||^2 - 0.2 | -0.05 |
    | gaussian | -exp(-4 ||x||^2) | 0.2 ||x - p||^2 + 10 (x_2 - p_2)^2 - 0.25 | p = 1/sqrt(d) |
    | gaussian_inactive | the same | the same with 100 for 0.25 | p |

    R(x) = sum 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2 over i < d; a number next to a vector stands
    for all its entries. Optima: the corner 1/sqrt(d) of the qp; a point of the small ball for
    rosenbrock, which LB-SGD runs at d = 2, 3 and 4 (`f_star` is None elsewhere); the point of an
    ellipsoid next to 0 for gaussian, which LB-SGD runs at d = 2, 10 and 20 and measures against 0,
    which is infeasible; 0, an inner point, for gaussian_inactive.

    Args:
        name: one of `NAMES`.
        d: dimension, at least 1 (rosenbrock: 2 to 79, gaussian: at least 2).
        sigma: standard deviation of normal noise on every value; `PUBLISHED_SIGMA` in the source.

    Raises:
        ValueError: if the name is unknown, the dimension does not fit it, or sigma is negative.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    # The start of rosenbrock leaves the small ball at 0.05^2 d = 0.2.
    low, high = {"qp": (1, np.inf), "rosenbrock": (2, 79)}.get(name, (2, np.inf))
    if not low <= d <= high:
        raise ValueError(f"{name} needs a dimension between {low} and {high}, got {d}")
    if name == "qp":
        problem = _qp(d)
    elif name == "rosenbrock":
        problem = _rosenbrock(d)
    else:
        problem = _gaussian(d, name, 0.25 if name == "gaussian" else 100.0)
    silent = isinstance(sigma, (int, float)) and sigma == 0.0
    return problem if silent else noise.with_noise(problem, sigma)


def _qp(d: int) -> Problem:
    half = 1.0 / d**0.5  # half the edge of the cube

    def fun(x: Float[Array, " d"]) -> tuple[Array, Array]:
        return jnp.sum((x - 2.0) ** 2) / (4.0 * d), jnp.concatenate([x - half, -x - half])

    return make_problem(
        fun,
        jnp.zeros(d),
        f_star=0.25 * (2.0 - half) ** 2,
        x_star=jnp.full(d, half),
        name=f"safe_qp_{d}",
    )


def _rosenbrock(d: int) -> Problem:
    def fun(x: Float[Array, " d"]) -> tuple[Array, Array]:
        f = jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)
        return f, jnp.stack([jnp.sum(x**2) - 1.0, jnp.sum((x + 0.1) ** 2) - 0.2])

    f_star, x_star = _ROSENBROCK.get(d, (None, None))
    return make_problem(
        fun,
        jnp.full(d, -0.05),
        f_star=f_star,
        x_star=None if x_star is None else jnp.asarray(x_star),
        name=f"safe_rosenbrock_{d}",
    )


def _gaussian(d: int, name: str, level: float) -> Problem:
    p = 1.0 / d**0.5
    weight = np.full(d, 0.2)
    weight[1] += 10.0

    def fun(x: Float[Array, " d"]) -> tuple[Array, Array]:
        h = jnp.sum(jnp.asarray(weight, x.dtype) * (x - p) ** 2) - level
        return -jnp.exp(-4.0 * jnp.sum(x**2)), h[None]

    x_star = _nearest_to_zero(weight, p, level)
    return make_problem(
        fun,
        jnp.full(d, p),
        f_star=float(-np.exp(-4.0 * np.sum(x_star**2))),
        x_star=jnp.asarray(x_star),
        name=f"safe_{name}_{d}",
    )


def _nearest_to_zero(weight: np.ndarray, p: float, level: float) -> np.ndarray:
    """Returns the x of least norm with sum weight (x - p)^2 <= level.

    Stationarity gives x = mu w p / (1 + mu w); the multiplier mu solves the secular equation
    sum w p^2 / (1 + mu w)^2 = level, whose left side decreases.
    """

    def value(mu: float) -> float:
        return np.sum(weight * p**2 / (1.0 + mu * weight) ** 2)

    if value(0.0) <= level:
        return np.zeros_like(weight)
    low, high = 0.0, 1.0
    while value(high) > level:
        high *= 2.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if value(middle) > level else (low, middle)
    return high * weight * p / (1.0 + high * weight)
