"""How many attention workers an expert worker serves: the rule for rA-1F, and its simulation.

An attention worker holds `batch` requests, one in each of its slots; r of them share one expert
worker. In a step every slot decodes a token, and the caches grow by one token each; a request that
is finished makes room for the next at once. Step times are linear: attention in the tokens of cache
that it reads, experts and link in the number of requests. All three overlap, so that the longest is
the time of a step, and each of the r + 1 workers makes r B / ((r + 1) max(...)) tokens a second.

Attention takes the time of its slowest worker, which depends on how the load of a slot varies.

Source: arXiv:2601.21351 (the rule; read at second hand), derived here.
"""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from jaxlab.serving.afd.pipeline import check_counts, start_times

SEARCHED = 1024
"""Ratios that are compared at a time."""


class LengthMoments(NamedTuple):
    """Moments of the joint law of a request's prompt length P and decode length D, in tokens.

    The last three are needed for the variance of the load alone; None if they are not known.

    Attributes:
        decode: E[D], at least 1.
        decode2: E[D^2].
        prompt_decode: E[P D].
        prompt2_decode: E[P^2 D].
        prompt_decode2: E[P D^2].
        decode3: E[D^3].
    """

    decode: float
    decode2: float
    prompt_decode: float
    prompt2_decode: float | None = None
    prompt_decode2: float | None = None
    decode3: float | None = None


class SlotLoad(NamedTuple):
    """Tokens of cache that a slot holds at an arbitrary step, long after the start.

    Attributes:
        mean: mean, tokens.
        variance: variance, tokens squared, or None if the moments for it were not given.
    """

    mean: float
    variance: float | None


class Linear(NamedTuple):
    """A time that is linear in a quantity: slope * x + intercept, seconds."""

    slope: float
    intercept: float


class StepTimes(NamedTuple):
    """What a step takes, of all layers together or of one: the rule is the same.

    Attributes:
        attention: seconds by the tokens of cache that a worker reads.
        experts: seconds by the requests of all attention workers.
        link: seconds of the network by the requests of all attention workers, or None where it is
            never the slowest.
    """

    attention: Linear
    experts: Linear
    link: Linear | None = None


class Ratio(NamedTuple):
    """The best number of attention workers for an expert worker, and what bounds it.

    Attributes:
        attention_limit: ratio up to which attention is slower than the experts; 0 if it never is.
        link_limit: ratio up to which attention is slower than the link; infinite if it always is.
        peak: ratio at which throughput were greatest if only the experts bounded it.
        real: the best ratio, a real number.
        best: the best whole number of attention workers, at least 1; of equals the smaller.
        tokens_per_second: tokens a second of each of the `best` + 1 workers.
    """

    attention_limit: float
    link_limit: float
    peak: float
    real: float
    best: int
    tokens_per_second: float


def trace_moments(prompt: ArrayLike, decode: ArrayLike) -> LengthMoments:
    """Returns the moments of a trace: `prompt` and `decode` are `[N]` lengths of its requests.

    With these `slot_load` is a ratio of sums over the trace.
    """
    P, D = _lengths(prompt, decode)
    return LengthMoments(
        decode=float(np.mean(D)),
        decode2=float(np.mean(D**2)),
        prompt_decode=float(np.mean(P * D)),
        prompt2_decode=float(np.mean(P**2 * D)),
        prompt_decode2=float(np.mean(P * D**2)),
        decode3=float(np.mean(D**3)),
    )


def geometric_moments(prompt_mean: float, prompt_sd: float, decode_mean: float) -> LengthMoments:
    """Returns the moments if every token is the last with the same probability 1 / `decode_mean`.

    Prompts have any law with this mean and standard deviation, independent of the decode length.
    """
    _check_law(prompt_mean=prompt_mean, prompt_sd=prompt_sd, decode_mean=decode_mean)
    p = 1.0 / decode_mean
    decode2, decode3 = (2.0 - p) / p**2, (p**2 - 6.0 * p + 6.0) / p**3
    return LengthMoments(
        decode=decode_mean,
        decode2=decode2,
        prompt_decode=prompt_mean * decode_mean,
        prompt2_decode=(prompt_mean**2 + prompt_sd**2) * decode_mean,
        prompt_decode2=prompt_mean * decode2,
        decode3=decode3,
    )


