"""Monte Carlo of the unconstrained demand: the exact law of whole census paths.

Paper: Akbari-Moghaddam et al. 2025, arXiv:2510.02852. Drawing Poisson(rho_t) day by day would give
the right law of every day, and wrong maxima, run lengths and autocorrelations; here patients
(`patients.net_flow`) arrive, stay and leave. Replications stream through fixed accumulators. The
one bounded array is the histogram of the census: its last bin counts whatever lies beyond, and is
reported.

Common random numbers: with the same key, `lam_max`, shapes and numbers, two scenarios thin the same
stream of arrivals by the same uniforms, and their stays are quantiles of the same uniforms. Without
`lam_max` that holds of scenarios that share lam.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxlab.core import sharding
from jaxlab.core.types import Algorithm, Metrics
from jaxlab.queueing import settings
from jaxlab.queueing.census import occupancy, patients
from jaxlab.queueing.census.occupancy import QueueInputs
from jaxlab.queueing.settings import QueueModel

LEVELS = (0.025, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.975)
"""Levels of the daily quantile bands."""


class PathStats(NamedTuple):
    """Statistics of one path over the days that count, float32.

    Attributes:
        mean: `[I]` census averaged over days, beds.
        peak: `[I]` largest census, beds.
        exceed: `[I, B]` share of days with census > beds.
        episodes: `[I, B]` number of runs of consecutive days with census > beds.
        longest: `[I, B]` length of the longest such run, days.
    """

    mean: Float[Array, "*R I"]
    peak: Float[Array, "*R I"]
    exceed: Float[Array, "*R I B"]
    episodes: Float[Array, "*R I B"]
    longest: Float[Array, "*R I B"]


class MonteCarloState(NamedTuple):
    """All that evolves, and the settings that `summarize` needs.

    Attributes:
        key: drives the steps to come.
        replications: int32, finished so far.
        hist: `[T, I, H]` int32, replications by census of the day; the last bin counts >= H-1.
        max_hist: `[I, H]` int32, replications by the peak of the path, likewise.
        path_mean: mean of `PathStats` over replications.
        path_m2: sum of squared deviations from that mean.
        invalid: int32, see `SimSummary`.
        beds: `[I, B]` int32, thresholds.
        counted: `[I, T]` bool, days that count in path statistics.
    """

    key: Array
    replications: Int[Array, ""]
    hist: Int[Array, "T I H"]
    max_hist: Int[Array, "I H"]
    path_mean: PathStats
    path_m2: PathStats
    invalid: Int[Array, ""]
    beds: Int[Array, "I B"]
    counted: Bool[Array, "I T"]


class SimSummary(NamedTuple):
    """Results of a simulation.

    Attributes:
        mean: `[I, T]` mean census, beds.
        var: `[I, T]` variance of the census between replications.
        mean_se: `[I, T]` standard error of `mean`.
        quantiles: `[I, T, Q]` int32, census at `LEVELS`.
        hist: `[I, T, H]` int32, replications by census; the last bin counts >= H-1.
        max_hist: `[I, H]` int32, replications by the peak of the path, likewise.
        exceed_daily: `[I, B, T]` share of replications with census > beds.
        exceed: `[I, B]` share of the (replication, day) pairs that count with census > beds.
        exceed_se: `[I, B]` its standard error, from the spread between replications.
        episode_days: `[I, B]` mean length of a run of days with census > beds; 0 without any.
        path_mean: mean of `PathStats` over replications.
        path_sd: their standard deviation between replications.
        replications: int32.
        effective_replications: `[I]` number of independent (replication, day) pairs that would give
            the average census equally well: about R T / (2 E[residual stay]).
        hist_overflow: `[I]` share of (replication, day) pairs in the last bin; unless it is 0,
            `mean`, `var` and high quantiles are too low: enlarge `hist_size`.
        invalid: int32, number of (site, day) cells and initial patients without a valid rate or
            law, simulated as nobody; unless it is 0, the rest is wrong.
    """

    mean: Float[Array, "I T"]
    var: Float[Array, "I T"]
    mean_se: Float[Array, "I T"]
    quantiles: Int[Array, "I T Q"]
    hist: Int[Array, "I T H"]
    max_hist: Int[Array, "I H"]
    exceed_daily: Float[Array, "I B T"]
    exceed: Float[Array, "I B"]
    exceed_se: Float[Array, "I B"]
    episode_days: Float[Array, "I B"]
    path_mean: PathStats
    path_sd: PathStats
    replications: Int[Array, ""]
    effective_replications: Float[Array, " I"]
    hist_overflow: Float[Array, " I"]
    invalid: Int[Array, ""]


def make_monte_carlo(
    inputs: QueueInputs,
    *,
    beds: Int[Array, "*I B"] | None = None,
    replications_per_step: int = 1024,
    num_lags: int | None = None,
    queue: QueueModel = settings.PAPER_QUEUE,
    lam_max: Float[Array, "I T"] | None = None,
    initial_ages: Float[Array, "I P"] | None = None,
    mask: Bool[Array, "I T"] | None = None,
    hist_size: int = 256,
    tile: int = 131072,
    num_blocks: int = 1,
    mesh: Mesh | None = None,
) -> Algorithm:
    """Makes the simulation as `Algorithm(init, step)`; a step adds `replications_per_step` paths.

    Metrics of a step, of its own paths: `sim/replications`, `sim/mean_occupancy`, `sim/peak`,
    `sim/hist_overflow` (replication-days in the last bin); and `sim/invalid`.

    Args:
        inputs: rates and length-of-stay laws.
        beds: `[B]` or `[I, B]` integer thresholds of the path statistics.
        replications_per_step: static; multiples of 256 waste nothing. A step needs about
            `4 I T (replications_per_step / num_blocks + 2 hist_size)` bytes.
        num_lags: static bound of smax; max(smax) by default, required where smax is traced.
        queue: how the laws are read, when the census is taken ("ceil", "midnight" or "touch"), and
            what comes before day 0: with "drop" path statistics leave the first S_max days out,
            with "backfill" `num_lags` earlier days are simulated too.
        lam_max: `[I, T]` rates >= lam of the stream that is thinned, common to the scenarios that
            are to be compared; None draws lam itself.
        initial_ages: `[I, P]` stay so far of the patients found by the census of day 0, days; a
            negative age is an empty place. They stay on by the law of day 0 given their age, at
            most S_max + 1 days in all.
        mask: `[I, T]` days that count in path statistics; by default those of the warm-up.
        hist_size: H, static.
        tile: patients per pass of the inner loop, a multiple of 32, static; larger on an
            accelerator. It does not change the draws.
        num_blocks: parts of a step, each with its own key, done one after the other on each device.
        mesh: devices among which axis "data" divides the blocks; the number of devices does not
            change the draws.

    Raises:
        ValueError: on unsuitable shapes, names or numbers, concrete lam_max < lam, or (by `init`) a
            key that is not threefry.

    Source: arXiv:2510.02852, infinite-server model.
    """
    beds = _per_site_beds(beds, inputs.lam.shape[0], hist_size)
    if replications_per_step % num_blocks:
        raise ValueError(f"{replications_per_step=} must be a multiple of {num_blocks=}")
    if mesh is not None and num_blocks % mesh.shape["data"]:
        raise ValueError(f"{num_blocks=} must be a multiple of the devices, {mesh.shape['data']}")
    law, history = _make_law(inputs, num_lags, queue, lam_max, initial_ages)
    counted = _counted_days(mask, inputs, queue)
    sizes = (replications_per_step, num_blocks, hist_size, tile)
    return _algorithm(law, beds, counted, history, sizes, mesh)


def _algorithm(law: patients.Law, beds, counted, history: int, sizes, mesh) -> Algorithm:
    """Makes the simulation of a tabulated law."""
    replications_per_step, num_blocks, hist_size, tile = sizes
    block_size = replications_per_step // num_blocks

    def block(key):
        flow = patients.net_flow(key, law, num_replications=block_size, tile=tile)
        return _observe(flow, history, block_size, hist_size, beds, counted)

    def init(key: Array) -> MonteCarloState:
        shapes = jax.eval_shape(block, key)
        hist, max_hist = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[:2])
        path_mean, path_m2 = (
            jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), shapes[2]) for _ in range(2)
        )
        # Copies, because a donated state must not take what `step` closes over with it.
        settings = jax.tree.map(jnp.copy, (law.invalid, beds, counted))
        return MonteCarloState(
            key, jnp.zeros((), jnp.int32), hist, max_hist, path_mean, path_m2, *settings
        )

    def step(state: MonteCarloState) -> tuple[MonteCarloState, Metrics]:
        key, key_step = jax.random.split(state.key)
        keys = jax.random.split(key_step, num_blocks)
        hist, max_hist, paths = sharding.sharded_map(block, keys, mesh)
        paths = jax.tree.map(lambda x: x.reshape(replications_per_step, *x.shape[2:]), paths)
        path_mean, path_m2 = _merge_moments(state, paths)
        state = state._replace(
            key=key,
            replications=state.replications + replications_per_step,
            hist=state.hist + hist.sum(axis=0, dtype=jnp.int32),
            max_hist=state.max_hist + max_hist.sum(axis=0, dtype=jnp.int32),
            path_mean=path_mean,
            path_m2=path_m2,
        )
        metrics = {
            "sim/replications": jnp.asarray(replications_per_step),
            "sim/mean_occupancy": paths.mean.mean(),
            "sim/peak": paths.peak.max(),
            "sim/hist_overflow": hist[..., -1].sum(),
            "sim/invalid": state.invalid,
        }
        return state, {name: value.astype(jnp.float32) for name, value in metrics.items()}

    return Algorithm(init, step)


def summarize(state: MonteCarloState) -> SimSummary:
    """Turns the accumulators of a simulation into means, bands, risks and their errors."""
    hist = state.hist.swapaxes(0, 1)
    num_days, hist_size = hist.shape[1:]
    weight = hist.astype(jnp.float32)
    count = state.replications.astype(jnp.float32)
    degrees = jnp.maximum(count - 1.0, 1.0)
    census = jnp.arange(hist_size, dtype=jnp.int32)

    mean = (weight * census.astype(jnp.float32)[None, None]).sum(axis=-1) / count
    from_mean = census.astype(jnp.float32)[None, None] - mean[..., None]
    var = (weight * from_mean**2).sum(axis=-1) / degrees
    above = census[None, None] > state.beds[..., None]
    num_above = jnp.einsum("ith,ibh->ibt", hist, above.astype(jnp.int32))

    path, path_sd = state.path_mean, jax.tree.map(lambda x: jnp.sqrt(x / degrees), state.path_m2)
    counted = state.counted
    num_counted = counted.sum(axis=1).astype(jnp.float32)
    day_var = jnp.where(counted, var, 0.0).sum(axis=1) / num_counted
    return SimSummary(
        mean=mean,
        var=var,
        mean_se=jnp.sqrt(var / count),
        quantiles=quantile_bands(hist, LEVELS),
        hist=hist,
        max_hist=state.max_hist,
        exceed_daily=num_above.astype(jnp.float32) / count,
        exceed=path.exceed,
        exceed_se=path_sd.exceed / jnp.sqrt(count),
        episode_days=_ratio(path.exceed * num_counted[:, None], path.episodes),
        path_mean=path,
        path_sd=path_sd,
        replications=state.replications,
        effective_replications=count * _ratio(day_var, path_sd.mean**2),
        hist_overflow=weight[..., -1].sum(axis=1) / (count * num_days),
        invalid=state.invalid,
    )


def quantile_bands(hist: Int[Array, "*S H"], levels: tuple[float, ...]) -> Int[Array, "*S Q"]:
    """Returns the smallest census n with P(N <= n) >= level, int32, from counts by census.

    Args:
        hist: `[..., H]` int32 counts.
        levels: probabilities in (0, 1], static.
    """
    cum = jnp.cumsum(hist, axis=-1).astype(jnp.float32)
    # The slack keeps a level that is met exactly from being missed by rounding.
    reached = [cum >= cum[..., -1:] * (level * (1.0 - 1e-6)) for level in levels]
    return jnp.stack([jnp.argmax(r, axis=-1) for r in reached], axis=-1).astype(jnp.int32)


def simulate_free(
    key: Array,
    inputs: QueueInputs,
    beds: Int[Array, "*I B"] | None = None,
    *,
    num_replications: int,
    replications_per_step: int | None = None,
    num_lags: int | None = None,
    queue: QueueModel = settings.PAPER_QUEUE,
    lam_max: Float[Array, "I T"] | None = None,
    initial_ages: Float[Array, "I P"] | None = None,
    mask: Bool[Array, "I T"] | None = None,
    hist_size: int = 256,
    tile: int = 131072,
) -> SimSummary:
    """Simulates `num_replications` paths in one program; other arguments as in `make_monte_carlo`.

    Args:
        key: threefry key.
        num_replications: static, a multiple of `replications_per_step`, whose default is its
            largest divisor up to 1024.

    Raises:
        ValueError: as `make_monte_carlo`, or if it is not a multiple.
    """
    if num_replications < 1:
        raise ValueError(f"num_replications must be at least 1, got {num_replications}")
    if replications_per_step is None:
        divisors = range(1, min(num_replications, 1024) + 1)
        replications_per_step = max(d for d in divisors if num_replications % d == 0)
    if num_replications % replications_per_step:
        raise ValueError(f"{num_replications=} must be a multiple of {replications_per_step=}")
    beds = _per_site_beds(beds, inputs.lam.shape[0], hist_size)
    law, history = _make_law(inputs, num_lags, queue, lam_max, initial_ages)
    counted = _counted_days(mask, inputs, queue)
    sizes = (replications_per_step, 1, hist_size, tile)
    patients.check_threefry(key)
    num_steps = num_replications // replications_per_step
    return _run(key, law, beds, counted, history, sizes, num_steps)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _run(key: Array, law: patients.Law, beds, counted, history: int, sizes, num_steps: int):
    algorithm = _algorithm(law, beds, counted, history, sizes, None)
    state, _ = jax.lax.scan(
        lambda state, _: (algorithm.step(state)[0], None), algorithm.init(key), length=num_steps
    )
    return summarize(state)


def simulate_paths(
    key: Array,
    inputs: QueueInputs,
    num_replications: int,
    *,
    num_lags: int | None = None,
    queue: QueueModel = settings.PAPER_QUEUE,
    lam_max: Float[Array, "I T"] | None = None,
    initial_ages: Float[Array, "I P"] | None = None,
    tile: int = 131072,
) -> Int[Array, "R I T"]:
    """Simulates the daily census itself, int32, in memory; arguments as in `make_monte_carlo`.

    Cells without a valid rate or law have no arrivals; only `simulate_free` counts them.
    """
    law, history = _make_law(inputs, num_lags, queue, lam_max, initial_ages)
    flow = patients.net_flow(key, law, num_replications=num_replications, tile=tile)
    census = jnp.cumsum(flow, axis=2)[:, :, history:-1]
    num_sites, _, num_days, _ = census.shape
    paths = census.transpose(1, 3, 0, 2).reshape(-1, num_sites, num_days)
    return paths[:num_replications]


def _make_law(inputs, num_lags, queue: QueueModel, lam_max, initial_ages):
    """Tabulates the law, and says how many of its days lie before day 0."""
    settings.check(queue, QueueModel)
    if queue.warmup == "backfill" and initial_ages is not None:
        raise ValueError(
            "initial_ages describe day 0, but the warmup 'backfill' simulates the days before it; "
            "take one of the two"
        )
    num_lags = patients.static_lags(inputs.smax, num_lags)
    history = num_lags if queue.warmup == "backfill" else 0
    law = patients.make_law(
        inputs,
        num_lags=num_lags,
        history=history,
        queue=queue,
        lam_max=lam_max,
        initial_ages=initial_ages,
    )
    return law, history


def _counted_days(mask, inputs: QueueInputs, queue: QueueModel) -> Bool[Array, "I T"]:
    """Returns the days of path statistics, `[I, T]`."""
    shape = inputs.lam.shape
    if mask is None:
        return jnp.broadcast_to(occupancy.warm_mask(shape[-1], inputs.smax, queue.warmup), shape)
    if jnp.shape(mask) != shape or not jnp.issubdtype(jnp.result_type(mask), jnp.bool_):
        raise ValueError(
            f"mask must be bool {shape} like lam, got {jnp.result_type(mask)}{jnp.shape(mask)}"
        )
    return jnp.asarray(mask)


def _per_site_beds(beds, num_sites: int, hist_size: int) -> Int[Array, "I B"]:
    beds = jnp.zeros((0,), jnp.int32) if beds is None else jnp.asarray(beds)
    if not jnp.issubdtype(beds.dtype, jnp.integer) or beds.shape[:-1] not in ((), (num_sites,)):
        raise ValueError(
            f"beds must be integers [B] or [{num_sites}, B], got {beds.dtype}{beds.shape}"
        )
    if hist_size < 2:
        raise ValueError(f"hist_size must be at least 2, got {hist_size}")
    if beds.size and not isinstance(beds, Tracer) and np.asarray(beds).max() > hist_size - 2:
        needed = int(np.asarray(beds).max()) + 2
        raise ValueError(f"hist_size must be at least {needed} for these beds, got {hist_size}")
    return jnp.broadcast_to(beds.astype(jnp.int32), (num_sites, beds.shape[-1]))


def _observe(flow, history: int, num_replications: int, hist_size: int, beds, counts):
    """Walks along the days: `(hist [T, I, H], max_hist [I, H], PathStats [R, ...])`."""
    num_sites, num_groups, num_days, group = flow.shape
    num_days -= 1 + history

    def join_groups(x):
        return x.reshape(num_sites, num_groups * group)[:, :num_replications]

    site = jnp.arange(num_sites, dtype=jnp.int32)[:, None]

    def count(census):
        bins = site * hist_size + jnp.minimum(census, hist_size - 1)
        flat = jnp.zeros((num_sites * hist_size,), jnp.int32)
        flat = flat.at[bins].add(1, mode="promise_in_bounds")
        return flat.reshape(num_sites, hist_size)

    def one_day(carry, day):
        census, total, peak, days, episodes, run, longest = carry
        change = jax.lax.dynamic_index_in_dim(flow, history + day, 2, keepdims=False)
        census = census + join_groups(change)
        counted = jax.lax.dynamic_index_in_dim(counts, day, 1)
        total = total + jnp.where(counted, census, 0)
        peak = jnp.maximum(peak, jnp.where(counted, census, 0))
        above = (census[:, None] > beds[..., None]) & counted[..., None]
        run = jnp.where(above, run + 1, 0)
        days = days + above.astype(jnp.int32)
        episodes = episodes + (run == 1).astype(jnp.int32)
        return (census, total, peak, days, episodes, run, jnp.maximum(longest, run)), count(census)

    start = join_groups(flow[:, :, :history].sum(axis=2, dtype=jnp.int32))
    zero = jnp.zeros_like(start)
    none = jnp.zeros_like(start, shape=(num_sites, beds.shape[1], num_replications))
    carry = (start, zero, zero, none, none, none, none)
    carry, hist = jax.lax.scan(one_day, carry, jnp.arange(num_days, dtype=jnp.int32))
    _, total, peak, days, episodes, _, longest = carry
    num_counted = counts.sum(axis=1)[:, None].astype(jnp.float32)
    stats = PathStats(
        mean=total.astype(jnp.float32) / num_counted,
        peak=peak.astype(jnp.float32),
        exceed=days.astype(jnp.float32) / num_counted[..., None],
        episodes=episodes.astype(jnp.float32),
        longest=longest.astype(jnp.float32),
    )
    return hist, count(peak), jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), stats)


def _merge_moments(state: MonteCarloState, paths: PathStats) -> tuple[PathStats, PathStats]:
    """Merges mean and squared deviations of old and new paths (Chan, Golub and LeVeque 1979)."""
    old, new = state.replications.astype(jnp.float32), paths.mean.shape[0]
    share = new / (old + new)
    ours = jax.tree.map(lambda x: x.mean(axis=0), paths)
    spread = jax.tree.map(lambda x, m: ((x - m[None]) ** 2).sum(axis=0), paths, ours)
    gap = jax.tree.map(lambda m, before: m - before, ours, state.path_mean)
    mean = jax.tree.map(lambda before, g: before + share * g, state.path_mean, gap)
    m2 = jax.tree.map(lambda a, b, g: a + b + old * share * g**2, state.path_m2, spread, gap)
    return mean, m2


def _ratio(a, b):
    """Returns a / b, and 0 where b is 0."""
    return jnp.where(b > 0.0, a / jnp.where(b > 0.0, b, 1.0), 0.0)
