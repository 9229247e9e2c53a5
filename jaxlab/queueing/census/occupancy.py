"""Mean occupancy of an M_t/G_t/inf queue.

rho[t] = sum_u lam[t-u] P(stay > u | admitted on t-u). Paper: Akbari-Moghaddam et al. 2025,
arXiv:2510.02852; theory: Eick, Massey and Whitt 1993, "The physics of the M_t/G/inf queue".
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxlab.queueing import settings
from jaxlab.queueing.settings import QueueModel
from jaxlab.queueing.stays import conditional

YEAR_DAYS = 365

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1.0), 0.5 * _WEIGHTS  # on [0, 1]

Family = str | Sequence[str] | Int[Array, " I"]


class QueueInputs(NamedTuple):
    """What drives the queue, for `I` sites over `T` days: `occupancy_mean(*inputs)`.

    Attributes:
        lam: `[I, T]` arrival rate, admissions per day.
        mu: `[I, T]` mean length of stay of the patients admitted on that day, days.
        sig2: `[I, T]` variance of the length of stay, days squared.
        kappa: `[I]` shape of the length-of-stay law (unused by exponential and lognormal).
        family: `[I]` int32, index into `conditional.FAMILIES`.
        smax: `[I]` int32, truncation lag S_max in days; a stay lasts S_max + 1 days at most.
    """

    lam: Float[Array, "I T"]
    mu: Float[Array, "I T"]
    sig2: Float[Array, "I T"]
    kappa: Float[Array, " I"]
    family: Int[Array, " I"]
    smax: Int[Array, " I"]


def occupancy_mean(
    lam: Float[Array, "*I T"],
    mu: Float[Array, "*I T"],
    sig2: Float[Array, "*I T"],
    kappa: Float[Array, " *I"] | float,
    family: Family,
    smax: Int[Array, " *I"] | int,
    *,
    num_lags: int | None = None,
    queue: QueueModel = settings.PAPER_QUEUE,
) -> Float[Array, "*I T"]:
    """Computes the mean occupancy rho[t] = sum_{u=0}^{S_max} lam[t-u] k_{t-u}(u), beds.

    Args:
        lam: `[I, T]` or `[T]` arrival rate, per day.
        mu: mean stay by day of admission, days, > 0, shape of `lam`.
        sig2: variance of the stay by day of admission, days^2, shape of `lam`.
        kappa: `[I]` or scalar, shape of the law.
        family: one name for all sites, a sequence of I names, or int32 `[I]` codes; see
            `conditional.survival`.
        smax: `[I]` or scalar, last lag that counts, days.
        num_lags: static bound of smax; max(smax) by default, required where smax is traced.
        queue: how the laws are read, when the census is taken, and what comes before day 0, static.
            With `warmup="drop"` rho is that of "zero", and averages take the days of `warm_mask`;
            "backfill" makes `num_lags` earlier days up.

    Returns:
        rho, shape and float dtype of `lam`. NaN for a site whose traced smax is negative or exceeds
        `num_lags`, or whose traced family code is unknown.

    Raises:
        ValueError: on unequal shapes, unknown names, a missing or too small `num_lags`, concrete
            parameters outside their law, or "calendar" with fewer than 365 days.

    Sites follow one another and only a site's own law is evaluated; under a vmap whose batch
    includes `family`, all laws are. Memory is O(T), and so is that of the gradient.

    Source: arXiv:2510.02852, mean occupancy; Eick, Massey and Whitt 1993, eq. 3.
    """
    return _occupancy(lam, mu, sig2, kappa, family, smax, num_lags, queue, 1)


def occupancy_batch(
    lam: Float[Array, "*I T"],
    mu: Float[Array, "*I T"],
    sig2: Float[Array, "*I T"],
    kappa: Float[Array, " *I"] | float,
    family: Family,
    smax: Int[Array, " *I"] | int,
    *,
    size_mean: float | Float[Array, ""],
    size_pairs: float | Float[Array, ""],
    num_lags: int | None = None,
    queue: QueueModel = settings.PAPER_QUEUE,
) -> tuple[Float[Array, "*I T"], Float[Array, "*I T"]]:
    """Computes mean and variance of the occupancy when patients arrive in batches (twins).

    With batches of size K whose members stay independently,
    mean = E[K] sum lam k and variance = mean + E[K(K-1)] sum lam k2, k2 the weight of S(u)^2: the
    occupancy is over-dispersed and no longer Poisson.

    Args:
        lam: rate of batches, per day; the others as in `occupancy_mean`.
        size_mean: E[K].  size_pairs: E[K(K-1)], 0 for single births.
        num_lags, queue: as in `occupancy_mean`; the convention "bed_days" is an average over the
            day and not a count, and is refused.

    Returns:
        `(mean, variance)`, each of the shape of `lam`.

    Raises:
        ValueError: as `occupancy_mean`, and for the convention "bed_days".

    Source: compound Poisson thinning; Holman, Chaudhry and Kashyap 1983 (M^X/G/inf).
    """
    settings.check(queue, QueueModel)
    if queue.convention == "bed_days":
        raise ValueError(
            "a batch variance needs a count at one instant, got the convention 'bed_days'; take "
            "'ceil', 'midnight' or 'touch'"
        )
    single, pairs = (
        _occupancy(lam, mu, sig2, kappa, family, smax, num_lags, queue, power) for power in (1, 2)
    )
    mean = size_mean * single
    return mean, mean + size_pairs * pairs


def occupancy_mean_general(
    lam: Float[Array, " T"], surv: Float[Array, "T U1"]
) -> Float[Array, " T"]:
    """Computes rho[t] = sum_u lam[t-u] surv[t-u, u] for a tabulated law, empty before day 0.

    Args:
        lam: `[T]` arrival rate, per day.
        surv: `[T, U+1]` P(stay > u | admitted on t), u = 0..U.
    """
    if jnp.ndim(surv) != 2 or jnp.shape(lam) != jnp.shape(surv)[:1]:
        raise ValueError(f"need lam [T], surv [T, U+1], got {jnp.shape(lam)}, {jnp.shape(surv)}")
    return _general(*conditional.as_floats(lam, surv))


@jax.jit
def _general(lam, surv):
    def lag(rho, column):
        return delay(rho) + lam * column, None

    rho, _ = jax.lax.scan(lag, jnp.zeros_like(lam), surv.T, reverse=True)
    return rho


def lagged_sum(
    lam: Float[Array, " T"],
    weight: Callable[[Int[Array, ""]], Float[Array, " T"]],
    num_lags: int,
    *,
    smax: Int[Array, ""] | int | None = None,
) -> Float[Array, " T"]:
    """Computes sum_{u=0}^{smax} lam[t-u] weight(u)[t-u], one lag at a time.

    Horner's rule, from the last lag to the first: delay the sum by a day, add the next weights. No
    `[T, U]` array exists, forwards or backwards (the gradient evaluates the weights again).

    Args:
        lam: `[T]` arrivals.
        weight: lag u, int32 scalar -> `[T]` weight of the cohort admitted on each day.
        num_lags: static last lag.
        smax: last lag that counts, `num_lags` by default; later weights are not evaluated.
    """

    # The checkpoint is outermost: inside the cond, its inputs would be saved once per lag.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def cohort(u):
        if smax is None:
            return lam * weight(u)
        return jax.lax.cond(u <= smax, lambda: lam * weight(u), lambda: jnp.zeros_like(lam))

    def lag(rho, u):
        return delay(rho) + cohort(u), None

    lags = jnp.arange(num_lags + 1, dtype=jnp.int32)
    rho, _ = jax.lax.scan(lag, jnp.zeros_like(lam), lags, reverse=True)
    return rho


def delay(x: Float[Array, " T"]) -> Float[Array, " T"]:
    """Returns x[t-1], 0 on the first day."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(1, -1, 0)])


