"""Completing stays that were cut off by the end of the data, before any average is taken.

The daily mean stay of arXiv:2510.02852 is an arithmetic mean; over the time that patients have
been in bed so far it would shrink towards zero at the end of the data.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxlab.queueing.stays import empirical


def complete_stays(
    los: Float[Array, " N"], event: Float[Array, " N"], *, weight: Float[Array, " N"] | None = None
) -> Float[Array, " N"]:
    """Replaces each censored stay x by E[X | X > x] under the Kaplan-Meier curve.

    Beyond the longest stay the curve is taken as zero (Efron's convention), so that the result is
    a lower bound when that stay is censored. Stays that ended are returned as they are.

    Args:
        los: `[N]` stays so far, days, > 0.
        event: `[N]` 1 if the stay ended, 0 if it is censored.
        weight: `[N]` case weights, 0 for padding; ones by default.

    Returns:
        `[N]` stays, days.

    Source: Buckley and James 1979, "Linear regression with censored data", eq. 2.
    """
    weight = jnp.ones_like(los) if weight is None else weight
    time = jnp.sort(jnp.where(weight > 0, los, 0.0))
    surv = empirical.kaplan_meier(los, event, time, weight=weight)
    width = jnp.append(jnp.diff(time), jnp.zeros_like(time[:1]))
    area = lax.cumsum(surv * width, reverse=True)  # of the curve to the right of each stay
    at = jnp.searchsorted(time, los, side="right") - 1
    alive = surv[at]
    residual = jnp.where(alive > 0, area[at] / jnp.where(alive > 0, alive, 1.0), 0.0)
    ended = event.astype(bool) | (weight == 0)
    return jnp.where(ended, los, los + residual)
