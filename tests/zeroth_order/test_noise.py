"""Oracles for the noise models: scipy's laws, exact identities, and crashed queries in a batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab.zeroth_order import direction_sets, estimators, method, noise, problem
from jaxlab.zeroth_order.method import Proposal

N = 40_000
CENTER = jnp.array([0.5, -0.25])


def quadratic(dtype=jnp.float32):
    def fun(x):
        shift = x - CENTER.astype(dtype)
        return jnp.sum(shift**2) + 3.0, jnp.stack([x[0] + x[1], x[0] - 2.0, x[0] * x[1]])

    return problem.make_problem(fun, jnp.array([0.3, 0.7], dtype), m_eq=1)


def draws(p, key, num=N):
    """Stacked values `[num, 1 + m]` at x0, one key each."""
    points = jnp.broadcast_to(p.x0, (num, p.n))
    return estimators.evaluate(p.q, points, jax.random.split(key, num))


def test_gaussian_noise_has_its_law_for_every_level(key, x64):
    """Kolmogorov-Smirnov against N(0, sigma^2) for f and each h, two levels in one program."""
    p = quadratic(jnp.float64)
    clean = np.asarray(draws(p, key, 1))
    sigmas = jnp.array([0.02, 3.0])
    noisy = jax.jit(jax.vmap(lambda sigma: draws(noise.with_noise(p, sigma), key)))(sigmas)
    for sigma, values in zip(np.asarray(sigmas), np.asarray(noisy), strict=True):
        errors = (values - clean) / sigma
        for column in errors.T:
            assert stats.kstest(column, "norm").pvalue > 1e-4
        # Correlations of independent columns are N(0, 1/N): five standard errors.
        np.testing.assert_allclose(np.corrcoef(errors.T), np.eye(4), atol=5 / N**0.5)


def test_relative_noise_scales_with_each_value(key):
    p = quadratic()
    clean = np.asarray(draws(p, key, 1))[0]
    values = np.asarray(jax.jit(lambda k: draws(noise.with_relative_noise(p, 0.1), k))(key))
    # The standard deviation of N draws has relative error 1/sqrt(2N): five of them.
    np.testing.assert_allclose(values.std(axis=0), 0.1 * np.abs(clean), rtol=5 / (2 * N) ** 0.5)
    np.testing.assert_allclose(values.mean(axis=0), clean, atol=5 * 0.1 * np.abs(clean).max() / 200)
    # f = 3.9425 and h = 1 need not err together.
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 5 / N**0.5


def test_student_noise_has_its_law_and_its_deviation(key, x64):
    """df = 6 has standard deviation sigma; df = 1 is a Cauchy law of scale sigma."""
    p = quadratic(jnp.float64)
    clean = np.asarray(draws(p, key, 1))

    def sample(df):
        return draws(noise.with_student_noise(p, 0.2, df), key)

    light, cauchy = np.asarray(jax.jit(jax.vmap(sample))(jnp.array([6.0, 1.0]))) - clean
    # The variance of t_6 draws has relative variance (kurtosis 6 - 1) / N: five errors, halved.
    np.testing.assert_allclose(light.std(axis=0), 0.2, rtol=2.5 * (5 / N) ** 0.5)
    for column in light.T:
        assert stats.kstest(column / (0.2 * (4 / 6) ** 0.5), stats.t(6).cdf).pvalue > 1e-4
    for column in cauchy.T:
        assert stats.kstest(column / 0.2, "cauchy").pvalue > 1e-4


def test_quantization_rounds_to_the_grid_and_counts_as_uniform_noise(key, x64):
    p = quadratic(jnp.float64)
    step = 2.0**-4
    points = jax.random.uniform(key, (N, 2), jnp.float64, -1.0, 1.0)
    keys = jax.random.split(key, N)

    def values(p):
        return estimators.evaluate(p.q, points, keys)

    rounded = noise.with_quantization(p, step)
    clean, coarse = jax.jit(lambda: (values(p), values(rounded)))()
    np.testing.assert_array_equal(coarse, np.round(np.asarray(clean) / step) * step)
    assert rounded.sigma == pytest.approx(step / 12**0.5)
    # The error of smooth functions over a grid this fine is close to uniform; 2 % is ten errors.
    np.testing.assert_allclose(np.std(coarse - clean, axis=0), rounded.sigma, rtol=0.02)


def test_failures_take_the_whole_query_at_their_rate(key):
    p = quadratic()
    rates = jnp.array([0.0, 0.05, 0.5, 1.0])
    values = jax.jit(jax.vmap(lambda rate: draws(noise.with_failures(p, rate), key)))(rates)
    failed = np.isnan(values)
    assert (failed.all(axis=-1) == failed.any(axis=-1)).all()  # f and every h together
    error = np.sqrt(np.asarray(rates) * (1 - np.asarray(rates)) / N)
    assert (np.abs(failed[..., 0].mean(axis=1) - np.asarray(rates)) <= 5 * error + 1e-7).all()
    clean = np.asarray(draws(p, key, 1))
    # Two programs may round the oracle's arithmetic differently.
    np.testing.assert_allclose(
        np.where(failed, 0.0, values),
        np.where(failed, 0.0, np.broadcast_to(clean, failed.shape)),
        rtol=1e-6,
    )


def test_level_zero_is_the_identity_bitwise(key):
    """Of values that no program can round in its own way: the oracle only picks coordinates."""
    p = problem.make_problem(lambda x: (x[0], x[1:]), jnp.array([0.3, -0.7, 1e-30, 3e7]))
    wrappers = [
        noise.with_noise,
        noise.with_relative_noise,
        noise.with_student_noise,
        noise.with_quantization,
        noise.with_failures,
    ]

    def all_values(level):
        return [draws(wrap(p, level), key, 8) for wrap in wrappers]

    clean = np.asarray(draws(p, key, 8))
    traced, concrete = jax.jit(lambda level: (all_values(level), all_values(0.0)))(jnp.float32(0.0))
    for values in [*traced, *concrete]:
        np.testing.assert_array_equal(np.asarray(values).view(np.int32), clean.view(np.int32))
    assert all(wrap(p, 0.0).sigma == 0.0 for wrap in wrappers)


def test_keys_decide_the_draw_and_common_numbers_cancel(key, x64):
    """Additive noise cancels from central differences that share their key."""
    p = quadratic(jnp.float64)
    noisy = noise.with_noise(p, 0.5)
    S = jnp.eye(2)

    @jax.jit
    def measure(key):
        common = estimators.two_point(noisy.q, p.x0, S, 1e-2, key, common_noise=True)
        clean = estimators.two_point(p.q, p.x0, S, 1e-2, key)
        return common[1], clean[1], draws(noisy, key, 1), draws(noisy, key, 1)

    common, clean, first, again = measure(key)
    # Values of about 4 with noise of 0.5, divided by 2u = 0.02: 1e-13 is round-off.
    np.testing.assert_allclose(common, clean, atol=1e-13 * 10)
    np.testing.assert_array_equal(first, again)
    other = measure(jax.random.fold_in(key, 1))[2]
    assert (np.asarray(first) != np.asarray(other)).all()


def test_wrappers_compose_and_report_their_total_deviation(key, x64):
    """Two independent Gaussians add in quadrature; the problem's own noise is another one."""
    p = quadratic(jnp.float64)
    twice = noise.with_noise(noise.with_noise(p, 0.3), 0.4)
    assert twice.sigma == pytest.approx(0.5)
    assert twice.exact is p.exact
    coarse = noise.with_quantization(noise.with_failures(twice, 0.1), 0.25)
    values, grid = jax.jit(lambda k: (draws(twice, k), draws(coarse, k)))(key)
    np.testing.assert_allclose(np.std(values, axis=0), 0.5, rtol=5 / (2 * N) ** 0.5)
    alive = np.asarray(grid)[~np.isnan(grid).any(axis=1)]
    assert abs(len(alive) / N - 0.9) < 5 * (0.09 / N) ** 0.5
    np.testing.assert_array_equal(alive, np.round(alive * 4) / 4)
    # Sheppard: rounding with a step below the deviation adds step^2 / 12 to the variance.
    np.testing.assert_allclose(alive.std(axis=0), coarse.sigma, rtol=5 / N**0.5)

    traced = jax.jit(lambda sigma: noise.with_noise(twice, sigma).sigma)(jnp.float64(1.2))
    np.testing.assert_allclose(traced, 1.3, rtol=1e-12)


