"""The Poisson law of an infinite-server queue's occupancy, its tails and quantiles.

Poisson arrivals, independent stays and infinitely many beds make the occupancy of every day exactly
Poisson with mean rho_t, whatever the length-of-stay law (Eick, Massey and Whitt 1993).

Relative error of the tails at k within 4 standard deviations: float64 1e-13 at rho = 30, 3e-9 at
rho = 1e6; float32 1.5e-5 at rho = 30, 2e-4 at rho = 300, 1e-2 at rho = 1e4 (the logarithm of the
leading term cancels). Take final bed counts in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int


def logpmf(rho: Float[Array, "..."] | float, k: Array | int) -> Float[Array, "..."]:
    """Returns ln P(N = k) for N ~ Poisson(rho), broadcasting; -inf where impossible.

    Args:
        rho: mean, >= 0.
        k: integer count (any integer or float dtype).
    """
    rho, k = _operands(rho, k)
    possible = (k >= 0.0) & ((rho > 0.0) | (k == 0.0))
    safe_rho = jnp.where(rho > 0.0, rho, 1.0)
    safe_k = jnp.where(k >= 0.0, k, 0.0)
    value = safe_k * jnp.log(safe_rho) - rho - jax.scipy.special.gammaln(safe_k + 1.0)
    return jnp.where(possible, value, -jnp.inf)


def pmf(rho: Float[Array, "..."] | float, k: Array | int) -> Float[Array, "..."]:
    """Returns P(N = k) for N ~ Poisson(rho), broadcasting; differentiable in rho, at 0 too."""
    return _pmf(*_operands(rho, k))


def tail(rho: Float[Array, "..."] | float, k: Array | int) -> Float[Array, "..."]:
    """Returns P(N > k) for N ~ Poisson(rho): the regularized lower incomplete gamma P(k+1, rho).

    Args:
        rho: mean, >= 0.
        k: threshold, broadcast with rho; 1 for k < 0. A float k interpolates between the integers
            (for optimization over beds) and is differentiable.
    """
    return _tail(*_operands(rho, k))


def cdf(rho: Float[Array, "..."] | float, k: Array | int) -> Float[Array, "..."]:
    """Returns P(N <= k) for N ~ Poisson(rho), accurate where it is small too."""
    return _cdf(*_operands(rho, k))


def quantile(
    rho: Float[Array, "..."] | float, level: Float[Array, "..."] | float
) -> Int[Array, "..."]:
    """Returns the smallest k with P(N > k) <= 1 - level, int32, by bisection on the integers.

    Args:
        rho: mean, 0 <= rho < 1e9.
        level: probability in (0, 1), broadcast with rho.

    Returns:
        The quantile; -1 where a traced level is outside (0, 1) or rho is not a number.

    Raises:
        ValueError: if a concrete level is outside (0, 1).
    """
    if not isinstance(level, Tracer) and not np.all(
        (np.asarray(level) > 0) & (np.asarray(level) < 1)
    ):
        raise ValueError(f"level must be in (0, 1), got {level}")
    return _quantile(*_operands(rho, 1.0 - level))


@jax.jit
def _quantile(rho, risk):
    # P(N > high) < 1e-30 for every rho.
    high = jnp.ceil(rho + 12.0 * jnp.sqrt(rho) + 60.0).astype(jnp.int32)

    def halve(_, bracket):
        below, above = bracket
        middle = below + (above - below) // 2
        enough = _tail(rho, middle.astype(rho.dtype)) <= risk
        return jnp.where(enough, below, middle), jnp.where(enough, middle, above)

    _, k = jax.lax.fori_loop(0, 31, halve, (jnp.full_like(high, -1), high))
    valid = (risk > 0.0) & (risk < 1.0) & (rho >= 0.0) & (rho < 1e9)
    return jnp.where(valid, k, -1)


def expected_overflow(rho: Float[Array, "..."] | float, beds: Array | int) -> Float[Array, "..."]:
    """Returns E[(N - beds)+] = rho P(N >= beds) - beds P(N >= beds + 1), patients.

    Args:
        rho: mean occupancy, >= 0.
        beds: capacity, broadcast with rho.
    """
    rho, beds = _operands(rho, beds)
    return (rho - beds) * _tail(rho, beds) + rho * _pmf(rho, beds)


def negative_binomial_tail(
    mean: Float[Array, "..."] | float, extra: Float[Array, "..."] | float, k: Array | int
) -> Float[Array, "..."]:
    """Returns P(N > k) for a Poisson count whose rate is Gamma with the given mean and variance.

    N is negative binomial with mean m and variance m + v, P(N > k) = I_{v/(m+v)}(k + 1, m^2/v).
    Where v/m is below the fourth root of the rounding unit the incomplete beta function loses its
    digits and the expansion tail + (v/2) tail'' replaces it, with an error of O((v/m)^2).
    Not differentiable in `mean` and `extra` (JAX has no such derivative of the incomplete beta).

    Args:
        mean: m >= 0.
        extra: v >= 0, variance of the rate.
        k: integer threshold, 1 for k < 0; all three broadcast.
    """
    mean, k = _operands(mean, k)
    mean, extra = _operands(mean, extra)
    mean, k = jnp.broadcast_arrays(mean, k)
    narrow = extra <= jnp.finfo(mean.dtype).eps ** 0.25 * mean
    curvature = _pmf(mean, k - 1.0) - _pmf(mean, k)
    nearly_poisson = _tail(mean, k) + 0.5 * extra * curvature
    v = jnp.where(narrow, 1.0, extra)
    m = jnp.where(narrow | (mean <= 0.0), 1.0, mean)
    safe_k = jnp.where(k >= 0.0, k, 0.0)
    mixed = jax.scipy.special.betainc(safe_k + 1.0, m**2 / v, v / (m + v))
    mixed = jnp.where(k >= 0.0, jnp.where(mean > 0.0, mixed, 0.0), 1.0)
    return jnp.where(narrow, nearly_poisson, mixed)


def _operands(rho, k):
    """Casts both to rho's float dtype (the default float if rho is not one) and broadcasts."""
    rho = jnp.asarray(rho)
    if not jnp.issubdtype(rho.dtype, jnp.floating):
        rho = rho.astype(jnp.result_type(float))
    rho, k = jnp.broadcast_arrays(rho, jnp.asarray(k).astype(rho.dtype))
    return rho, k