def extend_back(x: Float[Array, "I T"], num_days: int, backfill: settings.Backfill):
    """Puts `num_days` made-up days before the first: "year_mean" or "calendar", as a warm-up."""
    if num_days == 0:
        return x
    if backfill == "calendar":
        if x.shape[1] < YEAR_DAYS:
            raise ValueError(f"the backfill 'calendar' needs {YEAR_DAYS} days, got {x.shape[1]}")
        return jnp.concatenate([x[:, np.arange(-num_days, 0) % YEAR_DAYS], x], axis=1)
    mean = x[:, :YEAR_DAYS].mean(axis=1, keepdims=True)
    return jnp.concatenate([jnp.broadcast_to(mean, (x.shape[0], num_days)), x], axis=1)


def census_weight(
    u: Int[Array, ""] | int, surv_fn: conditional.Survival, convention: settings.Convention
) -> Float[Array, "..."]:
    """Returns the expected presence, u days later, of a patient admitted uniformly in the day.

    | convention | weight k(u) | stationary sum |
    |---|---|---|
    | ceil | S(u): a stay counts as its number of days begun | E[ceil stay], about E[stay] + 1/2 |
    | midnight | int_0^1 S(u+v) dv: present at the end of the day | E[stay] |
    | bed_days | int_{-1}^1 (1-abs v) S(u+v) dv, v >= -u: average over the day | E[stay] |
    | touch | int_0^1 S(u-1+v) dv, 1 at u = 0: present at any time of the day | E[stay] + 1 |

    The paper counts by "ceil". Integrals by 8-point Gauss-Legendre in each unit interval, in the
    square root of time in the first, where S may have an infinite slope.

    Args:
        u: lag, whole days >= 0.
        surv_fn: time since admission, days, scalar -> S of each cohort.
        convention: one of `settings.Convention`.

    Raises:
        ValueError: for an unknown convention.
    """
    settings.check_name("convention", convention, settings.Convention)
    u = jnp.asarray(u)
    match convention:
        case "ceil":
            return surv_fn(u)
        case "midnight":
            return unit_integral(surv_fn, u, jnp.ones_like)
        case "bed_days":
            rest_of_day = unit_integral(surv_fn, u, lambda v: 1.0 - v)
            before = unit_integral(surv_fn, jnp.maximum(u - 1, 0), lambda v: v)
            return rest_of_day + jnp.where(u > 0, before, jnp.zeros_like(before))
        case _:  # "touch"
            before = unit_integral(surv_fn, jnp.maximum(u - 1, 0), jnp.ones_like)
            return jnp.where(u > 0, before, jnp.ones_like(before))