def test_bad_levels_are_named():
    p = quadratic()
    with pytest.raises(ValueError, match="sigma must be at least 0 and finite, got -0.1"):
        noise.with_noise(p, -0.1)
    with pytest.raises(ValueError, match="at least 0"):
        noise.with_noise(p, jnp.asarray(-1e-3))
    with pytest.raises(ValueError, match="sigma"):
        noise.with_relative_noise(p, float("inf"))
    with pytest.raises(ValueError, match="df must be positive"):
        noise.with_student_noise(p, 0.1, 0)
    with pytest.raises(ValueError, match="step"):
        noise.with_quantization(p, float("nan"))
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], got 1.5"):
        noise.with_failures(p, 1.5)


def descent(p):
    """Descent on f + h_0^2 along one random direction: 2 queries an update."""

    def update(key, x, inner, t, step_scale):
        key_directions, key_noise = jax.random.split(key)
        S, c = direction_sets.directions(key_directions, p.n, 1, dtype=x.dtype)
        q0, D, queries = estimators.two_point(p.q, x, S, 1e-3, key_noise, central=False)
        slope = D[0] + 2.0 * q0[1] * D[1]
        x_next = x - 0.1 * step_scale * c * (S @ slope)
        return Proposal(x_next, inner, x, q0[0], q0[1:], queries)

    return method.make_algorithm(p, init_inner=lambda key, x0: ((), 0), update=update)


