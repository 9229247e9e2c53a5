"""The rule for rA-1F against brute force, sums over traces, and the simulation of its slots."""

import itertools
import math

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxlab.serving.afd import provisioning
from jaxlab.serving.afd.provisioning import Linear, SlotLoad, StepTimes


def lognormal(mean, sd, z):
    var = np.log1p((sd / mean) ** 2)
    return np.ceil(mean * np.exp(np.sqrt(var) * z - var / 2.0))


def requests(law, scale=1.0, count=3000):
    """Prompt and decode lengths; the third law is chats and documents, as in traces."""
    rng = np.random.default_rng(3)
    if law == "geometric":
        return rng.poisson(400 * scale, count), rng.geometric(1 / (300 * scale), count)
    if law == "lognormal":
        z = rng.standard_normal((2, count))
        prompt = lognormal(500 * scale, 600 * scale, z[0])
        return prompt, lognormal(300 * scale, 350 * scale, 0.4 * z[0] + 0.9165 * z[1])
    chat = rng.random(count) < 0.7
    prompt, decode = (
        np.where(chat, *(rng.geometric(1 / (mean * scale), count) for mean in means))
        for means in ((200, 3500), (350, 60))
    )
    return prompt, decode


def step_times(load, batch, attention=1.0, fixed=0.1, per_worker=0.12, experts=0.3, link=None):
    """Seconds of a worker at its mean load, and of the experts by workers."""
    return StepTimes(
        Linear((attention - fixed) / (batch * load.mean), fixed),
        Linear(per_worker / batch, experts),
        None if link is None else Linear(link[0] / batch, link[1]),
    )