def lognormal_moments(
    prompt_mean: float,
    prompt_sd: float,
    decode_mean: float,
    decode_sd: float,
    *,
    correlation: float = 0.0,
) -> LengthMoments:
    """Returns the moments of lognormal lengths of these means and standard deviations, in tokens.

    Whole numbers of tokens are taken for real ones: lengths should be tens of tokens or more.

    Args:
        correlation: correlation of the logarithms of prompt and decode length, in [-1, 1].
    """
    _check_law(
        prompt_mean=prompt_mean, prompt_sd=prompt_sd, decode_mean=decode_mean, decode_sd=decode_sd
    )
    if not prompt_mean > 0.0:
        raise ValueError(f"prompt_mean of a lognormal law must be positive, got {prompt_mean}")
    if not -1.0 <= correlation <= 1.0:
        raise ValueError(f"correlation must be in [-1, 1], got {correlation}")
    var_p = math.log1p((prompt_sd / prompt_mean) ** 2)
    var_d = math.log1p((decode_sd / decode_mean) ** 2)
    covariance = correlation * math.sqrt(var_p * var_d)

    def moment(a: int, b: int) -> float:
        """E[P^a D^b], with E[P^a] = mean^a exp(a (a - 1) / 2 var)."""
        spread = a * (a - 1) * var_p / 2.0 + b * (b - 1) * var_d / 2.0 + a * b * covariance
        return prompt_mean**a * decode_mean**b * math.exp(spread)

    return LengthMoments(
        decode=decode_mean,
        decode2=moment(0, 2),
        prompt_decode=moment(1, 1),
        prompt2_decode=moment(2, 1),
        prompt_decode2=moment(1, 2),
        decode3=moment(0, 3),
    )


def slot_load(moments: LengthMoments) -> SlotLoad:
    """Returns mean and variance of the tokens that a slot holds at an arbitrary step.

    A slot serves requests one after the other, and request (P, D) spends D steps at the loads P,
    P + 1, ..., P + D - 1. These are cycles of a renewal process, so that by renewal-reward the
    long-run average of any function f of the load is E[sum_{i<D} f(P + i)] / E[D]. With f(x) = x
    and f(x) = x^2, and the sums of i and i^2 over i < D,

        mean   = (E[P D] + E[D^2 - D] / 2) / E[D],
        second = (E[P^2 D] + E[P (D^2 - D)] + E[2 D^3 - 3 D^2 + D] / 6) / E[D],

    and the variance is second - mean^2. It is that of the load at one step, over slots or over a
    long time, in which long requests weigh by their length; it is not the variance of P + D / 2
    over requests.

    Example:
        >>> slot_load(trace_moments([10, 0], [1, 3]))  # loads 10; 0, 1, 2
        SlotLoad(mean=3.25, variance=15.6875)

    Raises:
        ValueError: if the moments are those of no law with D at least 1.
    """
    d, d2, pd, p2d, pd2, d3 = moments
    known = [x for x in moments if x is not None]
    if not all(0.0 <= x < math.inf for x in known) or d < 1.0 or d2 < d**2 * (1.0 - 1e-9):
        raise ValueError(
            f"moments must be finite, not negative, with E[D] >= 1 and E[D^2] >= E[D]^2, got "
            f"{moments}"
        )
    mean = (pd + (d2 - d) / 2.0) / d
    if p2d is None or pd2 is None or d3 is None:
        return SlotLoad(mean, None)
    second = (p2d + pd2 - pd + (2.0 * d3 - 3.0 * d2 + d) / 6.0) / d
    if second < mean**2 * (1.0 - 1e-9):
        raise ValueError(f"moments are those of no law: the variance is negative, got {moments}")
    return SlotLoad(mean, max(0.0, second - mean**2))


