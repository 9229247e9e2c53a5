"""What follows from the Poisson law of an M_t/G_t/inf queue, exactly, beside its mean occupancy.

Departures, covariances between days, the spread of a dispersion, and the closed form of a
sinusoidal rate. Theory: Eick, Massey and Whitt 1993, "The physics of the M_t/G/inf queue".
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.queueing.census import occupancy
from jaxlab.queueing.stays import conditional


def departure_rate(lam: Float[Array, " T"], surv: Float[Array, "T U1"]) -> Float[Array, " T"]:
    """Computes delta[t] = sum_{u>=1} lam[t-u] (S(u-1) - S(u)), the rate of the Poisson departures.

    Those still in bed at the last lag leave the day after, so that
    rho[t] = rho[t-1] + lam[t] - delta[t] holds exactly.

    Args:
        lam: `[T]` arrival rate.  surv: `[T, U+1]` as in `occupancy_mean_general`.
    """
    ended = surv - jnp.pad(surv[:, 1:], ((0, 0), (0, 1)))
    return occupancy.delay(occupancy.occupancy_mean_general(lam, ended))


@jax.jit
def occupancy_cov(
    lam: Float[Array, " T"], surv: Float[Array, "T U1"], lags: Int[Array, " H"]
) -> Float[Array, "H T"]:
    """Computes Cov(N_s, N_{s+h}) = sum_{d<=s} lam[d] S_d(s+h-d): those present on both days.

    Args:
        lam: `[T]` arrival rate.  surv: `[T, U+1]`, zero beyond U.
        lags: `[H]` int, h >= 0 days.

    Returns:
        `[H, T]`, entry `[h, s]`; row h = 0 is rho.
    """
    last = surv.shape[1] - 1
    columns = jnp.arange(last + 1, dtype=jnp.int32)

    def at(h):
        later = columns + h
        both = jnp.take(surv, jnp.minimum(later, last), axis=1)
        inside = jnp.broadcast_to(later <= last, surv.shape)
        return occupancy.occupancy_mean_general(lam, jnp.where(inside, both, 0.0))

    return jax.lax.map(at, jnp.asarray(lags).astype(jnp.int32))


def stationary_excess(surv: Float[Array, " U1"]) -> Float[Array, " U1"]:
    """Computes P(S_e > h) = sum_{u>=h} S(u) / sum_{u>=0} S(u), h = 0..U.

    The residual stay of a patient found in bed, and the autocorrelation of the occupancy at lag h
    when the arrival rate is constant.
    """
    rest = jax.lax.cumsum(surv, reverse=True)
    return rest / rest[0]


def dispersion_spread(
    surv: Float[Array, " U1"], num_days: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes mean and SD of variance / mean of a census over T days, at a constant arrival rate.

    Poisson demand has variance / mean = 1 in the long run. Over T days its census, whose days are
    alike (`stationary_excess` r_h), gives about

        1 - V with V = sum_{|h|<T} (1 - |h|/T) r_h / T,  and  Var = 2 tr((M R M)^2) / T^2

    for the matrix R of r_{|s-t|} and the centering M: about sqrt(2 E[stay] / T) for exponential
    stays. The higher cumulants of the Poisson law cancel in the ratio, to first order.

    Args:
        surv: `[U+1]` P(stay > u), u = 0..U.
        num_days: T, static.

    Returns:
        `(mean, sd)` of the ratio, variance with divisor T.

    Source: Bartlett 1946, moments of quadratic forms; Eick, Massey and Whitt 1993, covariances.
    """
    if num_days < 2:
        raise ValueError(f"num_days must be at least 2, got {num_days}")
    excess = stationary_excess(surv)[:num_days]
    corr = jnp.pad(excess, (0, num_days - excess.size))
    pairs = 2.0 * (num_days - jnp.arange(num_days, dtype=corr.dtype))
    pairs = pairs.at[0].set(num_days)  # (s, t) at each distance
    # Row sums of R: the correlations to the right of a day and to the left of it.
    right = jnp.cumsum(corr)
    rows = right[::-1] + right - corr[0]
    total = jnp.sum(rows)
    square = jnp.sum(pairs * corr**2) - 2.0 * jnp.sum(rows**2) / num_days + (total / num_days) ** 2
    return 1.0 - total / num_days**2, jnp.sqrt(2.0 * square) / num_days


@functools.partial(jax.jit, static_argnames=("surv_fn", "horizon"))
def sinusoid_transform(
    frequency: float | Float[Array, ""], surv_fn: conditional.Survival, horizon: int
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Computes E[stay], C = int cos(g x) S(x) dx and D = int sin(g x) S(x) dx over [0, horizon].

    8-point Gauss-Legendre in each day. For an exponential stay of rate m, to infinity,
    C = m / (m^2 + g^2) and D = g / (m^2 + g^2).

    Args:
        frequency: g, radians per day, up to about 2 pi.
        surv_fn: elementwise S, static.  horizon: static whole days, where S is negligible.
    """

    def day(total, start):
        parts = [
            occupancy.unit_integral(surv_fn, start, lambda v, f=f: f(frequency * (start + v)))
            for f in (jnp.ones_like, jnp.cos, jnp.sin)
        ]
        return total + jnp.stack(parts), None

    starts = jnp.arange(horizon, dtype=jnp.result_type(float))
    frequency = jnp.asarray(frequency).astype(starts.dtype)
    zero = jnp.zeros((3,), jax.eval_shape(surv_fn, starts[0]).dtype)
    total, _ = jax.lax.scan(day, zero, starts)
    return total[0], total[1], total[2]


def sinusoid_mean(
    t: Float[Array, " K"],
    base: float | Float[Array, ""],
    amplitude: float | Float[Array, ""],
    frequency: float | Float[Array, ""],
    transform: tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]],
) -> Float[Array, " K"]:
    """Computes m(t) = a E[S] + b (sin(gt) C - cos(gt) D) for the arrival rate a + b sin(gt).

    The occupancy peaks atan2(D, C) / g days after the arrivals.

    Args:
        t: `[K]` days.  base, amplitude: a, b, per day.  frequency: g, radians per day.
        transform: `(E[S], C, D)` of `sinusoid_transform`.

    Source: Eick, Massey and Whitt 1993, "M_t/G/inf queues with sinusoidal arrival rates", eq. 5.
    """
    mean, c, d = transform
    angle = frequency * t
    return base * mean + amplitude * (jnp.sin(angle) * c - jnp.cos(angle) * d)
