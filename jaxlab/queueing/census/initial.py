"""Patients already in bed at the start: who is still there later, and the law of the occupancy.

Initial patients have residual, not fresh, stays; with Poisson newcomers the occupancy is a
Poisson-binomial plus a Poisson count. Paper: Akbari-Moghaddam et al. 2025, arXiv:2510.02852.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.queueing import settings
from jaxlab.queueing.census import occupancy, poisson
from jaxlab.queueing.stays import conditional


def initial_survivors(
    ages: Float[Array, " n0"],
    mask: Bool[Array, " n0"],
    t: Float[Array, " K"],
    surv_fn: conditional.Survival,
) -> Float[Array, "K n0"]:
    """Computes p_j(t) = S(a_j + t) / S(a_j), the chance that a patient in bed at 0 still is at t.

    Args:
        ages: `[n0]` stay elapsed at time 0, days.
        mask: `[n0]` True for real patients, False for padding, whose chance is 0.
        t: `[K]` days after time 0, >= 0.
        surv_fn: elementwise S.

    Returns:
        `[K, n0]`; NaN for a real patient with S(a_j) = 0, who cannot be there under this law.
    """
    ages, t = conditional.as_floats(ages, t)
    now = surv_fn(ages)
    later = jax.vmap(lambda s: surv_fn(ages + s))(t)
    safe = jnp.broadcast_to(jnp.where(now > 0.0, now, 1.0), later.shape)
    alive = jnp.broadcast_to(jnp.where(mask, now > 0.0, True), later.shape)
    chance = jnp.where(jnp.broadcast_to(mask, later.shape), later / safe, 0.0)
    return jnp.where(alive, chance, jnp.nan)


def initial_mean(
    ages: Int[Array, " n0"],
    t: Int[Array, " K"],
    surv_fn: conditional.Survival,
    *,
    convention: settings.Convention = "ceil",
) -> Float[Array, " K"]:
    """Computes the mean number of initial patients still in bed, sum_j k(a_j + t) / k(a_j).

    k is the weight of `occupancy.census_weight`, so that the patients found by the census of day 0
    are counted as later admissions are.

    Args:
        ages: `[n0]` whole days from admission to day 0; negative is an empty place.
        t: `[K]` whole days after day 0, >= 0.
        surv_fn: elementwise S.
        convention: as in `census_weight`, static.
    """
    return _initial_mean(ages, t, surv_fn, convention)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _initial_mean(ages, t, surv_fn, convention):
    there = ages >= 0
    (age,) = conditional.as_floats(jnp.maximum(ages, 0))

    def one_day(day):
        later = occupancy.census_weight(age + day, surv_fn, convention)
        chance = jnp.where(now > 0.0, later / jnp.where(now > 0.0, now, 1.0), 0.0)
        return jnp.sum(jnp.where(there, chance, 0.0))

    now = occupancy.census_weight(age, surv_fn, convention)
    return jax.lax.map(one_day, t.astype(age.dtype))


def initial_moments(
    survivors: Float[Array, "K n0"], rho_new: Float[Array, " K"]
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """Computes mean sum p + rho_new and variance sum p (1 - p) + rho_new, less than Poisson.

    Args:
        survivors: `[K, n0]` of `initial_survivors`.  rho_new: `[K]` mean occupancy by new patients.
    """
    mean = survivors.sum(axis=1) + rho_new
    return mean, (survivors * (1.0 - survivors)).sum(axis=1) + rho_new


@functools.partial(jax.jit, static_argnames=("surv_fn", "n_max"))
def initial_occupancy_pmf(
    ages: Float[Array, " n0"],
    mask: Bool[Array, " n0"],
    t: Float[Array, " K"],
    surv_fn: conditional.Survival,
    rho_new: Float[Array, " K"],
    n_max: int,
) -> Float[Array, "K N1"]:
    """Computes the law of initial survivors plus new patients: Poisson-binomial * Poisson(rho_new).

    Args:
        ages, mask, t, surv_fn: as in `initial_survivors`.
        rho_new: `[K]` mean occupancy by patients admitted after time 0 (`warmup="zero"`).
        n_max: largest count, static.

    Returns:
        `[K, n_max + 1]` P(N_t = n), exact for every n <= n_max and never renormalized: one minus
        the sum of a row is P(N_t > n_max).
    """
    chance = initial_survivors(ages, mask, t, surv_fn)
    none = jnp.zeros((t.shape[0], n_max + 1), chance.dtype).at[:, 0].set(1.0)

    def add_patient(pmf, p):
        p = jnp.broadcast_to(p[:, None], pmf.shape)
        return pmf * (1.0 - p) + jax.vmap(occupancy.delay)(pmf) * p, None

    old, _ = jax.lax.scan(add_patient, none, chance.T)
    count = jnp.arange(n_max + 1)
    new = jax.vmap(poisson.pmf, (0, None))(rho_new.astype(chance.dtype), count)
    convolve = functools.partial(jnp.convolve, precision=jax.lax.Precision.HIGHEST)
    return jax.vmap(convolve)(old, new)[:, : n_max + 1]


def residual_survival(
    t: Float[Array, " K"],
    surv_fn: conditional.Survival,
    num_lags: int,
    *,
    history: Float[Array, " A"] | None = None,
    convention: settings.Convention = "ceil",
) -> Float[Array, " K"]:
    """Computes the survival to time t of an initial patient whose elapsed stay is unknown.

    The elapsed stay a has a law proportional to lam(-a) S(a), so that
    p(t) = sum_a lam(-a) k(a+t) / sum_a lam(-a) k(a). A constant rate gives the stationary excess
    law: int_t^inf S / E[stay] with `convention="midnight"`, its lattice form with "ceil".

    Args:
        t: `[K]` days after the census of day 0, >= 0.
        surv_fn: elementwise S.
        num_lags: longest elapsed stay A - 1, static.
        history: `[num_lags + 1]` arrival rate on the days 0, -1, -2, ...; constant by default.
        convention: as in `census_weight`.

    Returns:
        `[K]` probability of still being in bed.
    """
    (t,) = conditional.as_floats(t)
    t = jnp.concatenate([jnp.zeros_like(t, shape=(1,)), t])
    rate = jnp.ones((num_lags + 1,), t.dtype) if history is None else history
    if rate.shape != (num_lags + 1,):
        raise ValueError(f"history must have num_lags + 1 = {num_lags + 1} days, got {rate.shape}")

    return _residual_survival(t, rate.astype(t.dtype), surv_fn, convention)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _residual_survival(t, rate, surv_fn, convention):
    def lag(total, day):
        age, rate_then = day
        return total + rate_then * occupancy.census_weight(age + t, surv_fn, convention), None

    ages = jnp.arange(rate.size, dtype=t.dtype)
    total, _ = jax.lax.scan(lag, jnp.zeros_like(t), (ages, rate))
    return total[1:] / total[0]