def warm_mask(
    num_days: int, smax: Int[Array, " *I"] | int, warmup: settings.Warmup
) -> Bool[Array, "*I T"]:
    """Returns which days averages over rho may use: all, or with "drop" those from day S_max on.

    Args:
        num_days: T.
        smax: `[I]` or scalar.
        warmup: one of `settings.Warmup`.
    """
    settings.check_name("warmup", warmup, settings.Warmup)
    smax = jnp.asarray(smax)
    first = smax if warmup == "drop" else jnp.zeros_like(smax)
    shape = (*smax.shape, num_days)
    day = jnp.broadcast_to(jnp.arange(num_days, dtype=smax.dtype), shape)
    return day >= jnp.broadcast_to(first[..., None], shape)


def _occupancy(lam, mu, sig2, kappa, family, smax, num_lags, queue: QueueModel, power: int):
    """Computes `occupancy_mean` with S replaced by S^power."""
    settings.check(queue, QueueModel)
    shapes = [jnp.shape(x) for x in (lam, mu, sig2)]
    if len(shapes[0]) not in (1, 2) or len(set(shapes)) > 1:
        raise ValueError(f"lam, mu and sig2 must be [I, T] or [T] alike, got {shapes}")
    single = len(shapes[0]) == 1
    lam, mu, sig2 = (x[None] if single else x for x in (lam, mu, sig2))
    num_sites = 1 if single else shapes[0][0]
    smax = _per_site("smax", smax, num_sites)
    num_lags, same_smax = _static_lags(smax, num_lags)
    names, codes = _site_families(family, num_sites, queue)
    _check_sites(names, codes, mu, sig2, _per_site("kappa", kappa, num_sites), queue)
    lam, mu, sig2, kappa = conditional.as_floats(lam, mu, sig2, kappa)
    kappa = jnp.broadcast_to(kappa, (num_sites,))
    smax, codes = jnp.asarray(smax).astype(jnp.int32), jnp.asarray(codes)
    rho = _site_by_site(
        (lam, mu, sig2, kappa, codes, smax), names, num_lags, same_smax, queue, power
    )
    return rho[0] if single else rho


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def _site_by_site(given, names, num_lags: int, same_smax: bool, queue: QueueModel, power: int):
    lam, mu, sig2, *rest = given
    history = num_lags if queue.warmup == "backfill" else 0
    lam, mu, sig2 = (extend_back(x, history, queue.backfill) for x in (lam, mu, sig2))

    def site(args):
        lam, mu, sig2, kappa, code, smax = args

        def rho_under(i):
            sig2_i, kappa_i = conditional.only_if(code == i, sig2, kappa)
            surv_fn = conditional.law(
                names[i], mu, sig2_i, kappa_i, variant=queue.variant, moments=queue.moments
            )
            return lagged_sum(
                lam,
                lambda u: census_weight(u, lambda x: surv_fn(x) ** power, queue.convention),
                num_lags,
                smax=None if same_smax else smax,
            )

        branches = [functools.partial(rho_under, i) for i in range(len(names))]
        rho = jax.lax.switch(code, branches) if len(branches) > 1 else branches[0]()
        valid = (smax >= 0) & (smax <= num_lags) & (code >= 0) & (code < len(names))
        return jnp.where(valid, rho, jnp.nan)[history:]

    return jax.lax.map(site, (lam, mu, sig2, *rest))


