"""How fast tokens are hidden: the probability that one is still visible, by step.

Steps are numbered n = 0 .. N: at 0 all tokens are visible, at N none is. Austin et al. 2021,
arXiv:2107.03006; Sahoo et al. 2024, arXiv:2406.07524; Shi et al. 2024, arXiv:2406.04329.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Kind = Literal["linear", "log_linear", "cosine", "polynomial"]
Grid = Literal["uniform", "cosine"]
LOG_LINEAR_EPS = 1e-3
"""Share of tokens that MDLM's schedule would leave visible; the last step here hides them too."""


class Schedule(NamedTuple):
    """Tokens by step; both fields are `[N + 1]`.

    Attributes:
        alpha: probability that a token is still visible after n steps of noise; 1 first, 0 last.
        reveal: probability that a token hidden at n is revealed by the step to n - 1,
            (alpha[n-1] - alpha[n]) / (1 - alpha[n]); 0 at n = 0, where there is no such step.
    """

    alpha: Array
    reveal: Array

    @property
    def num_steps(self) -> int:
        """The number of steps N."""
        return self.alpha.shape[0] - 1

    @property
    def level(self) -> Float[Array, " N+1"]:
        """Probability that a token is hidden, 1 - alpha: what a denoiser is told of the noise."""
        return 1.0 - self.alpha


def make_schedule(
    num_steps: int, kind: Kind = "linear", *, grid: Grid = "uniform", power: float = 2.0
) -> Schedule:
    """Makes the schedule of N steps at times t = n / N.

    Args:
        num_steps: N.
        kind: "linear" 1 - t, of which every token's step of revealing is uniform over 1 .. N;
            "log_linear" 1 - (1 - 1e-3) t (MDLM); "cosine" 1 - cos(pi/2 (1 - t)); "polynomial"
            1 - t^power (both MD4).
        grid: "uniform" times n / N, or "cosine" times cos(pi/2 (1 - n / N)), which reveals few
            tokens in the first steps of sampling (MD4).
        power: of "polynomial" alone, positive.

    Raises:
        ValueError: if the number of steps is no integer from 1 on, there is no such kind or grid,
            or the power is not positive.
    """
    _check_steps(num_steps)
    for name, value, known in (("kind", kind, Kind), ("grid", grid, Grid)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    if not 0.0 < power < np.inf:
        raise ValueError(f"power must be positive, got {power}")
    t = np.arange(num_steps + 1) / num_steps
    if grid == "cosine":
        t = np.cos(np.pi / 2 * (1.0 - t))
    hidden = {
        "linear": t,
        "log_linear": (1.0 - LOG_LINEAR_EPS) * t,
        "cosine": np.cos(np.pi / 2 * (1.0 - t)),
        "polynomial": t**power,
    }[kind]
    return from_alpha(np.concatenate([[1.0], 1.0 - hidden[1:-1], [0.0]]))


def from_alpha(alpha: np.ndarray) -> Schedule:
    """Makes a schedule of the probabilities `[N + 1]` that a token is visible, in float64.

    Raises:
        ValueError: if they do not fall from 1 to 0, N at least 1.
    """
    alpha = np.asarray(alpha, np.float64)
    if alpha.ndim != 1 or alpha.size < 2 or alpha[0] != 1.0 or alpha[-1] != 0.0:
        raise ValueError(f"alpha must be [N + 1] numbers from 1 to 0, got {alpha}")
    if not np.all(np.diff(alpha) < 0.0):
        raise ValueError(f"alpha must fall with every step, got {alpha}")
    reveal = (alpha[:-1] - alpha[1:]) / (1.0 - alpha[1:])
    return Schedule(jnp.asarray(alpha), jnp.asarray(np.concatenate([[0.0], reveal])))


def low_discrepancy_levels(
    key: jax.Array, batch: int, *, least: float = 1e-3
) -> Float[Array, " B"]:
    """Draws a level of noise for each of B sequences, uniform in [least, 1], spread evenly.

    ((U + b / B) mod 1) (1 - least) + least with one U for all: the levels of a batch cover the
    interval, and the mean of a loss over them varies less than over independent ones.

    Raises:
        ValueError: if there is no sequence, or `least` does not lie in (0, 1).

    Source: Kingma et al. 2021, arXiv:2107.00630, appendix I.1.
    """
    if batch < 1 or not 0.0 < least < 1.0:
        raise ValueError(
            f"batch must be at least 1 and least lie in (0, 1), got {batch} and {least}"
        )
    return _spread(key, batch) * (1.0 - least) + least


def low_discrepancy_steps(key: jax.Array, batch: int, num_steps: int) -> Int[Array, " B"]:
    """Draws a step n in 1 .. N for each of B sequences, uniform and spread evenly likewise.

    Raises:
        ValueError: if there is no sequence, or no step.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    _check_steps(num_steps)
    below = (_spread(key, batch) * num_steps).astype(jnp.int32)
    return 1 + jnp.minimum(below, num_steps - 1)


def band_levels(
    key: jax.Array, batch: int, num_bands: int
) -> tuple[np.ndarray, Float[Array, " B"]]:
    """Deals B sequences to bands of noise of equal width in turn, and draws a level in each one's.

    Returns:
        `(band, level)`, both `[B]`.

    Raises:
        ValueError: if bands outnumber sequences, or there is none.
    """
    if not 1 <= num_bands <= batch:
        raise ValueError(f"num_bands must lie in 1 .. {batch}, got {num_bands}")
    band = np.arange(batch) % num_bands
    uniform = jax.random.uniform(key, (batch,))
    return band, (jnp.asarray(band, uniform.dtype) + uniform) / num_bands


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if num_steps != int(num_steps):
        raise ValueError(f"num_steps must be an integer, got {num_steps}")


def _spread(key: jax.Array, batch: int) -> Array:
    """Returns B numbers in [0, 1), each uniform, one in each of B equal parts."""
    uniform = jax.random.uniform(key)
    return (uniform + jnp.asarray(np.arange(batch) / batch, uniform.dtype)) % 1.0