def mean_of_largest(count: ArrayLike) -> np.ndarray:
    """Returns the mean of the largest of `count` standard normals, by quadrature to 1e-12.

    E[max] = b - integral of Phi(x)^count from far below up to b, for b that the largest does not
    exceed. Counts are real numbers from 1 to 10^12, of any shape.
    """
    counts = np.asarray(count, float)
    if not np.all((counts >= 1.0) & (counts <= 1e12)):
        raise ValueError(f"count must be in [1, 1e12], got {count}")
    low, high = -9.0, 11.0
    nodes, weights = _legendre(300)
    x = low + (high - low) * (nodes + 1.0) / 2.0
    below = np.exp(counts[..., None] * special.log_ndtr(x))
    return high - (high - low) / 2.0 * below @ weights


def attention_seconds(
    ratio: ArrayLike, times: StepTimes, load: SlotLoad, batch: int, *, barrier: bool
) -> np.ndarray:
    """Returns the time of the slowest of `ratio` attention workers.

    A worker takes the slope times the load of its B slots, mu = slope B mean + intercept on
    average. With `barrier` the slowest of r takes mu + sigma kappa_r, where sigma^2 = slope^2 B
    variance, since slots are independent, and kappa_r is the `mean_of_largest` of r normals;
    without it mu.
    """
    _check_times(times)
    check_counts(batch=batch)
    slope, intercept = times.attention
    mean = slope * batch * load.mean + intercept
    if not barrier:
        return np.full(np.shape(ratio), mean)
    if load.variance is None:
        raise ValueError("load must have a variance for the barrier; give the moments of order 3")
    return mean + slope * math.sqrt(batch * load.variance) * mean_of_largest(ratio)


def worker_throughput(
    ratio: ArrayLike, times: StepTimes, load: SlotLoad, batch: int, *, barrier: bool
) -> np.ndarray:
    """Returns the tokens a second of each worker, r B / ((r + 1) max(tA, tC, tF)), r the `ratio`.

    Ratios are positive numbers of any shape; with `barrier` at least 1.
    """
    r = np.asarray(ratio, float)
    if not np.all((r > 0.0) & (r < np.inf)):
        raise ValueError(f"ratio must be positive and finite, got {ratio}")
    longest = attention_seconds(r, times, load, batch, barrier=barrier)
    for slope, intercept in _shared(times):
        longest = np.maximum(longest, slope * r * batch + intercept)
    return r * batch / ((r + 1.0) * longest)


def best_ratio(times: StepTimes, load: SlotLoad, batch: int, *, barrier: bool) -> Ratio:
    """Returns the ratio of attention workers to an expert worker with the most tokens a second.

    Without a barrier: where a line a r + b is the longest time, the time per token and worker is
    (1 + 1 / r) (a r + b), convex in r and least at sqrt(b / a). The maximum over attention, link
    and experts is convex too, so that the best ratio is one of these peaks or a crossing of two
    lines, and the best whole number a neighbor. Without a slow link it is
    max(attention_limit, peak); with a link that is slower than the experts at every ratio it is
    max(link_limit, peak of the link).

    With the barrier the time of attention grows with the ratio. Whole numbers are compared up to
    where the experts alone exclude better ones; the real ratio is the best within one of the best
    whole number, and at least 1.

    Args:
        times: step times; the slope of the experts must be positive.
        load: tokens that a slot holds, of `slot_load`; its variance counts for the barrier alone.
        batch: number B of slots of an attention worker.
        barrier: whether attention takes the time of the slowest worker, or of a mean one.

    Example:
        >>> times = StepTimes(Linear(1e-8, 1e-4), Linear(1e-6, 1e-4))
        >>> best_ratio(times, SlotLoad(1000.0, None), 64, barrier=False).best
        10
    """
    lines = _lines(times, load, batch)
    flat, experts = lines[:2]
    if not flat.intercept > 0.0:
        raise ValueError("attention must take time: its load and its intercept are zero")
    attention_limit = _crossing(experts, flat)
    link_limit = _crossing(lines[2], flat) if times.link is not None else math.inf
    peak = math.sqrt(experts.intercept / experts.slope)
    rate = functools.partial(
        worker_throughput, times=times, load=load, batch=batch, barrier=barrier
    )
    if not barrier:
        points = [_crossing(a, b) for i, a in enumerate(lines) for b in lines[i + 1 :]]
        points += [math.sqrt(a.intercept / a.slope) for a in lines[1:] if a.slope > 0.0]
        points = [r for r in points if 0.0 < r < math.inf]
        real = max(points, key=rate)
        whole = np.unique([max(1.0, math.floor(real)), math.ceil(real)])
        best = int(whole[np.argmax(rate(whole))])
        return Ratio(attention_limit, link_limit, peak, real, best, float(rate(best)))
    attention_limit = _slowest_limit(times, load, batch)
    best, most, first = 1, float(rate(1.0)), 1
    # r B / ((r + 1) tF) < B / tF(r), which falls in r.
    while batch / (experts.slope * first + experts.intercept) > most:
        block = np.arange(first, first + SEARCHED, dtype=float)
        rates = rate(block)
        if rates.max() > most:
            best, most = int(block[np.argmax(rates)]), float(rates.max())
        first += SEARCHED
    found = optimize.minimize_scalar(
        lambda r: -float(rate(r)),
        bounds=(max(1.0, best - 1.0), best + 1.0),
        method="bounded",
        options={"xatol": 1e-9},
    )
    real = max(float(best), float(found.x), key=rate)
    return Ratio(attention_limit, link_limit, peak, real, best, most)