def test_load_of_a_trace_is_that_of_all_its_steps():
    """Every step of every request counts once: mean and variance over all of them."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        P, D = rng.integers(0, 50, 30), rng.integers(1, 20, 30)
        held = np.concatenate([p + np.arange(d) for p, d in zip(P, D, strict=True)])
        found = provisioning.slot_load(provisioning.trace_moments(P, D))
        np.testing.assert_allclose(found, (held.mean(), held.var()), rtol=1e-10)
    fixed = provisioning.slot_load(provisioning.trace_moments([7], [1]))
    assert tuple(fixed) == (7.0, 0.0)


def test_moments_of_laws():
    """Geometric: sums over its probabilities. Lognormal: quadrature over correlated normals."""
    n = np.arange(1, 5000.0)
    pmf = scipy.stats.geom.pmf(n, 1 / 40)
    found = provisioning.geometric_moments(100.0, 30.0, 40.0)
    d, d2, d3 = (float(np.sum(pmf * n**k)) for k in (1, 2, 3))
    p2 = 100.0**2 + 30.0**2
    np.testing.assert_allclose(found, (d, d2, 100 * d, p2 * d, 100 * d2, d3), rtol=1e-9)
    load = provisioning.slot_load(found)
    np.testing.assert_allclose(load.mean, 100.0 + 39.0)  # no memory: the age is geometric, from 0
    np.testing.assert_allclose(load.variance, 30.0**2 + 39.0 * 40.0)

    x, w = np.polynomial.hermite_e.hermegauss(60)
    w = np.outer(w, w) / (2.0 * math.pi)
    a, b = np.meshgrid(x, x, indexing="ij")
    var = np.log1p((np.array([600.0, 350.0]) / np.array([500.0, 300.0])) ** 2)
    P = 500.0 * np.exp(np.sqrt(var[0]) * a - var[0] / 2)
    D = 300.0 * np.exp(np.sqrt(var[1]) * (-0.5 * a + math.sqrt(0.75) * b) - var[1] / 2)
    want = [np.sum(w * f) for f in (D, D**2, P * D, P**2 * D, P * D**2, D**3)]
    found = provisioning.lognormal_moments(500.0, 600.0, 300.0, 350.0, correlation=-0.5)
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_mean_of_the_largest_normal():
    exact = [0.0, 1 / math.sqrt(math.pi), 1.5 / math.sqrt(math.pi)]
    np.testing.assert_allclose(provisioning.mean_of_largest([1, 2, 3]), exact, atol=1e-12)
    for count in (1.5, 8, 100, 1e6):
        density = lambda x, n=count: (  # noqa: E731
            x * n * math.exp(scipy.stats.norm.logpdf(x) + (n - 1) * scipy.stats.norm.logcdf(x))
        )
        want, _ = scipy.integrate.quad(density, -9, 11, epsabs=1e-12, limit=400, points=[0, 5])
        np.testing.assert_allclose(provisioning.mean_of_largest(count), want, rtol=1e-9)


def brute_force(times, load, batch, ratios, barrier):
    """The expression, written out."""
    theta, variance = load
    kappa = provisioning.mean_of_largest(ratios) if barrier else 0.0
    (aA, bA), (aF, bF), link = times
    longest = aA * batch * theta + bA + aA * math.sqrt(batch * variance) * kappa
    longest = np.maximum(longest, aF * ratios * batch + bF)
    if link is not None:
        longest = np.maximum(longest, link[0] * ratios * batch + link[1])
    return ratios * batch / ((ratios + 1) * longest)


@pytest.mark.parametrize("barrier", [False, True])
def test_the_rule_is_the_best_of_all_ratios(barrier):
    """Random times with and without a link: no whole number to 400, no real on a grid is better."""
    rng = np.random.default_rng(4)
    whole, real = np.arange(1.0, 401.0), np.geomspace(1.0 if barrier else 1e-2, 400.0, 4000)
    kinds = set()
    for i in range(60):
        load, batch = SlotLoad(800.0, rng.uniform(0.0, 1e6)), int(rng.integers(1, 100))
        link = None if i % 3 == 0 else (rng.uniform(0.02, 0.5), rng.choice([0.0, 0.5, 2.0]))
        times = step_times(
            load,
            batch,
            per_worker=rng.uniform(0.02, 0.5),
            experts=rng.choice([0.0, 0.3, 3.0]),
            link=link,
        )
        found = provisioning.best_ratio(times, load, batch, barrier=barrier)
        rates = brute_force(times, load, batch, whole, barrier)
        np.testing.assert_allclose(found.tokens_per_second, rates.max(), rtol=1e-12)
        np.testing.assert_allclose(rates[found.best - 1], rates.max(), rtol=1e-12)
        at = brute_force(times, load, batch, np.array([found.real]), barrier)[0]
        assert at >= brute_force(times, load, batch, real, barrier).max() * (1.0 - 1e-9)
        if link is None and not barrier:
            np.testing.assert_allclose(
                found.real, max(found.attention_limit, found.peak), rtol=1e-12
            )
        kinds.add((link is None, found.attention_limit > found.peak))
    assert len(kinds) == 4


def test_the_largest_of_three_ratios_is_not_the_rule_with_a_link():
    """Attention meets the link at 4 and the experts at 8: beyond 4 the link is the slowest."""
    load = SlotLoad(1000.0, None)
    times = StepTimes(Linear(1e-3, 0.0), Linear(0.125, 0.0), Linear(0.25, 0.0))
    found = provisioning.best_ratio(times, load, 1, barrier=False)
    assert (found.attention_limit, found.link_limit, found.real, found.best) == (8.0, 4.0, 4.0, 4)


def test_the_limit_with_a_barrier_is_where_the_experts_are_as_slow():
    load = SlotLoad(800.0, 6e5)
    times = step_times(load, 32)
    found = provisioning.best_ratio(times, load, 32, barrier=True)
    slowest = provisioning.attention_seconds(found.attention_limit, times, load, 32, barrier=True)
    np.testing.assert_allclose(0.12 * found.attention_limit + 0.3, slowest, rtol=1e-9)
    plain = provisioning.best_ratio(times, load, 32, barrier=False)
    assert found.attention_limit > plain.attention_limit
    assert found.tokens_per_second < plain.tokens_per_second


def simulated(key, prompt, decode, times, batch, ratios, **options):
    """Tokens a second of every ratio."""
    return np.array(
        [
            provisioning.simulate_provisioning(key, prompt, decode, int(r), times, batch, **options)
            for r in ratios
        ]
    )


@pytest.mark.parametrize("law", ["geometric", "lognormal", "trace"])
def test_the_rule_is_near_the_best_of_the_simulation(law):
    """Within 10 % of the best; lengths of a tenth, so that a short run has many requests."""
    prompt, decode = requests(law, scale=0.1)
    load, batch = provisioning.slot_load(provisioning.trace_moments(prompt, decode)), 24
    times, ratios = step_times(load, batch), np.arange(3, 11)
    for barrier in (False, True):
        rates = simulated(
            jax.random.key(0), prompt, decode, times, batch, ratios, num_steps=200, lockstep=barrier
        )
        found = provisioning.best_ratio(times, load, batch, barrier=barrier)
        assert rates[list(ratios).index(found.best)] >= 0.9 * rates.max()


@pytest.mark.slow
@pytest.mark.parametrize("law", ["geometric", "lognormal", "trace"])
@pytest.mark.parametrize(
    "options",
    [{}, {"per_worker": 0.07}, {"experts": 1.5}, {"link": (0.2, 0.2)}],
    ids=["attention", "many workers", "peak", "link"],
)
def test_the_rule_is_near_the_best_of_five_simulations(law, options):
    """Both forms, with lockstep and without: within 10 % of the best of the mean over seeds.

    With lockstep the refined form forecasts every ratio to 10 %. Loads of so few slots are not
    quite normal, and the longest time is a little more than the longest of means.
    """
    prompt, decode = requests(law)
    load, batch = provisioning.slot_load(provisioning.trace_moments(prompt, decode)), 32
    times, ratios = step_times(load, batch, **options), np.arange(1, 17)
    plain, refined = (
        provisioning.best_ratio(times, load, batch, barrier=barrier) for barrier in (False, True)
    )
    for lockstep in (False, True):
        rates = np.mean(
            [
                simulated(
                    jax.random.key(seed),
                    prompt,
                    decode,
                    times,
                    batch,
                    ratios,
                    num_steps=1500,
                    lockstep=lockstep,
                )
                for seed in range(5)
            ],
            axis=0,
        )
        for found in (plain, refined):
            assert rates[found.best - 1] >= 0.9 * rates.max()
    forecast = provisioning.worker_throughput(ratios, times, load, batch, barrier=True)
    np.testing.assert_allclose(forecast, rates, rtol=0.1)


def test_slots_are_stationary_and_a_worker_sees_the_same_requests_with_any_ratio():
    """One worker, bound by attention: its tokens a second tell the mean load, from the first step.

    The standard error is that of the loads over slots and seeds; steps of a slot are alike.
    """
    prompt, decode = requests("trace")
    load, batch = provisioning.slot_load(provisioning.trace_moments(prompt, decode)), 16
    times = StepTimes(Linear(1e-3, 0.0), Linear(1e-9, 0.0))
    found = [
        batch
        / (2.0 * 1e-3)
        / provisioning.simulate_provisioning(
            jax.random.key(seed), prompt, decode, 1, times, batch, num_steps=20, lockstep=True
        )
        for seed in range(40)
    ]
    error = math.sqrt(batch * load.variance) / math.sqrt(40 * 3)
    assert abs(np.mean(found) - batch * load.mean) < 3.5 * error
    # A worker that holds little more changes nothing where the experts bind.
    slow = StepTimes(Linear(1e-9, 0.0), Linear(0.1, 0.0))
    ratios = np.arange(1, 6)
    rates = simulated(
        jax.random.key(1), prompt, decode, slow, 1, ratios, num_steps=10, lockstep=False
    )
    np.testing.assert_allclose(rates, 1.0 / (0.1 * (ratios + 1)), rtol=1e-3)


def test_constant_lengths_have_no_variance_and_fill_the_pipeline():
    """Requests of one token and one prompt: the formula exactly, with a link too."""
    times = StepTimes(Linear(1e-3, 0.1), Linear(0.02, 0.3), Linear(0.03, 0.1))
    load = provisioning.slot_load(provisioning.trace_moments([500], [1]))
    assert tuple(load) == (500.0, 0.0)
    for r, M in itertools.product((1, 4, 9), (3, 4)):
        found = provisioning.simulate_provisioning(
            jax.random.key(0),
            [500],
            [1],
            r,
            times,
            8,
            lockstep=False,
            num_steps=50,
            num_micro_batches=M,
        )
        want = provisioning.worker_throughput(r, times, load, 8, barrier=True)
        np.testing.assert_allclose(found, want, rtol=1e-9)


def test_bad_input_is_named():
    load, times = SlotLoad(100.0, None), StepTimes(Linear(1.0, 0.0), Linear(1.0, 0.0))
    for call, message in (
        (lambda: provisioning.trace_moments([1, 2], [1]), "equally long"),
        (lambda: provisioning.trace_moments([1, 2], [1, 0]), "got 2 and 0 at index 1"),
        (lambda: provisioning.trace_moments([1.5], [1]), "whole numbers"),
        (lambda: provisioning.trace_moments([], []), "one list of lengths"),
        (lambda: provisioning.geometric_moments(10.0, 0.0, 0.5), "decode_mean must be"),
        (lambda: provisioning.lognormal_moments(0.0, 1.0, 9.0, 1.0), "prompt_mean"),
        (lambda: provisioning.lognormal_moments(1.0, 1.0, 9.0, 1.0, correlation=2.0), "correl"),
        (lambda: provisioning.slot_load(provisioning.LengthMoments(5.0, 20.0, 1.0)), "E.D.2"),
        (
            lambda: provisioning.slot_load(
                provisioning.LengthMoments(2.0, 4.0, 20.0, 1.0, 40.0, 8.0)
            ),
            "variance is negative",
        ),
        (lambda: provisioning.mean_of_largest(0.5), "count must be"),
        (lambda: provisioning.best_ratio(times, load, 4, barrier=True), "must have a variance"),
        (lambda: provisioning.best_ratio(times, load, 0, barrier=False), "batch must be"),
        (
            lambda: provisioning.best_ratio(
                times._replace(experts=Linear(0.0, 1.0)), load, 4, barrier=False
            ),
            "slope of experts must be positive",
        ),
        (
            lambda: provisioning.best_ratio(
                times._replace(link=Linear(-1.0, 1.0)), load, 4, barrier=False
            ),
            "times of link",
        ),
        (
            lambda: provisioning.best_ratio(times, SlotLoad(0.0, 0.0), 4, barrier=False),
            "attention must take time",
        ),
        (lambda: provisioning.worker_throughput(0.0, times, load, 4, barrier=False), "ratio must"),
        (
            lambda: provisioning.simulate_provisioning(
                jax.random.key(0), [1], [1], 1, times, 1, num_steps=5, lockstep=True
            ),
            "num_steps must be at least 10",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
