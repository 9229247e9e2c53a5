"""Bed counts from a mean occupancy: the paper's rules and the rules that planners use instead.

Counts are int32; -1 says that there is none (the cap is too small, no day counts, or the input is
not a number). A count follows from comparing floats: take the final one in float64
(`jax.enable_x64(True)`).
Paper: Akbari-Moghaddam et al. 2025, arXiv:2510.02852.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxlab.queueing import settings
from jaxlab.queueing.census import poisson
from jaxlab.queueing.settings import BedRules
from jaxlab.queueing.stays import conditional

MAX_BEDS = 2_000_000
"""Largest bed count for which floor(gamma B) is exact in int32."""

Mask = Bool[Array, " T"] | None


def beds_average(
    lam_bar: Float[Array, "..."] | float, mean_los: Float[Array, "..."] | float
) -> Int[Array, "..."]:
    """Computes B_average = ceil(r + sqrt r), r = lam_bar mean_los: square-root staffing with z = 1.

    Args:
        lam_bar: mean admissions per day.  mean_los: mean stay over patients, days.
    """
    lam_bar, mean_los = jnp.broadcast_arrays(*conditional.as_floats(lam_bar, mean_los))
    return beds_sqrt_staffing(lam_bar * mean_los, 1.0)


def beds_alpha(
    rho: Float[Array, " T"],
    alpha: float | Float[Array, ""],
    *,
    gamma: float = 1.0,
    rule: settings.Rule = "average",
    bed_cap: int = 4096,
    mask: Mask = None,
) -> Int[Array, ""]:
    """Computes B_alpha, the smallest B >= 1 whose overflow risk is at most alpha.

    The risk of B is the mean over days (`rule="average"`) or the maximum (`"max"`) of
    P(Poisson(rho_t) > floor(gamma B)). It does not increase in B, so B is found by bisection.

    Args:
        rho: `[T]` mean occupancy; flatten `[R, T]` to average the risk over parameter draws too.
        alpha: allowed risk, in (0, 1).
        gamma: target utilization, static, in (0, 1000], taken to six decimals.
        rule: "average" or "max".
        bed_cap: largest B considered, static.
        mask: `[T]` days that count, all by default (`occupancy.warm_mask`).

    Returns:
        int32 scalar; -1 if `bed_cap` beds are too few, or no day counts, or rho is not a number.

    Raises:
        ValueError: on a concrete alpha, gamma, rule or bed_cap outside its range.

    Source: arXiv:2510.02852, capacity at overflow risk alpha.
    """
    if not isinstance(alpha, Tracer) and not 0.0 < float(alpha) < 1.0:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    if not 1 <= bed_cap <= MAX_BEDS:
        raise ValueError(f"bed_cap must be in [1, {MAX_BEDS}], got {bed_cap}")
    settings.check_name("rule", rule, settings.Rule)
    _check_gamma(gamma)
    (rho,) = conditional.as_floats(rho)
    alpha = jnp.asarray(alpha).astype(rho.dtype)
    return _beds_alpha(rho, alpha, _mask_of(rho, mask), gamma, rule, bed_cap)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _beds_alpha(rho, alpha, mask, gamma: float, rule: str, bed_cap: int):
    def halve(bracket):
        too_few, enough = bracket
        middle = (too_few + enough) // 2
        ok = _risk(rho, overflow_threshold(middle, gamma), rule, mask) <= alpha
        return jnp.where(ok, too_few, middle), jnp.where(ok, middle, enough)

    # One bed beyond the cap stands for "the cap is too small" and is never looked at.
    bracket = (jnp.zeros((), jnp.int32), jnp.asarray(bed_cap + 1, jnp.int32))
    _, beds = jax.lax.while_loop(lambda b: b[1] - b[0] > 1, halve, bracket)
    return jnp.where(beds <= bed_cap, beds, -1)


def beds_risk(
    rho: Float[Array, " T"], rules: BedRules = settings.PAPER_RULES, mask: Mask = None
) -> Int[Array, " A"]:
    """Computes `beds_alpha` for each risk of `rules.alphas`: `[A]` int32.

    Args:
        rho: `[T]` mean occupancy.  rules: how much overflow is accepted, static.  mask: `[T]` days
            that count, all by default.

    Raises:
        ValueError: as `beds_alpha`.
    """
    settings.check(rules, BedRules)
    options = {"gamma": rules.gamma, "rule": rules.rule, "bed_cap": rules.bed_cap, "mask": mask}
    counts = [beds_alpha(rho, alpha, **options) for alpha in rules.alphas]
    return jnp.stack(counts) if counts else jnp.zeros((0,), jnp.int32)


def overflow_threshold(
    beds: Int[Array, "..."] | np.ndarray | int, gamma: float
) -> Int[Array, "..."]:
    """Returns floor(gamma beds), the census above which a day counts as overflow, int32.

    Computed by parts that fit int32, with gamma to six decimals: 0.29 of 100 beds are 29.

    Args:
        beds: `[...]` integers, 0..`MAX_BEDS`.
        gamma: share of the beds that may be filled, static, in [1e-6, 1000].

    Raises:
        ValueError: if gamma is traced or out of range, or beds are no integers or out of range.
    """
    if not jnp.issubdtype(jnp.result_type(beds), jnp.integer):
        raise ValueError(f"beds must be integers, got {jnp.result_type(beds)}; round them up")
    if not isinstance(beds, Tracer):
        given = np.asarray(beds)
        if np.any((given < 0) | (given > MAX_BEDS)):
            raise ValueError(f"beds must be in [0, {MAX_BEDS}], got {beds}")
    _check_gamma(gamma)
    beds = jnp.asarray(beds).astype(jnp.int32)
    whole, millionths = divmod(round(gamma * 1e6), 10**6)
    thousands, units = beds // 1000, beds % 1000
    return beds * whole + (thousands * millionths + units * millionths // 1000) // 1000


def overflow_risk(
    rho: Float[Array, " T"],
    beds: Int[Array, " B"] | int,
    *,
    gamma: float = 1.0,
    rule: settings.Rule = "average",
    mask: Mask = None,
) -> Float[Array, " B"]:
    """Computes the risk curve: mean or maximum over days of P(Poisson(rho_t) > floor(gamma B)).

    Args:
        rho: `[T]` mean occupancy.
        beds: `[B]` or scalar bed counts, 0..`MAX_BEDS`.
        gamma, rule, mask: as in `beds_alpha`.

    Returns:
        Shape of `beds`; NaN if no day counts.

    Raises:
        ValueError: as `overflow_threshold`, or on an unknown rule.
    """
    settings.check_name("rule", rule, settings.Rule)
    (rho,) = conditional.as_floats(rho)
    return _risk_curve(rho, overflow_threshold(beds, gamma), _mask_of(rho, mask), rule)


@functools.partial(jax.jit, static_argnums=3)
def _risk_curve(rho, k, mask, rule: str):
    if k.ndim == 0:
        return _risk(rho, k, rule, mask)
    return jax.lax.map(lambda k: _risk(rho, k, rule, mask), k)


def beds_max(rho: Float[Array, " T"], mask: Mask = None) -> Int[Array, ""]:
    """Computes B_max = ceil(m + sqrt m), m = max_t rho_t over the days that count."""
    (rho,) = conditional.as_floats(rho)
    return beds_sqrt_staffing(_maximum(rho, mask), 1.0)


def beds_naive_peak(
    lam: Float[Array, " T"], mu: Float[Array, " T"], mask: Mask = None
) -> Int[Array, ""]:
    """Computes B_naive_peak = ceil(max_t lam_t mu_t), the pointwise stationary peak."""
    lam, mu = conditional.as_floats(lam, mu)
    return _ceil(_maximum(lam * mu, mask))


def beds_rule85(
    rho: Float[Array, " T"], target: float | Float[Array, ""] = 0.85, mask: Mask = None
) -> Int[Array, ""]:
    """Computes B_85 = ceil(mean rho / target), beds for a target average utilization in (0, 1]."""
    if not isinstance(target, Tracer) and not 0.0 < float(target) <= 1.0:
        raise ValueError(f"target must be in (0, 1], got {target}")
    (rho,) = conditional.as_floats(rho)
    return _ceil(_mean(rho, mask) / jnp.asarray(target).astype(rho.dtype))


def beds_stationary(
    rho_bar: Float[Array, "..."] | float, level: Float[Array, "..."] | float
) -> Int[Array, "..."]:
    """Computes the M/G/inf quantile: the smallest B with P(Poisson(rho_bar) <= B) >= level."""
    return poisson.quantile(rho_bar, level)


def beds_sqrt_staffing(
    rho: Float[Array, "..."] | float, z: Float[Array, "..."] | float
) -> Int[Array, "..."]:
    """Computes ceil(rho + z sqrt rho); z is the normal quantile of the wanted service level."""
    rho, z = jnp.broadcast_arrays(*conditional.as_floats(rho, z))
    return _ceil(rho + z * jnp.sqrt(rho))


def erlang_b(
    c: Int[Array, "..."] | int, a: Float[Array, "..."] | float, *, max_servers: int | None = None
) -> Float[Array, "..."]:
    """Computes the blocking probability of M/G/c/c: B_0 = 1, B_j = a B_{j-1} / (j + a B_{j-1}).

    Args:
        c: servers, broadcast with `a`.
        a: offered load, arrival rate times mean stay, >= 0.
        max_servers: static bound of c, needed where c is traced.

    Returns:
        Blocking probability; NaN where a traced c is negative or exceeds `max_servers`.

    Raises:
        ValueError: if c is traced without `max_servers`, or concrete and out of range.

    Source: Erlang 1917; insensitive to the law of the stay.
    """
    if isinstance(c, Tracer):
        if max_servers is None:
            raise ValueError("c is traced; give its static bound, max_servers")
        last = max_servers
    else:
        servers = np.asarray(c)
        last = int(servers.max()) if max_servers is None else max_servers
        if servers.min() < 0 or servers.max() > last:
            raise ValueError(f"need 0 <= c <= max_servers = {max_servers}, got {c}")
    (a,) = conditional.as_floats(a)
    c, a = jnp.broadcast_arrays(jnp.asarray(c).astype(jnp.int32), a)
    return _erlang_b(c, a, last)


@functools.partial(jax.jit, static_argnums=2)
def _erlang_b(c, a, last: int):
    def add_server(blocking, j):
        lost = a * blocking
        return jnp.where(j <= c, lost / (j.astype(a.dtype) + lost), blocking), None

    servers = jnp.arange(1, last + 1, dtype=jnp.int32)
    blocking, _ = jax.lax.scan(add_server, jnp.ones_like(a), servers)
    return jnp.where((c >= 0) & (c <= last), blocking, jnp.nan)


def beds_erlang(
    a: Float[Array, "..."] | float, blocking: float | Float[Array, ""], *, bed_cap: int = 4096
) -> Int[Array, "..."]:
    """Computes the smallest c >= 1 with Erlang blocking at most `blocking`; -1 beyond `bed_cap`.

    Args:
        a: offered load.  blocking: allowed share of lost arrivals, in (0, 1).
    """
    if not isinstance(blocking, Tracer) and not 0.0 < float(blocking) < 1.0:
        raise ValueError(f"blocking must be in (0, 1), got {blocking}")
    (a,) = conditional.as_floats(a)
    return _beds_erlang(a, jnp.asarray(blocking).astype(a.dtype), bed_cap)


@functools.partial(jax.jit, static_argnums=2)
def _beds_erlang(a, blocking, bed_cap: int):
    def short(state):
        c, lost_share = state
        return (lost_share > blocking) & (c < bed_cap)

    def add_server(state):
        c, lost_share = state
        lost = a * lost_share
        new = (c + 1, lost / ((c + 1).astype(a.dtype) + lost))
        return jax.tree.map(lambda x, y: jnp.where(short(state), x, y), new, state)

    start = (jnp.zeros(a.shape, jnp.int32), jnp.ones_like(a))
    c, lost_share = jax.lax.while_loop(lambda s: jnp.any(short(s)), add_server, start)
    return jnp.where(lost_share <= blocking, c, -1)


def beds_census_quantile(
    census: Float[Array, " T"] | Int[Array, " T"],
    level: float | Float[Array, ""],
    mask: Mask = None,
) -> Int[Array, ""]:
    """Computes the smallest B that at least a share `level` of the observed days did not exceed.

    Args:
        census: `[T]` observed occupancy.  level: in (0, 1].  mask: days that count.
    """
    if not isinstance(level, Tracer) and not 0.0 < float(level) <= 1.0:
        raise ValueError(f"level must be in (0, 1], got {level}")
    (census,) = conditional.as_floats(census)
    num_days = jnp.sum(_mask_of(census, mask))
    ordered = jnp.sort(jnp.where(_mask_of(census, mask), census, jnp.inf))
    rank = _ceil(jnp.asarray(level).astype(census.dtype) * num_days.astype(census.dtype))
    # No day counts: rank 0, and the first of the ordered days is infinite.
    return _ceil(ordered[jnp.maximum(rank - 1, 0)])


def census_recursion(
    n: Float[Array, " T"] | Int[Array, " T"],
    los: Float[Array, " T"] | float,
    *,
    initial: float | Float[Array, ""] = 0.0,
) -> Float[Array, " T"]:
    """Computes census_t = n_t + (1 - 1/los) census_{t-1}, the shortcut of many epidemic tools.

    It is the mean occupancy under geometric stays of mean `los`, whatever the true law.

    Args:
        n: `[T]` admissions or arrival rate.
        los: mean stay, days, >= 1, scalar or `[T]`; NaN follows a traced value below 1.
        initial: census of the day before the first.
    """
    if not isinstance(los, Tracer) and np.any(np.asarray(los) < 1.0):
        raise ValueError(f"los must be at least 1 day, got {los}")
    return _census_recursion(*conditional.as_floats(n, los, initial))


@jax.jit
def _census_recursion(n, los, initial):
    stay = jnp.broadcast_to(jnp.where(los >= 1.0, 1.0 - 1.0 / los, jnp.nan), n.shape)

    def day(census, today):
        admitted, share = today
        census = admitted + share * census
        return census, census

    return jax.lax.scan(day, initial, (n, stay))[1]


def occupancy_cohort(lam: Float[Array, " T"], mu: Float[Array, " T"]) -> Float[Array, " T"]:
    """Computes the mean occupancy if everyone admitted on t stayed exactly mu[t]: ceil(mu[t]) days.

    The unit is empty before day 0. Equals the paper's formula with S(u) = 1[u < mu].

    Args:
        lam: `[T]` arrival rate, per day.  mu: `[T]` mean stay, days, > 0.
    """
    lam, mu = conditional.as_floats(lam, mu)
    num_days = lam.shape[0]
    day = jnp.arange(num_days, dtype=jnp.int32)
    gone = day + jnp.minimum(jnp.ceil(mu), num_days).astype(jnp.int32)
    return jnp.cumsum(lam.at[gone].add(-lam, mode="drop"))


def _check_gamma(gamma) -> None:
    if isinstance(gamma, Tracer) or not 0.0 < gamma <= 1e3 or round(gamma * 1e6) == 0:
        raise ValueError(f"gamma must be a static number in [1e-6, 1000], got {gamma}")


def _risk(rho, k, rule: str, mask: Mask):
    daily = poisson.tail(rho, k)
    return _mean(daily, mask) if rule == "average" else _maximum(daily, mask)


def _mask_of(x, mask: Mask):
    if mask is None:
        return jnp.ones(x.shape, bool)
    if mask.shape != x.shape:
        raise ValueError(f"mask must have the shape of the series {x.shape}, got {mask.shape}")
    return mask


def _mean(x, mask: Mask):
    """Averages over the days that count; NaN if none does."""
    mask = _mask_of(x, mask)
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.sum(mask).astype(x.dtype)


def _maximum(x, mask: Mask):
    """Takes the maximum over the days that count; NaN if none does."""
    mask = _mask_of(x, mask)
    return jnp.where(jnp.any(mask), jnp.max(jnp.where(mask, x, -jnp.inf)), jnp.nan)


def _ceil(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Returns the int32 ceiling; a value up to 8 rounding units above an integer is it."""
    x = x - 8.0 * jnp.finfo(x.dtype).eps * jnp.abs(x)
    countable = jnp.abs(x) < 2.0**31
    return jnp.where(countable, jnp.ceil(jnp.where(countable, x, 0.0)).astype(jnp.int32), -1)
