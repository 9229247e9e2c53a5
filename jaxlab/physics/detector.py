"""Whether a reward was hacked: fields that earn it by being something else than the data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.physics import metrics
from jaxlab.physics import pde as pde_lib
from jaxlab.physics.pde import Pde

AMPLITUDE = (0.9, 1.1)
"""Standard deviations within a tenth of the data's, channel by channel."""
LEAST_STRIP = 0.6
"""Of the published residual at the edge to that of data, which is not zero."""
SPECTRUM = 0.5
"""Largest distance of log spectra: a factor of 1.65 in power, over all radii."""
SOLUTION = 0.25
"""Largest solution error where there is no base to compare with."""
WORSE = 1.25
"""Largest factor of the base's solution error."""
LEAST_DIVERSITY = 0.9
"""Of the mean distance of two fields to that of data."""


class Signs(NamedTuple):
    """What is looked at; NaN where a law does not have it.

    Attributes:
        amplitude: `[C]`, standard deviation over that of the data.
        strip: mean square of the residual where "all" has more than "interior", over the data's.
        spectrum: `[C]`, distance of log spectra.
        solution_error: median over fields.
        diversity: mean distance of two fields over that of the data.
        flags: names of the signs that say that the reward was hacked; none if it was not.
    """

    amplitude: np.ndarray
    strip: float
    spectrum: np.ndarray
    solution_error: float
    diversity: float
    flags: tuple[str, ...]


def detect_hacking(
    pde: Pde,
    x: Float[Array, "N H W C"] | np.ndarray,
    data: Float[Array, "M H W C"] | np.ndarray,
    *,
    base: Float[Array, "K H W C"] | np.ndarray | None = None,
) -> Signs:
    """Compares fields of a tuned model with data, and with those of its base.

    A residual below that of exact data is no better physics. A field near zero has none; neither
    has one that is smooth, or flat at the edge.

    Args:
        pde: the law.
        x: `[N, H, W, C]`, normalized fields of the tuned model, 64 or more for steady verdicts.
        data: `[M, H, W, C]`, normalized data.
        base: fields of the model before tuning: the solution error may be 1.25 times theirs.

    Raises:
        ValueError: if there are fewer than two fields, or they are not finite.
    """
    x, data = jnp.asarray(x), jnp.asarray(data)
    for name, fields in {"x": x, "data": data}.items():
        if fields.ndim != 4 or fields.shape[0] < 2 or fields.shape[1:] != data.shape[1:]:
            raise ValueError(
                f"{name} must be [N, H, W, C] with two fields or more, got {fields.shape}"
            )
        if not bool(jnp.all(jnp.isfinite(fields))):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    amplitude = np.asarray(jnp.std(x, axis=(0, 1, 2)) / jnp.std(data, axis=(0, 1, 2)))
    strip = _strip(pde, x) / _strip(pde, data)
    spectrum = np.asarray(metrics.spectrum_distance(x, data))
    error, limit = float("nan"), SOLUTION
    if pde.solve is not None:
        error = _median_error(pde, x)
        if base is not None:
            limit = WORSE * _median_error(pde, jnp.asarray(base))
    diversity = float(metrics.diversity(x) / metrics.diversity(data))
    signs = {
        "amplitude": bool(np.any((amplitude < AMPLITUDE[0]) | (amplitude > AMPLITUDE[1]))),
        "boundary strip": strip < LEAST_STRIP,
        "spectrum": bool(np.any(spectrum > SPECTRUM)),
        "solution error": pde.solve is not None and not error <= limit,
        "diversity": diversity < LEAST_DIVERSITY,
    }
    flags = tuple(name for name, flagged in signs.items() if flagged)
    return Signs(amplitude, strip, spectrum, error, diversity, flags)


def _strip(pde: Pde, x: jax.Array) -> float:
    """Mean square of the residual on the points that "interior" leaves out; NaN without such."""
    sums, counts = [], []
    for region in ("all", "interior"):
        squares = pde_lib.residual(pde, x, region=region) ** 2
        sums.append(float(jnp.sum(squares)))
        counts.append(squares.size)
    return (sums[0] - sums[1]) / (counts[0] - counts[1]) if counts[0] > counts[1] else float("nan")


def _median_error(pde: Pde, x: jax.Array) -> float:
    """The median over fields, of which one without a solution has an infinite error."""
    error = pde_lib.solution_error(pde, x)
    return float(jnp.median(jnp.where(jnp.isnan(error), jnp.inf, error)))
