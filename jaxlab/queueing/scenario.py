"""What-if scenarios: scaled demand, length of stay and variance, and the beds that follow.

Paper: Akbari-Moghaddam et al. 2025, arXiv:2510.02852 (scenario analysis).
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxlab.queueing import settings
from jaxlab.queueing.census import capacity, occupancy, patients
from jaxlab.queueing.census.occupancy import QueueInputs
from jaxlab.queueing.settings import BedRules, QueueModel
from jaxlab.queueing.stays import conditional

BETAS = (0.0, 0.2, 0.5, 0.8, 1.0, 1.2, 1.5, 1.8)
"""Multipliers of the variance of the stay in the sensitivity analysis."""
MULTIPLIERS = (0.9, 1.0, 1.1)
"""Multipliers of demand, and of the mean stay, in the what-if table."""

Factor = float | Float[Array, ""] | Float[Array, " I"] | np.ndarray


class BedModel(NamedTuple):
    """How beds are counted from the inputs of the queue; all static, the defaults are the paper's.

    Example: `BedModel(queue=QueueModel(variant="fisk_mean"), mean_stay="patients")` is what
    `pipeline.plan(..., queue=QueueModel(variant="fisk_mean"))` does.

    Attributes:
        queue: how the inputs are read.
        rules: how much overflow is accepted.
        num_lags: bound of S_max, days, needed where `smax` is traced.
        mean_stay: mean stay of the average rule: over "days", as the paper's companion tool does
            with daily inputs, or over "patients", sum lam mu / sum lam.
    """

    queue: QueueModel = settings.PAPER_QUEUE
    rules: BedRules = settings.PAPER_RULES
    num_lags: int | None = None
    mean_stay: Literal["days", "patients"] = "days"

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names of the S = 2 + len(alphas) bed rules, in the order of the last axis of `beds`."""
        return ("average", *(f"{alpha:g}" for alpha in self.rules.alphas), "max")


PAPER = BedModel()
"""The paper's way of counting beds."""
WARM = BedModel(queue=QueueModel(warmup="drop"))
"""The same without the days on which the empty unit fills."""


class VarianceSensitivity(NamedTuple):
    """Beds under scaled variances of the stay.

    Attributes:
        betas: `[K]` multipliers.
        beds: `[K, I, S]` int32, rules as in `BedModel.strategies`; -1 where there is none.
        change: `[K, I, S]` percent, 100 (B(beta) - B(1)) / B(1); NaN where there is none.
        truncated: `[K, I]` mean over patients of S(S_max), the share whose stay is cut at S_max.
        rho_mean: `[K, I]` mean over the days that count of the mean occupancy, beds.
    """

    betas: Float[Array, " K"]
    beds: Int[Array, "K I S"]
    change: Float[Array, "K I S"]
    truncated: Float[Array, "K I"]
    rho_mean: Float[Array, "K I"]


class WhatIf(NamedTuple):
    """Beds over a grid of demand and mean stay.

    Attributes:
        arrival: `[A]` multipliers of the arrival rate.
        mean_los: `[L]` multipliers of the mean stay.
        beds: `[A, L, I, S]` int32, rules as in `BedModel.strategies`.
        rho_mean: `[A, L, I]` mean over the days that count of the mean occupancy, beds.
    """

    arrival: Float[Array, " A"]
    mean_los: Float[Array, " L"]
    beds: Int[Array, "A L I S"]
    rho_mean: Float[Array, "A L I"]


def apply_scenario(
    inputs: QueueInputs,
    *,
    arrival: Factor = 1.0,
    mean_los: Factor = 1.0,
    variance: Factor = 1.0,
    window: tuple[int | Int[Array, ""], int | Int[Array, ""]] | None = None,
) -> QueueInputs:
    """Multiplies lam by `arrival`, mu by `mean_los` and sig2 by `variance`.

    The law and its truncation S_max stay as they were fitted, as in the paper; scaling the mean
    stay alone leaves the variance, so it changes the coefficient of variation of laws that use it.

    Args:
        inputs: what drives the queue.
        arrival, mean_los, variance: factors >= 0, scalar or `[I]`, may be traced.
        window: days of admission [start, stop) to which the factors apply; all by default.

    Returns:
        `QueueInputs` of the same shapes and dtypes.

    Raises:
        ValueError: on a known negative (or NaN) factor, a factor of another shape, or a known
            window that is not 0 <= start <= stop.
    """
    num_sites, num_days = inputs.lam.shape
    inside = jnp.ones((num_sites, num_days), bool)
    if window is not None:
        start, stop = window
        known = not isinstance(start, Tracer) and not isinstance(stop, Tracer)
        if known and not 0 <= start <= stop:
            raise ValueError(f"window must be (start, stop) with 0 <= start <= stop, got {window}")
        day = jnp.arange(num_days, dtype=jnp.int32)
        inside = jnp.broadcast_to((day >= start) & (day < stop), inside.shape)

    def scale(name, series, factor):
        if not isinstance(factor, Tracer) and not np.all(np.asarray(factor) >= 0):
            raise ValueError(f"{name} must be a factor >= 0, got {factor}")
        if jnp.shape(factor) not in ((), (num_sites,)):
            raise ValueError(
                f"{name} must be a scalar or [{num_sites}], one per site, got {jnp.shape(factor)}"
            )
        by_site = jnp.broadcast_to(jnp.asarray(factor).astype(series.dtype), (num_sites,))
        return jnp.where(inside, series * by_site[:, None], series)

    return inputs._replace(
        lam=scale("arrival", inputs.lam, arrival),
        mu=scale("mean_los", inputs.mu, mean_los),
        sig2=scale("variance", inputs.sig2, variance),
    )