def simulate_provisioning(
    key: jax.Array,
    prompt: ArrayLike,
    decode: ArrayLike,
    ratio: int,
    times: StepTimes,
    batch: int,
    *,
    lockstep: bool,
    num_steps: int = 1000,
    num_micro_batches: int = 3,
) -> float:
    """Simulates rA-1F with slots that finish and are filled again; returns tokens a second.

    Every attention worker has `batch` slots in each of its micro-batches. Workers, link and experts
    serve micro-batches in order of arrival; one goes to the link when the slowest worker has
    finished it, and back to attention, a token longer, when the experts have. Requests are drawn
    from the given lengths with replacement; at the start slots are in their stationary state. The
    first fifth of the steps fills the pipeline and does not count. A worker sees the same requests
    with any ratio, so that ratios compare under the same randomness.

    Args:
        key: PRNG key for all requests.
        prompt: `[N]` prompt lengths.
        decode: `[N]` decode lengths of the same requests.
        ratio: number of attention workers.
        times: what a step takes for a micro-batch.
        batch: number of slots of a worker in a micro-batch.
        lockstep: whether attention workers begin every micro-batch together, as the barrier of
            `best_ratio` has it. Otherwise each begins once it is free, and the micro-batches that
            wait make up for a part of what the slowest one costs.
        num_steps: number of tokens that every slot decodes, at least 10.
        num_micro_batches: number of micro-batches in flight.

    Returns:
        Tokens a second of each of the `ratio` + 1 workers.
    """
    _check_times(times)
    check_counts(ratio=ratio, batch=batch, num_micro_batches=num_micro_batches)
    check_counts(num_steps=num_steps)
    if num_steps < 10:
        raise ValueError(f"num_steps must be at least 10, got {num_steps}")
    P, D = _lengths(prompt, decode)
    words = np.asarray(jax.random.key_data(key)).ravel()
    ratio, num_steps, num_micro_batches = int(ratio), int(num_steps), int(num_micro_batches)
    shape = (num_micro_batches, int(batch), num_steps)
    loads = [  # of each worker, [micro-batches, steps] tokens
        _draw_loads(np.random.default_rng([*words, worker]), P, D, shape).sum(1)
        for worker in range(ratio)
    ]
    slope, intercept = times.attention
    held = np.stack(loads, -1).swapaxes(0, 1)  # [steps, micro-batches, workers]
    stages = [slope * (held.max(-1, keepdims=True) if lockstep else held) + intercept]
    for line in reversed(_shared(times)):  # the link, where there is one, before the experts
        took = line.slope * ratio * batch + line.intercept
        stages.append(np.full((num_steps, num_micro_batches, 1), took))
    ends = start_times(stages)[-1][:, -1, 0] + stages[-1][:, -1, 0]
    skipped = num_steps // 5
    tokens = ratio * batch * num_micro_batches * (num_steps - skipped)
    return float(tokens / (ends[-1] - ends[skipped - 1]) / (ratio + 1))


