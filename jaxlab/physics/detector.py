"""Whether a reward was hacked: fields that earn it by being something else than the data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.physics import metrics
from jaxlab.physics import pde as pde_lib
from jaxlab.physics.pde import Pde

AMPLITUDE = 0.1
"""Largest share that a standard deviation may be off the data's, channel by channel."""
LEAST_STRIP = 0.6
"""Of the published residual at the edge to that of data, which is not zero."""
SPECTRUM = 0.5
"""Largest distance of log spectra: a factor of 1.65 in power, over all radii."""
SOLUTION = 0.25
"""Largest solution error where there is no base to compare with."""
WORSE = 1.25
"""Largest factor of what the base has of a sign."""
DIVERSITY = 0.1
"""Largest share that the mean distance of two fields may be below that of data."""


class Signs(NamedTuple):
    """What is looked at; NaN where a law does not have it.

    Attributes:
        amplitude: `[C]`, standard deviation over that of the data.
        strip: mean square of the residual where "all" has more than "interior", over the data's;
            NaN where theirs is 0, too.
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
        base: fields of the model before tuning. What it is off the data is not held against the
            tuned one: amplitude (channel by channel, to the same side), spectrum and diversity are
            flagged beyond 1.25 times that too, and the solution error beyond 1.25 times the base's
            instead of a fixed bound. An error that is not finite is flagged whatever the base's.

    Raises:
        ValueError: if there are fewer than two fields, they are not finite, or shapes differ.
    """
    x, data = jnp.asarray(x), jnp.asarray(data)
    base = None if base is None else jnp.asarray(base)
    for name, fields in {"data": data, "x": x, "base": base}.items():
        if fields is None:
            continue
        if fields.ndim != 4 or fields.shape[0] < 2:
            raise ValueError(
                f"{name} must be [N, H, W, C] with two fields or more, got {fields.shape}"
            )
        if fields.shape[1:] != data.shape[1:]:
            raise ValueError(
                f"{name} must have fields of the data's shape {data.shape[1:]}, got "
                f"{fields.shape[1:]}"
            )
        if not bool(jnp.all(jnp.isfinite(fields))):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    amplitude, spectrum, diversity = _off(x, data)
    apart = amplitude - 1.0
    allowed = (np.full_like(apart, AMPLITUDE), SPECTRUM, DIVERSITY)
    error, limit = float("nan"), SOLUTION
    if pde.solve is not None:
        error = _median_error(pde, x)
    if base is not None:
        of_base = _off(base, data)
        a = np.maximum(np.sign(apart) * (of_base[0] - 1.0), 0.0)
        s, d = np.max(of_base[1]), 1.0 - of_base[2]
        allowed = tuple(np.maximum(u, WORSE * v) for u, v in zip(allowed, (a, s, d), strict=True))
        limit = WORSE * _median_error(pde, base) if pde.solve is not None else SOLUTION
    of_data = _strip(pde, data)
    strip = _strip(pde, x) / of_data if of_data > 0.0 else float("nan")
    signs = {
        "amplitude": not np.all(np.abs(apart) <= allowed[0]),
        "boundary strip": strip < LEAST_STRIP,
        "spectrum": not np.max(spectrum) <= allowed[1],
        "solution error": pde.solve is not None and not (error <= limit and np.isfinite(error)),
        "diversity": not 1.0 - diversity <= allowed[2],
    }
    flags = tuple(name for name, flagged in signs.items() if flagged)
    return Signs(amplitude, strip, spectrum, error, diversity, flags)


def _off(x: jax.Array, data: jax.Array) -> tuple[np.ndarray, np.ndarray, float]:
    """Standard deviations over the data's, distances of log spectra, and diversity over theirs."""
    amplitude = jnp.std(x, axis=(0, 1, 2)) / jnp.std(data, axis=(0, 1, 2))
    diversity = metrics.diversity(x) / metrics.diversity(data)
    return (np.asarray(amplitude), np.asarray(metrics.spectrum_distance(x, data)), float(diversity))


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
