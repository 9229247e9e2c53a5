"""Differences: exactness on polynomials, orders of the bias, variance of the noise, the box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.zeroth_order import direction_sets, estimators
from jaxlab.zeroth_order.problem import make_problem


def _smooth(x):
    return jnp.exp(x[0]) * jnp.sin(x[1]) + x[2] ** 3, jnp.stack(
        [jnp.cos(x[0] * x[2]) + x[1] ** 2, jnp.tanh(x[1]) * x[2]]
    )


def _oracle(fun):
    return lambda x, key: fun(x)


X = np.array([0.3, -0.7, 1.1])


def _stacked_jacobian():
    return jax.jacfwd(lambda x: jnp.concatenate([jnp.ravel(v) for v in _smooth(x)]))(jnp.asarray(X))


@pytest.mark.parametrize(
    ("kind", "central", "order"),
    [
        ("orthonormal", True, 2),
        ("coordinate", True, 2),
        ("coordinate", False, 1),
        ("orthonormal", False, 1),
    ],
)
def test_full_orthonormal_sets_find_the_gradient_up_to_the_order_of_the_radius(
    key, x64, kind, central, order
):
    exact = _stacked_jacobian()

    @jax.jit
    def error(u):
        S, c = direction_sets.directions(key, 3, 3, kind, jnp.float64)
        _, D, _ = estimators.two_point(_oracle(_smooth), jnp.asarray(X), S, u, key, central=central)
        return jnp.abs(estimators.gradient(S, c, D) - exact).max()

    radii = np.array([1e-1, 1e-2])
    errors = np.array([error(u) for u in radii])
    slope = np.diff(np.log(errors)) / np.diff(np.log(radii))
    assert abs(slope[0] - order) < 0.05  # the next term of the expansion bends it by about u


def test_central_differences_are_exact_on_quadratics_and_forward_ones_on_lines(key, x64):
    Q = np.array([[2.0, 0.5], [0.5, -1.0]])
    fun = lambda x: (0.5 * x @ Q @ x + x[0], jnp.stack([3.0 * x[0] - x[1]]))  # noqa: E731
    S, c = direction_sets.directions(key, 2, 2, dtype=jnp.float64)
    x = jnp.array([0.4, -1.0])
    q0, D, queries = estimators.two_point(_oracle(fun), x, S, 0.3, key)
    np.testing.assert_allclose(
        estimators.gradient(S, c, D), [Q @ x + jnp.array([1.0, 0.0]), [3, -1]], atol=1e-13
    )
    np.testing.assert_allclose(q0, [0.5 * x @ Q @ x + x[0], 3 * x[0] - x[1]], atol=1e-13)
    assert queries == 5
    _, D, queries = estimators.two_point(_oracle(fun), x, S, 0.3, key, central=False)
    np.testing.assert_allclose(estimators.gradient(S, c, D)[1], [3, -1], atol=1e-13)
    assert queries == 3


def test_curvature_along_directions(key, x64):
    Q = np.array([[2.0, 0.5], [0.5, -1.0]])
    S, _ = direction_sets.directions(key, 2, 2, dtype=jnp.float64)
    x = jnp.array([0.4, -1.0])
    points = estimators.probe_points(x, S, estimators.Stencil(2, 0.1))
    values = jax.vmap(lambda x: jnp.stack([0.5 * x @ Q @ x]))(points)
    _, _, curvature = estimators.read_probe(values, estimators.Stencil(2, 0.1))
    np.testing.assert_allclose(curvature[0], np.diag(S.T @ Q @ S), atol=1e-11)


def test_noise_of_the_estimate_is_the_derived_variance(key):
    n, B, u, sigma = 6, 3, 0.2, 0.05
    noisy = lambda x, k: (sigma * jax.random.normal(k), jnp.zeros((0,)))  # noqa: E731

    @jax.jit
    @jax.vmap
    def squared(k):
        key_s, key_q = jax.random.split(k)
        S, c = direction_sets.directions(key_s, n, B, "sphere")
        _, D, _ = estimators.two_point(noisy, jnp.zeros(n), S, u, key_q)
        return jnp.sum(estimators.gradient(S, c, D)[0] ** 2)

    found = np.asarray(squared(jax.random.split(key, 20_000)))
    expected = estimators.noise_variance(sigma, u, n, B)
    assert abs(found.mean() - expected) < 5.0 * found.std() / np.sqrt(found.size)


def test_common_noise_cancels_and_fresh_noise_does_not(key):
    noisy = lambda x, k: (x[0] + jax.random.normal(k), jnp.zeros((0,)))  # noqa: E731
    S = jnp.eye(2)
    for central in (True, False):
        run = lambda common: estimators.two_point(  # noqa: E731
            noisy,
            jnp.zeros(2),
            S,
            0.5,
            key,
            central=central,  # noqa: B023
            common_noise=common,
        )[1][0]
        np.testing.assert_allclose(run(True), [1.0, 0.0], atol=1e-5)
        assert np.abs(run(False) - np.array([1.0, 0.0])).min() > 1e-2


def test_center_repeats_average_the_noise(key):
    noisy = lambda x, k: (jax.random.normal(k), jnp.zeros((0,)))  # noqa: E731
    S = jnp.eye(2)

    @jax.jit
    @jax.vmap
    def center(k):
        return estimators.two_point(noisy, jnp.zeros(2), S, 0.5, k, center_repeats=25)[0][0]

    values = np.asarray(center(jax.random.split(key, 4000)))
    # The variance of 4000 normal values has a relative error of sqrt(2 / 4000) = 2.2 %.
    assert abs(values.var() * 25 - 1.0) < 5 * 0.0224


def test_one_point_is_unbiased_for_the_smoothed_gradient(key, x64):
    """On a quadratic the smoothed gradient is the gradient itself."""
    Q = np.array([[2.0, 0.5], [0.5, -1.0]])
    x, u, num = jnp.array([0.4, -1.0]), 0.5, 40_000
    fun = lambda x, k: (0.5 * x @ Q @ x, jnp.zeros((0,)))  # noqa: E731

    @jax.jit
    def estimates(keys, baseline):
        def one(k):
            S, c = direction_sets.directions(k, 2, 1, "sphere", jnp.float64)
            D, _ = estimators.one_point(fun, x, S, u, k, baseline=baseline)
            return estimators.gradient(S, c, D)[0]

        g = jax.vmap(one)(keys)
        return g.mean(0), g.std(0)

    spreads = []
    for baseline in (jnp.zeros(1), jnp.array([0.5 * x @ Q @ x])):
        mean, std = estimates(jax.random.split(key, num), baseline)
        assert (np.abs(mean - Q @ x) < 5 * np.asarray(std) / np.sqrt(num)).all()
        spreads.append(np.linalg.norm(std))
    assert spreads[1] < 0.9 * spreads[0]  # what the residual feedback is for


def test_no_query_leaves_the_box_and_linear_functions_stay_exact(key, x64):
    """At a corner the differences are one-sided; along the bent directions they stay exact."""
    lb, ub = jnp.array([0.0, 0.0, 0.0]), jnp.array([1.0, 1.0, 5e-3])
    x = jnp.array([0.0, 1.0, 2e-3])
    a = jnp.array([1.0, -2.0, 3.0])
    S, _ = direction_sets.directions(key, 3, 3, dtype=jnp.float64)
    for central in (True, False):
        plus, minus = estimators.within_box(x, S, 1e-2, lb, ub, central=central)
        points = estimators.probe_points(
            x, plus, estimators.Stencil(plus.shape[1], 1e-2, central), S_minus=minus
        )
        assert bool(((points >= lb[None]) & (points <= ub[None])).all())
        _, D, _ = estimators.two_point(
            lambda x, k: (a @ x, jnp.zeros((0,))),
            x,
            plus,
            1e-2,
            key,
            central=central,
            S_minus=minus,
        )
        used = 0.5 * (plus + minus) if central else plus
        np.testing.assert_allclose(D[0], a @ used, atol=1e-12)
        assert np.linalg.matrix_rank(np.asarray(used)) == 3  # no variable is lost
    inside = jnp.array([0.5, 0.5, 2.5e-3])
    plus, minus = estimators.within_box(inside, S, 1e-3, lb, ub)
    np.testing.assert_array_equal(plus, S)
    np.testing.assert_array_equal(minus, S)


def test_balanced_radius_minimizes_the_sum_of_bias_and_noise():
    """At the minimum of (L u^2)^2 + s^2 n^2 / (2 u^2 B) the two balance up to a constant."""
    s, n, B, L = 1e-3, 8, 4, 2.0
    radii = np.geomspace(1e-3, 1.0, 400)
    total = (L * radii**2) ** 2 + s**2 * n**2 / (2 * radii**2 * B)
    best = radii[total.argmin()]
    assert 0.5 < estimators.balanced_radius(s, n, B, L) / best < 2.0


def test_works_for_functions_without_constraints(key):
    problem = make_problem(lambda x: jnp.sum(x**2), jnp.ones(4))
    S, c = direction_sets.directions(key, 4, 4)
    q0, D, _ = estimators.two_point(problem.q, problem.x0, S, 1e-2, key)
    np.testing.assert_allclose(estimators.gradient(S, c, D), [[2.0] * 4], atol=1e-3)
    assert q0.shape == (1,)


@pytest.mark.parametrize("u", [0.0, -1.0, float("nan"), float("inf")])
def test_a_radius_that_is_not_positive_is_refused(key, u):
    with pytest.raises(ValueError, match="radius u must be positive"):
        estimators.two_point(_oracle(_smooth), jnp.zeros(3), jnp.eye(3), u, key)


def test_shapes_that_do_not_agree_are_refused(key):
    with pytest.raises(ValueError, match="must agree"):
        estimators.two_point(_oracle(_smooth), jnp.zeros(3), jnp.eye(2), 0.1, key)