_legendre = functools.cache(np.polynomial.legendre.leggauss)
"""Nodes and weights on [-1, 1]."""


def _draw_loads(
    random: np.random.Generator, P: np.ndarray, D: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """Draws stationary loads `[micro-batches, slots, steps]`, tokens.

    The request in service at the first step is drawn in proportion to its length, and is at any of
    its steps with equal probability.
    """
    *slots, num_steps = shape
    cumulative = np.cumsum(D)
    loads = np.empty((math.prod(slots), num_steps))
    for row in loads:
        at = int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
        age = math.floor(random.random() * D[at])
        until = 0
        while until < num_steps:
            left = min(int(D[at]) - age, num_steps - until)
            row[until : until + left] = P[at] + age + np.arange(left)
            until += left
            at, age = int(random.integers(len(D))), 0
    return loads.reshape(shape)


def _lines(times: StepTimes, load: SlotLoad, batch: int) -> list[Linear]:
    """Returns the times of attention, experts and link, if any, as lines in the ratio."""
    mean = float(attention_seconds(1.0, times, load, batch, barrier=False))
    return [Linear(0.0, mean), *(Linear(a * batch, b) for a, b in _shared(times))]


def _shared(times: StepTimes) -> list[Linear]:
    """Returns the experts and, where there is one, the link."""
    return [times.experts] if times.link is None else [times.experts, times.link]


def _crossing(one: Linear, other: Linear) -> float:
    """Returns the ratio from which on the steeper line is above; 0 if always, inf if never."""
    steep, flat = (one, other) if one.slope >= other.slope else (other, one)
    behind = flat.intercept - steep.intercept
    if steep.slope == flat.slope:
        return 0.0 if behind <= 0.0 else math.inf
    return max(0.0, behind / (steep.slope - flat.slope))


def _slowest_limit(times: StepTimes, load: SlotLoad, batch: int) -> float:
    """Returns the ratio at which the experts take as long as the slowest attention worker.

    The experts' lead is convex in the ratio, as `mean_of_largest` is concave: it changes its sign
    once if it starts negative.
    """

    def lead(r: float) -> float:
        slowest = float(attention_seconds(r, times, load, batch, barrier=True))
        return times.experts.slope * r * batch + times.experts.intercept - slowest

    if lead(1.0) >= 0.0:
        return _crossing(*_lines(times, load, batch)[:2])
    high = 2.0
    while lead(high) < 0.0:
        high *= 2.0
    return float(optimize.root_scalar(lead, bracket=(1.0, high), xtol=1e-12).root)


def _lengths(prompt: ArrayLike, decode: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    P, D = np.asarray(prompt, float), np.asarray(decode, float)
    if P.ndim != 1 or P.shape != D.shape or len(P) == 0:
        raise ValueError(
            f"prompt and decode must be one list of lengths each, equally long, got shapes "
            f"{P.shape} and {D.shape}"
        )
    whole = np.isfinite(P) & np.isfinite(D) & (P == np.floor(P)) & (D == np.floor(D))
    wrong = np.flatnonzero(~(whole & (P >= 0.0) & (D >= 1.0)))
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(
            "lengths must be whole numbers of tokens, prompts of at least 0 and decodes of at "
            f"least 1, got {P[i]:g} and {D[i]:g} at index {i}"
        )
    return P, D


def _check_law(**values: float) -> None:
    for name, value in values.items():
        least = 1.0 if name == "decode_mean" else 0.0
        if not least <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least {least:g}, got {value}")


def _check_times(times: StepTimes) -> None:
    for name, line in times._asdict().items():
        if line is None:
            continue
        if not all(0.0 <= x < math.inf for x in line):
            raise ValueError(
                f"times of {name} must have finite slope and intercept, not negative, got "
                f"{tuple(line)}"
            )
        if name != "link" and not line[0] > 0.0:
            raise ValueError(f"slope of {name} must be positive, got {line[0]}")
