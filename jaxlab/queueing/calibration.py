"""What a bed rule does when nothing changes: the whole pipeline on simulated stationary units.

A trend with a short span follows Poisson noise, and the risk rule of arXiv:2510.02852 adds Poisson
noise again. Units with known rates and laws show by how many beds, beside estimators that do not
count the noise twice. `resample_stays` is the other half of honesty: it draws a unit like the
observed one again, and the pipeline on many such draws gives the interval of every bed count.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.queueing.arrivals import glm, rates
from jaxlab.queueing.census import capacity, occupancy, poisson
from jaxlab.queueing.data.records import Patients
from jaxlab.queueing.pipeline import ALPHAS, Plan
from jaxlab.queueing.stays import conditional, empirical, los


class Truth(NamedTuple):
    """Units whose arrivals and laws are known.

    Attributes:
        lam: `[I, T]` arrival rate, per day.
        family: `[I]` int32, index into `conditional.FAMILIES`.
        params: natural parameters of the laws, fields `[I]`.
        longest: `[I]` the law is conditioned on stays up to this many days; inf for none.
    """

    lam: Float[Array, "I T"]
    family: Int[Array, " I"]
    params: los.LOSParams
    longest: Float[Array, " I"]


class NullCalibration(NamedTuple):
    """Beds by estimator over simulated repetitions of the same truth.

    Attributes:
        true: `[A, I]` beds for each alpha if rate and law were known.
        pipeline: `[R, A, I]` beds by the pipeline under test.
        constant: `[R, A, I]` beds from the mean rate and the Kaplan-Meier law.
        regression: `[R, A, I]` beds from a Poisson regression (annual harmonics, day of week,
            linear trend) and the Kaplan-Meier law.
        dispersion: `[R, I]` Pearson chi2 / df of that regression; 1 for Poisson arrivals.
        padding_overflow: `[R, I]` whether more patients were drawn than there was room for.
    """

    true: Int[Array, "A I"]
    pipeline: Int[Array, "R A I"]
    constant: Int[Array, "R A I"]
    regression: Int[Array, "R A I"]
    dispersion: Float[Array, "R I"]
    padding_overflow: Bool[Array, "R I"]


def sample_stays(key: jax.Array, truth: Truth, *, room: int) -> tuple[Patients, Bool[Array, " I"]]:
    """Draws every patient of every unit once.

    Args:
        key: typed PRNG key.
        truth: what to draw from.
        room: patients there is room for at each site; `patient_room` leaves 7 SD.

    Returns:
        `(patients, overflow)`: patients `[I, room]`; overflow is True where more arrived than there
        is room for (the last ones are then missing).
    """
    key_arrival, key_stay = jax.random.split(key)
    day, weight, overflow = _arrivals(key_arrival, truth.lam, room)
    dtype = truth.lam.dtype
    p = jax.random.uniform(key_stay, day.shape, dtype, minval=jnp.finfo(dtype).eps)
    stay = _stays_of(truth.family, p, truth.params, truth.longest)
    return Patients(day, jnp.where(weight > 0, stay, 1.0), jnp.ones_like(weight), weight), overflow


def resample_stays(
    key: jax.Array, lam: Float[Array, "I T"], patients: Patients, *, room: int
) -> tuple[Patients, Bool[Array, " I"]]:
    """Draws new arrivals by the rate `lam`, their stays from the site's own patients.

    Stays come with replacement, each with its censoring. Arguments and results otherwise as in
    `sample_stays`.

    Source: Efron 1979, the bootstrap.
    """
    key_arrival, key_stay = jax.random.split(key)
    day, weight, overflow = _arrivals(key_arrival, lam, room)
    cumulative = jnp.cumsum(patients.weight, axis=1)
    position = jax.random.uniform(key_stay, day.shape, cumulative.dtype) * cumulative[:, -1:]
    drawn = jax.vmap(lambda c, x: jnp.searchsorted(c, x, side="right"))(cumulative, position)
    drawn = jnp.minimum(drawn, cumulative.shape[1] - 1)
    own = (patients.los, patients.event, patients.by_date, patients.offset)
    own = jax.tree.map(lambda x: jnp.take_along_axis(x, drawn, axis=1), own)
    los, event, by_date, offset = own
    los = jnp.where(weight > 0, los, 1.0)
    return Patients(day, los, event, weight, by_date, offset), overflow


def patient_room(lam: np.ndarray, *, multiple: int = 1024) -> int:
    """Returns room for the busiest site: mean plus 7 SD of its patients, rounded up."""
    mean = float(np.max(np.sum(np.asarray(lam, np.float64), axis=-1)))
    return max(1, -int(-(mean + 7 * np.sqrt(mean)) // multiple)) * multiple


def true_beds(
    truth: Truth, *, alphas: tuple[float, ...] = ALPHAS, u_max: int = 1024
) -> Int[Array, "A I"]:
    """Computes the Poisson quantiles of stationary units, convention "ceil".

    Args:
        truth: units; the mean over days of `lam` is used.
        alphas: overflow risks.
        u_max: lags summed; the law should have died out by then.
    """
    return _true_beds(truth, tuple(alphas), u_max)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _true_beds(truth: Truth, alphas: tuple[float, ...], u_max: int) -> Int[Array, "A I"]:
    days = jnp.arange(u_max + 1, dtype=truth.lam.dtype)

    def site(lam, family, params, longest):
        rho = jnp.mean(lam) * jnp.sum(_survival(family, days, params, longest))
        return jnp.stack([poisson.quantile(rho, 1.0 - alpha) for alpha in alphas])

    return jax.lax.map(lambda x: site(*x), tuple(truth)).T


def null_calibration(
    key: jax.Array,
    truth: Truth,
    pipeline: Callable[[Patients], Plan],
    *,
    num_repeats: int,
    room: int,
    u_max: int,
    alphas: tuple[float, ...] = ALPHAS,
    start_weekday: int = 0,
) -> NullCalibration:
    """Runs the pipeline and its rivals on repeated draws of stationary units.

    Args:
        key: typed PRNG key.
        truth: `I` units over `T` days, constant rates.
        pipeline: `pipeline(patients) -> Plan`, e.g. `functools.partial(plan, num_days=T, ...)`; its
            risks must be `alphas`.
        num_repeats: R.
        room: patients there is room for at each site, see `patient_room`.
        u_max: last lag of the Kaplan-Meier law, days; less than T.
        alphas: overflow risks.
        start_weekday: weekday of day 0, Monday 0.

    Returns:
        Bed counts by estimator.

    Source: the bias of short trend spans on constant rates is derived, not in arXiv:2510.02852.
    """
    num_days = truth.lam.shape[1]
    if not 1 <= u_max < num_days:
        raise ValueError(f"u_max must lie in [1, {num_days}), the days of the units, got {u_max}")
    design = rates.rate_design(
        num_days, start_weekday=start_weekday, trend="linear", harmonics=2, weekday=True
    )
    matrix = jnp.asarray(design.matrix, truth.lam.dtype)
    keys = jax.random.split(key, num_repeats)
    alphas = tuple(alphas)
    found = _null_repeats(keys, truth, matrix, pipeline, room, u_max, alphas)
    return NullCalibration(true_beds(truth, alphas=alphas), *found)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _null_repeats(keys, truth, matrix, pipeline, room: int, u_max: int, alphas: tuple[float, ...]):
    def repeat(key):
        patients, overflow = sample_stays(key, truth, room=room)
        outcome = pipeline(patients)
        counts = outcome.series.daily.counts
        law = jax.vmap(lambda x, e, w: empirical.empirical_law(x, e, u_max, weight=w))(
            patients.los, patients.event, patients.weight
        )
        regression = jax.vmap(lambda n: glm.poisson_glm(n, matrix))(counts)
        flat = jnp.broadcast_to(jnp.mean(counts, axis=1, keepdims=True), counts.shape)
        constant, regressed = (
            jax.lax.map(lambda x: _beds(x[0], x[1], alphas), (rate, law)).T
            for rate in (flat, regression.mean)
        )
        return outcome.beds.risk, constant, regressed, regression.dispersion, overflow

    return jax.lax.map(repeat, keys)


def _arrivals(key, lam, room):
    """Draws days of a Poisson number of arrivals `[I, room]`, weights, and if room ran out."""
    key_count, key_day = jax.random.split(key)
    cumulative = jnp.cumsum(lam, axis=1)
    count = jax.random.poisson(key_count, cumulative[:, -1], dtype=jnp.int32)
    # Given their number, arrivals are independent with density lam (conditional uniformity).
    position = jax.random.uniform(key_day, (lam.shape[0], room), lam.dtype) * cumulative[:, -1:]
    day = jax.vmap(lambda c, x: jnp.searchsorted(c, x, side="right"))(cumulative, position)
    day = jnp.minimum(day, lam.shape[1] - 1).astype(jnp.int32)
    weight = jnp.arange(room, dtype=jnp.int32)[None] < count[:, None]
    return day, weight.astype(lam.dtype), count > room


@jax.jit
def _stays_of(*laws):
    return jax.lax.map(lambda x: _quantile(*x), laws)


def _beds(lam, law, alphas):
    """Counts beds for a rate `[T]` and one law `[U+1]` for all days, past the warm-up."""
    rho = occupancy.lagged_sum(lam, lambda u: jnp.full_like(lam, law[u]), law.shape[0] - 1)
    mask = jnp.arange(lam.shape[0]) >= law.shape[0] - 1
    risk = [capacity.beds_alpha(rho, alpha, mask=mask) for alpha in alphas]
    return jnp.stack(risk)


def _survival(family, u, params, longest):
    """Computes P(stay > u), the law conditioned on stays up to `longest`."""
    branches = [lambda u, name=name: los.sf(name, u, params) for name in conditional.FAMILIES]
    beyond = jax.lax.switch(family, branches, longest)
    return jnp.clip((jax.lax.switch(family, branches, u) - beyond) / (1.0 - beyond), 0.0, 1.0)


def _quantile(family, p, params, longest):
    """Computes the stay that is exceeded with probability `1 - p`, given at most `longest`."""
    sf = [lambda u, name=name: los.sf(name, u, params) for name in conditional.FAMILIES]
    inverse = [lambda q, name=name: los.quantile(name, q, params) for name in conditional.FAMILIES]
    within = 1.0 - jax.lax.switch(family, sf, longest)
    return jax.lax.switch(family, inverse, p * within)