def _site_families(family: Family, num_sites: int, queue: QueueModel):
    """Returns the distinct families and, for each site, the index of its own."""
    if isinstance(family, Tracer):
        return conditional.FAMILIES, _per_site("family", family, num_sites).astype(jnp.int32)
    given = [family] if isinstance(family, str) else np.asarray(family).reshape(-1).tolist()
    if len(given) not in (1, num_sites):
        raise ValueError(f"family must name 1 or {num_sites} laws, got {len(given)}")
    given = given * num_sites if len(given) == 1 else given
    for name in given:
        conditional.law_name(name, variant=queue.variant, moments=queue.moments)
    names = tuple(dict.fromkeys(given))
    return names, np.array([names.index(name) for name in given], np.int32)


def _check_sites(names, codes, mu, sig2, kappa, queue: QueueModel) -> None:
    """Raises where a site's concrete parameters do not belong to its law."""
    if isinstance(codes, Tracer):
        return
    for i, name in enumerate(names):
        law = conditional.law_name(name, variant=queue.variant, moments=queue.moments)
        rows = np.flatnonzero(codes == i)
        conditional.check_parameters(
            law, *(x if isinstance(x, Tracer) else np.asarray(x)[rows] for x in (mu, sig2, kappa))
        )


def _per_site(name: str, x, num_sites: int):
    """Broadcasts a scalar to `[I]`; concrete values stay numpy so that they can be checked."""
    xp = jnp if isinstance(x, Tracer) else np
    x = xp.asarray(x)
    if x.shape not in ((), (num_sites,)):
        raise ValueError(f"{name} must be a scalar or [{num_sites}], one per site, got {x.shape}")
    return xp.broadcast_to(x, (num_sites,))


def _static_lags(smax, num_lags: int | None) -> tuple[int, bool]:
    """Returns the number of lags, and whether every site has just that many."""
    if not jnp.issubdtype(smax.dtype, jnp.integer):
        raise ValueError(f"smax must be whole days (an integer), got {smax.dtype}")
    if isinstance(smax, Tracer):
        if num_lags is None:
            raise ValueError("smax is traced; give its static bound, num_lags")
        return num_lags, False
    least, most = int(smax.min()), int(smax.max())
    if least < 0 or (num_lags is not None and most > num_lags):
        raise ValueError(f"need 0 <= smax <= num_lags = {num_lags}, got {smax.tolist()}")
    num_lags = most if num_lags is None else num_lags
    return num_lags, least == num_lags


def unit_integral(surv_fn, start, factor):
    """Integrates factor(v) S(start + v) over v in [0, 1]."""
    start = jnp.asarray(start).astype(jnp.result_type(float))
    first = start <= 0.0

    def node(x, w):
        # v = x^2 in the first interval: u^k at 0 becomes x^(2k).
        v = jnp.where(first, x * x, x)
        w = jnp.where(first, 2.0 * x * w, w) * factor(v)
        surv = surv_fn(start + v)
        return jnp.broadcast_to(w.astype(surv.dtype), surv.shape) * surv

    dtype = start.dtype
    return jax.vmap(node)(jnp.asarray(_NODES, dtype), jnp.asarray(_WEIGHTS, dtype)).sum(axis=0)