def bed_counts(
    inputs: QueueInputs, model: BedModel = PAPER
) -> tuple[Int[Array, "I S"], Float[Array, "I T"]]:
    """Computes the beds of every site by the paper's rules, and the mean occupancy behind them.

    B_average takes the mean rate and the mean stay (`model.mean_stay`) of all days; the other rules
    take the days that count under `model.queue.warmup`.

    Args:
        inputs: what drives the queue.
        model: how to count; static.

    Returns:
        `(beds [I, S] int32, rho [I, T])`, rules as in `BedModel.strategies`.  Take final counts in
        float64.

    Raises:
        ValueError: on an unknown `mean_stay`, and as `occupancy.occupancy_mean`.
    """
    settings.check(model, BedModel)
    rho = occupancy.occupancy_mean(*inputs, num_lags=model.num_lags, queue=model.queue)

    def site(rho, lam, mu, mask):
        rate = jnp.mean(lam)
        mean_los = jnp.mean(mu)
        if model.mean_stay == "patients":
            mean_los = jnp.mean(lam * mu) / jnp.where(rate > 0, rate, 1.0)
        average = capacity.beds_average(rate, mean_los)
        risk = capacity.beds_risk(rho, model.rules, mask)
        return jnp.stack([average, *risk, capacity.beds_max(rho, mask=mask)])

    mask = occupancy.warm_mask(rho.shape[1], inputs.smax, model.queue.warmup)
    return jax.vmap(site)(rho, inputs.lam, inputs.mu, mask), rho


def variance_sensitivity(
    inputs: QueueInputs,
    betas: Sequence[float] | Float[Array, " K"] = BETAS,
    *,
    model: BedModel = WARM,
) -> VarianceSensitivity:
    """Computes how the beds change when the variance of the stay is multiplied by each beta.

    Only laws that use the variance react (lognormal; gamma and Weibull with `moments="two"`).  More
    variance can mean fewer beds: more stays are cut at S_max, a unit that starts empty fills more
    slowly, and seasonal peaks are smoothed.  So the first S_max days are dropped by default, and
    the truncated share is reported.

    Args:
        inputs: what drives the queue.
        betas: `[K]` factors >= 0.
        model: how to count beds; static.

    Returns:
        `VarianceSensitivity`.

    Raises:
        ValueError: on known negative betas, or as `occupancy.occupancy_mean`.

    Source: arXiv:2510.02852, sensitivity to the variance of the length of stay.
    """
    if not isinstance(betas, Tracer) and not np.all(np.asarray(betas) >= 0):
        raise ValueError(f"betas must be >= 0, got {betas}")
    betas = jnp.asarray(betas).astype(inputs.lam.dtype)
    if betas.ndim != 1:
        raise ValueError(f"betas must be a vector, got shape {betas.shape}")

    def evaluate(beta):
        scaled = apply_scenario(inputs, variance=beta)
        beds, rho = bed_counts(scaled, model)
        return beds, truncated_share(scaled, model), _mean_over_counted(rho, inputs, model)

    # The reference beta = 1 rides along as the last lane.
    lanes = jnp.concatenate([betas, jnp.ones((1,), betas.dtype)])
    beds, truncated, rho_mean = jax.vmap(evaluate)(lanes)
    exists = (beds > 0) & (beds[-1:] > 0)
    number = beds.astype(betas.dtype)
    base = jnp.where(beds[-1:] > 0, number[-1:], 1.0)
    change = jnp.where(exists, 100.0 * (number - base) / base, jnp.nan)
    return VarianceSensitivity(betas, beds[:-1], change[:-1], truncated[:-1], rho_mean[:-1])


def what_if(
    inputs: QueueInputs,
    *,
    arrival: Sequence[float] | Float[Array, " A"] = MULTIPLIERS,
    mean_los: Sequence[float] | Float[Array, " L"] = MULTIPLIERS,
    window: tuple[int, int] | None = None,
    model: BedModel = PAPER,
    chunk: int = 16,
) -> WhatIf:
    """Computes the beds for every combination of a demand factor and a mean-stay factor.

    Args:
        inputs: what drives the queue.
        arrival: `[A]` factors of the arrival rate, >= 0.
        mean_los: `[L]` factors of the mean stay, > 0.
        window: days [start, stop) to which the factors apply; all by default.
        model: how to count beds; static.
        chunk: combinations computed at a time; bounds the memory.

    Returns:
        `WhatIf`.

    Raises:
        ValueError: on known negative factors.
    """
    for name, factors in (("arrival", arrival), ("mean_los", mean_los)):
        if not isinstance(factors, Tracer) and not np.all(np.asarray(factors) >= 0):
            raise ValueError(f"{name} must hold factors >= 0, got {factors}")
    demand = jnp.asarray(arrival).astype(inputs.lam.dtype)
    stay = jnp.asarray(mean_los).astype(inputs.lam.dtype)

    inputs = QueueInputs(*(jnp.asarray(x) for x in inputs))
    apply_scenario(inputs, window=window)  # says what is wrong with known values
    bound = patients.static_lags(inputs.smax, model.num_lags)
    model, known = model._replace(num_lags=bound), known_family(inputs.family)
    return _what_if(inputs, demand, stay, window, model, chunk, known)