def test_crashed_queries_are_survived_beside_healthy_neighbors(key):
    """At 5 % a run reaches the optimum, at 100 % it stops; the others do not notice, bitwise."""
    p = quadratic()

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0))
    def run(rate, key):
        algorithm = descent(noise.with_failures(p, rate))
        return method.run(algorithm, key, num_steps=300, log_every=300)[0]

    keys = jax.random.split(key, 4)
    mixed = run(jnp.array([0.0, 0.05, 1.0, 0.0]), keys)
    healthy = run(jnp.zeros(4), keys)
    going_on = np.asarray(mixed.status) < method.BUDGET_SPENT
    np.testing.assert_array_equal(going_on, [True, True, False, True])
    assert int(mixed.status[2]) == method.BAD_START
    # One of two queries fails with probability 1 - 0.95^2: 29 of 300 expected, deviation 5.
    assert 10 < int(mixed.rejected[1]) < 55
    assert int(mixed.rejected[2]) == method.MAX_REJECTIONS
    assert int(mixed.queries[2]) == 2 * method.MAX_REJECTIONS
    # grad = 2 (x - c) + 2 (x_0 + x_1) 1 = 0 has x = c - 1 (c_0 + c_1) / 3.
    want = np.asarray(CENTER) - float(CENTER.sum()) / 3
    np.testing.assert_allclose(mixed.x[1], want, atol=5e-3)  # forward, u = 1e-3, float32
    np.testing.assert_array_equal(mixed.x[2], p.x0)
    for i in (0, 3):
        for got, expected in zip(
            jax.tree.leaves(mixed._replace(key=())),
            jax.tree.leaves(healthy._replace(key=())),
            strict=True,
        ):
            np.testing.assert_array_equal(got[i], expected[i])


def test_a_simulator_that_breaks_down_later_is_diverged_at_the_last_good_point(key):
    p = quadratic()
    rate = jnp.float32(0.0), jnp.float32(1.0)

    @jax.jit
    def run(rates):
        before, after = (descent(noise.with_failures(p, rate)) for rate in rates)
        good = jax.lax.fori_loop(0, 3, lambda _, s: before.step(s)[0], before.init(key))
        bad = jax.lax.fori_loop(0, 12, lambda _, s: after.step(s)[0], good)
        return good, bad

    good, bad = run(rate)
    assert int(good.status) < method.BUDGET_SPENT
    assert int(bad.status) == method.DIVERGED
    assert int(bad.rejected) == method.MAX_REJECTIONS
    np.testing.assert_array_equal(bad.x, good.good_x)
    np.testing.assert_array_equal(bad.best_x, good.best_x)
