"""Stays that are known in whole days only: how they are counted, and how likely a count is.

A stay of d days by its dates lies in an interval that the convention of the census implies, so
that the likelihood takes the probability of the count in place of a density.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jaxtyping import Array, Bool, Float

from jaxlab.queueing import settings
from jaxlab.queueing.stays import los as laws

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(4)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1.0), 0.5 * _WEIGHTS  # on [0, 1]


class Counted(NamedTuple):
    """Stays in whole days as weights on d = 0, ..., u_max, and where the law is looked at."""

    ended: Array
    open: Array
    at: Array  # ln P(counted days >= d), d = 0, ..., u_max + 1, is that of a mean of S over a row
    node_weight: Array


def counted_days(
    los: Float[Array, "*N"],
    event: Float[Array, "*N"],
    by_date: Bool[Array, "*N"],
    convention: settings.Convention,
) -> Float[Array, "*N"]:
    """Returns the days that a census counts of stays known by dates; other stays as they are.

    A same-day stay is one day begun under "ceil", and a stay of no night otherwise. An open stay
    of c days has c days or more when it ends: it is put half a day before c, for c not to be ruled
    out.

    Args:
        los: `[...]` stays, days.
        event: `[...]` 1 if the stay ended, 0 if it is open.
        by_date: `[...]` True where the stay is a count of whole days.
        convention: one of `settings.Convention`, static.
    """
    days = jnp.maximum(los, 1.0) if convention == "ceil" else los
    days = jnp.where(event.astype(bool), days, jnp.maximum(days - 0.5, 0.0))
    return jnp.where(by_date, days, los)


def counted_survival(
    surv_fn: Callable[[Array], Array], days: Float[Array, " U"], convention: settings.Convention
) -> Float[Array, " U"]:
    """Returns P(counted days >= d) of a stay with survival S, the time of admission unknown.

    "ceil" counts days begun, P = P(ceil X >= d) = S(d - 1). Otherwise the count of a stay known by
    its dates is the number of midnights in it, and with an admission uniform in the day
    P = int_0^1 S(d - 1 + v) dv. Both are 1 at d = 0, and the stay lies in (d - 1, d] or, by its
    dates, in (d - 1, d + 1).

    Args:
        surv_fn: elementwise S.
        days: `[U]` whole days d >= 0.
        convention: one of `settings.Convention`, static.
    """
    at, weight = _count_nodes(days, convention)
    return jnp.sum(weight * surv_fn(at), axis=-1)


def gather(
    days: Float[Array, " N"],
    event: Float[Array, " N"],
    weight: Float[Array, " N"],
    grid: Float[Array, " U"],
    convention: settings.Convention,
) -> Counted:
    """Gathers stays in whole days by their number.

    Args:
        days: `[N]` stays as `counted_days` returns them.
        event: `[N]` 1 if the stay ended, 0 if it is open.
        weight: `[N]` weights, 0 for stays that are not counts.
        grid: `[U]` days 0, ..., u_max; longer stays are taken for u_max.
        convention: one of `settings.Convention`, static.
    """
    edges = jnp.arange(grid.size + 1, dtype=grid.dtype)
    index = day_index(days, grid)
    ended, still = (jnp.zeros_like(grid).at[index].add(weight * x) for x in (event, 1 - event))
    return Counted(ended, still, *_count_nodes(edges, convention))


def day_index(time: Array, grid: Array) -> Array:
    """Returns the place of each count in days 0, ..., u_max, that of an open stay rounded up."""
    return jnp.clip(jnp.ceil(time), 0, grid.size - 1).astype(jnp.int32)


def log_reached(
    family: str, counted: Counted, params: laws.LOSParams, unit: Array | float = 1.0
) -> Array:
    """Evaluates ln P(counted days >= d), d = 0, ..., u_max + 1; `params` are in units of `unit`."""
    at = counted.at / unit
    log_sf = laws.log_survival(family, at.reshape(-1), params).reshape(at.shape)
    log_sf = jnp.maximum(log_sf, -1e6)  # a difference of infinities is not a number
    return special.logsumexp(log_sf, b=counted.node_weight, axis=-1)


def log_likelihood(reached: Array, counted: Counted) -> Array:
    """Sums the log likelihood of the counts, P(d) = P(>= d) - P(>= d + 1), from `log_reached`."""
    least = float(jnp.finfo(reached.dtype).eps) ** 2  # keeps second derivatives finite
    drop = jnp.maximum(reached[:-1] - reached[1:], least)
    exactly = reached[:-1] + jax.nn.log1mexp(drop)

    def total(mass, value):
        return jnp.sum(mass * jnp.where(mass > 0, value, 0.0))

    return total(counted.ended, exactly) + total(counted.open, reached[:-1])


def _count_nodes(days: Array, convention: str) -> tuple[Array, Array]:
    """Returns where S is looked at for P(counted days >= d), and with which weights: `[U, n]`."""
    before = (days - 1)[:, None]
    if convention == "ceil":
        return before, jnp.ones_like(before)
    shape = (days.size, _NODES.size)
    before, node, weight = (
        jnp.broadcast_to(jnp.asarray(x, days.dtype), shape) for x in (before, _NODES, _WEIGHTS)
    )
    # v = x^2 in the first day, where S may have an infinite slope; before it S is 1.
    first = before == 0
    place = jnp.where(first, node**2, node)
    return jnp.where(before < 0, 0.0, before + place), jnp.where(first, 2 * node * weight, weight)