def known_family(family: Int[Array, " I"]) -> tuple[int, ...] | None:
    """Returns family codes as static values, so that no other law is compiled; None if traced."""
    return None if isinstance(family, Tracer) else tuple(np.asarray(family).tolist())


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _what_if(inputs, demand, stay, window, model: BedModel, chunk: int, known) -> WhatIf:
    if known is not None:
        inputs = inputs._replace(family=np.array(known, np.int32))

    def evaluate(factors):
        scaled = apply_scenario(inputs, arrival=factors[0], mean_los=factors[1], window=window)
        beds, rho = bed_counts(scaled, model)
        return beds, _mean_over_counted(rho, inputs, model)

    pairs = jnp.stack(jnp.meshgrid(demand, stay, indexing="ij"), axis=-1).reshape(-1, 2)
    beds, rho_mean = jax.lax.map(evaluate, pairs, batch_size=min(chunk, pairs.shape[0]))
    shape = (demand.shape[0], stay.shape[0])
    return WhatIf(
        demand,
        stay,
        beds.reshape(shape + beds.shape[1:]),
        rho_mean.reshape(shape + rho_mean.shape[1:]),
    )


def truncated_share(inputs: QueueInputs, model: BedModel = PAPER) -> Float[Array, " I"]:
    """Computes the mean over patients of S(S_max): the share whose stay is cut at S_max.

    Args:
        inputs: what drives the queue.
        model: reading of the laws; static.

    Returns:
        `[I]` share; zero for a site without arrivals.
    """
    settings.check(model, BedModel)
    return _truncated_share(QueueInputs(*(jnp.asarray(x) for x in inputs)), model.queue)


@functools.partial(jax.jit, static_argnums=1)
def _truncated_share(inputs: QueueInputs, queue: QueueModel) -> Float[Array, " I"]:
    def site(row):
        lam, mu, sig2, kappa, family, smax = row
        surv = conditional.survival(
            family, smax, mu, sig2, kappa, variant=queue.variant, moments=queue.moments
        )
        total = jnp.sum(lam)
        return jnp.sum(lam * surv) / jnp.where(total > 0, total, 1.0)

    return jax.lax.map(site, inputs)


def truncated_mean(inputs: QueueInputs, model: BedModel = PAPER) -> Float[Array, " I"]:
    """Computes the share of the mean stay that lies beyond S_max, and is lost with it.

    1 - sum_{u <= S_max} int_0^1 S(u + v) dv / mu at the mean over patients of mu and sig2; so much
    of the mean occupancy is missing. A log-logistic law has a heavy tail: kappa 1.34, mean 21.9
    days and S_max 325 lose 24 %.

    Args:
        inputs: what drives the queue.
        model: reading of the laws; static.

    Returns:
        `[I]` share, relative to the given mean stay.
    """
    settings.check(model, BedModel)
    num_lags = patients.static_lags(inputs.smax, model.num_lags)
    inputs = QueueInputs(*(jnp.asarray(x) for x in inputs))
    return _truncated_mean(inputs, num_lags, model.queue)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _truncated_mean(inputs: QueueInputs, num_lags: int, queue: QueueModel) -> Float[Array, " I"]:
    lags = jnp.arange(num_lags + 1, dtype=jnp.int32)

    def site(row):
        lam, mu, sig2, kappa, family, smax = row
        total = jnp.sum(lam)
        weight = lam / jnp.where(total > 0, total, 1.0)
        mean = jnp.where(total > 0, jnp.sum(weight * mu), jnp.mean(mu))
        variance = jnp.where(total > 0, jnp.sum(weight * sig2), jnp.mean(sig2))
        surv_fn = conditional.law(
            family, mean, variance, kappa, variant=queue.variant, moments=queue.moments
        )
        within = occupancy.census_weight(lags, surv_fn, "midnight")
        return 1.0 - jnp.sum(jnp.where(lags <= smax, within, 0.0)) / mean

    return jax.lax.map(site, inputs)


def _mean_over_counted(rho, inputs: QueueInputs, model: BedModel) -> Float[Array, " I"]:
    mask = occupancy.warm_mask(rho.shape[1], inputs.smax, model.queue.warmup)
    num_days = jnp.sum(mask, axis=1).astype(rho.dtype)
    return jnp.sum(jnp.where(mask, rho, 0.0), axis=1) / num_days