@jax.custom_jvp
def _pmf(rho, k):
    return jnp.exp(logpmf(rho, k))


def _pmf_jvp(primals, tangents):
    """Uses d pmf(k) / d rho = pmf(k-1) - pmf(k), finite at rho = 0 (no log 0)."""
    rho, k = primals
    rho_dot, k_dot = tangents
    value = _pmf(rho, k)
    slope = jnp.zeros_like(value)
    if type(rho_dot) is not SymbolicZero:
        slope = slope + (_pmf(rho, k - 1.0) - value) * rho_dot
    if type(k_dot) is not SymbolicZero:
        inside = (k >= 0.0) & (rho > 0.0)
        log_rho = jnp.log(jnp.where(inside, rho, 1.0))
        grad = log_rho - jax.scipy.special.digamma(jnp.where(inside, k, 0.0) + 1.0)
        slope = slope + jnp.where(inside, value * grad, 0.0) * k_dot
    return value, slope


_pmf.defjvp(_pmf_jvp, symbolic_zeros=True)


@jax.custom_jvp
def _tail(rho, k):
    value = jax.scipy.special.gammainc(jnp.where(k >= 0.0, k, 0.0) + 1.0, rho)
    return jnp.where(k >= 0.0, value, jnp.ones_like(value))


@jax.custom_jvp
def _cdf(rho, k):
    value = jax.scipy.special.gammaincc(jnp.where(k >= 0.0, k, 0.0) + 1.0, rho)
    return jnp.where(k >= 0.0, value, jnp.zeros_like(value))


def _tail_slope(primals, tangents):
    """Computes d P(N > k) / d rho = pmf(k), at rho = 0 too."""
    rho, k = primals
    rho_dot, k_dot = tangents
    slope = jnp.zeros_like(rho)
    if type(rho_dot) is not SymbolicZero:
        slope = slope + _pmf(rho, k) * rho_dot
    if type(k_dot) is not SymbolicZero:
        inside = (k >= 0.0) & (rho > 0.0)
        grad = jax.lax.igamma_grad_a(jnp.where(inside, k, 0.0) + 1.0, jnp.where(inside, rho, 1.0))
        slope = slope + jnp.where(inside, grad, 0.0) * k_dot
    return slope


def _tail_jvp(primals, tangents):
    return _tail(*primals), _tail_slope(primals, tangents)


def _cdf_jvp(primals, tangents):
    return _cdf(*primals), -_tail_slope(primals, tangents)


_tail.defjvp(_tail_jvp, symbolic_zeros=True)
_cdf.defjvp(_cdf_jvp, symbolic_zeros=True)
