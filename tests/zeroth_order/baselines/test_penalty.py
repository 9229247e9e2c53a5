"""Oracles for penalty and switching methods: NumPy loops, closed-form minimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.zeroth_order import method, problem
from jaxlab.zeroth_order.baselines import penalty

Z = np.array([1.0, -2.0, 0.5])
A = np.array([2.0, -1.0, 2.0]) / 3.0  # unit length
EXCESS = float(A @ Z)  # of the unconstrained minimizer in a'x <= 0; the multiplier, too


def curved(x):
    """n = 3, one equality and two inequalities, both signs active on the way from the start."""
    f = jnp.sum((x - 1.0) ** 2) + x[0] * x[1] ** 3
    h_eq = jnp.sum(x**2) - 2.0
    return f, jnp.stack([h_eq, x[0] - 0.5 * x[2] ** 2, 0.3 - x[1]])


def curved_numpy(x):
    f = np.sum((x - 1.0) ** 2) + x[0] * x[1] ** 3
    return f, np.array([np.sum(x**2) - 2.0, x[0] - 0.5 * x[2] ** 2, 0.3 - x[1]])


def projection(dtype, *, equality=False):
    """min ||x - z||^2 / 2 subject to a'x <= 0 (or = 0): x* = z - (a'z) a."""

    def fun(x):
        a, z = jnp.asarray(A, x.dtype), jnp.asarray(Z, x.dtype)
        return 0.5 * jnp.sum((x - z) ** 2), (a @ x)[None]

    return problem.make_problem(fun, jnp.zeros(3, dtype), m_eq=int(equality))


def central(function, x, u, low, high):
    """Differences along the axes over 2u, moved inwards where the box is nearer than u."""
    grad = np.zeros((np.size(function(x)), x.size))
    for i in range(x.size):
        forward, backward = x.copy(), x.copy()
        forward[i] = min(x[i] + u, high)
        backward[i] = max(forward[i] - 2 * u, low)
        forward[i] = min(backward[i] + 2 * u, high)
        grad[:, i] = (function(forward) - function(backward)) / (2 * u)
    return grad


@pytest.mark.parametrize("name", ["quadratic", "exact", "switching"])
def test_trajectory_equals_a_numpy_loop(x64, key, name):
    """With coordinate directions nothing is random; float64, 30 steps, error below 1e-9."""
    low, high, u, alpha, rho, tau = -1.0, 1.2, 1e-3, 0.03, 3.0, 0.01
    start = np.array([1.2, -0.9, 0.4])
    settings = {"alpha": alpha, "u": u, "kind": "coordinate"}
    p = problem.make_problem(curved, jnp.asarray(start), m_eq=1, lower=low, upper=high)
    if name == "switching":
        algorithm = penalty.make_switching(p, tau=tau, **settings)
    elif name == "exact":
        algorithm = penalty.make_exact_penalty(p, rho=rho, **settings)
    else:
        algorithm = penalty.make_quadratic_penalty(p, rho=rho, **settings)
    state, path = jax.jit(
        lambda key: method.run(algorithm, key, num_steps=30, observe=lambda s: s.next_x)
    )(key)

    def split(x):
        f, h = curved_numpy(x)
        return f, np.array([h[0], -h[0], h[1], h[2]])

    def merit(x):
        f, c = split(x)
        excess = np.maximum(c, 0.0)
        return np.array([f + rho * np.sum(excess if name == "exact" else 0.5 * excess**2)])

    def everything(x):
        f, c = split(x)
        return np.concatenate([[f], c])

    x, want = start, []
    for _ in range(30):
        if name == "switching":
            c = split(x)[1]
            row = 1 + int(np.argmax(c)) if np.max(c) > tau else 0
            grad = central(everything, x, u, low, high)[row]
        else:
            grad = central(merit, x, u, low, high)[0]
        x = np.clip(x - alpha * grad, low, high)
        want.append(x)
    np.testing.assert_allclose(path, want, rtol=0, atol=1e-9)
    f, h = curved_numpy(want[-2])  # the last iterate that was measured
    np.testing.assert_allclose(state.f, f, atol=1e-9)
    np.testing.assert_allclose(state.h, h, atol=1e-9)
    assert int(state.queries) == 30 * (1 + 2 * 3)


@pytest.mark.parametrize("equality", [False, True], ids=["inequality", "equality"])
def test_quadratic_penalty_ends_at_its_minimizer(x64, key, equality):
    """x = z - rho s / (1 + rho) a, s = a'z: the violation left is s / (1 + rho).

    The sweep of weights is traced. Central differences of a quadratic along n orthonormal
    directions are exact up to rounding, 1e-16 / 1e-4 per unit of the penalized value, which is up
    to 1e2 here; the kink of [c]_+ is farther than u from every end point.
    """
    p = projection(jnp.float64, equality=equality)

    def end(rho):
        step = 0.5 / (1.0 + rho)  # the curvature along a is 1 + rho: the distance halves
        along = p._replace(x0=jnp.asarray(Z - 0.1 * A))
        algorithm = penalty.make_quadratic_penalty(along, rho=rho, alpha=step, u=1e-4)
        return method.run(algorithm, key, num_steps=60)[0].x

    rho = np.array(penalty.RHO_SWEEP)
    got = jax.jit(jax.vmap(end))(jnp.asarray(rho))
    want = Z - (rho / (1.0 + rho) * EXCESS)[:, None] * A
    np.testing.assert_allclose(got, want, atol=1e-9)


def test_exact_penalty_solves_the_problem_above_the_multiplier(x64, key):
    """x = z - min(rho, s) a: below the multiplier s the penalty is too weak, above it exact.

    The iterate swings across the kink by at most alpha rho, the step of the penalty.
    """
    p = projection(jnp.float64)
    alpha = 0.002

    def end(rho):
        algorithm = penalty.make_exact_penalty(p, rho=rho, alpha=alpha, u=1e-4)
        return method.run(algorithm, key, num_steps=4000)[0].x

    rho = np.array([0.25, 0.5, 1.0]) * EXCESS
    rho = np.concatenate([rho, np.array([2.0, 5.0]) * EXCESS])
    got = jax.jit(jax.vmap(end))(jnp.asarray(rho))
    want = Z - np.minimum(rho, EXCESS)[:, None] * A
    error = np.linalg.norm(got - want, axis=1)
    assert np.all(error[:2] < 1e-3)  # smooth there: exp(-alpha 4000) = 3e-4 of the way is left
    assert np.all(error[2:] < 1e-3 + 2.0 * alpha * rho[2:])


@pytest.mark.parametrize("equality", [False, True], ids=["inequality", "equality"])
def test_switching_stays_within_its_tolerance(key, equality):
    """Once feasible, a step on f raises c by at most alpha ||grad f||, and it ends near x*."""
    p = projection(jnp.float32, equality=equality)
    alpha, tau = 0.01, 1e-3
    algorithm = penalty.make_switching(p._replace(x0=jnp.asarray(Z, jnp.float32)), alpha=alpha)
    _state, path = jax.jit(
        lambda key: method.run(algorithm, key, num_steps=800, observe=lambda s: s.next_x)
    )(key)
    tail = np.asarray(path, np.float64)[300:]
    violation = np.abs(tail @ A) if equality else tail @ A
    steepest = np.linalg.norm(tail - Z, axis=1).max() + 1e-3
    # An equality may be overshot by the restoring step, of length alpha.
    assert violation.max() < tau + alpha * max(steepest, 1.0)
    assert np.mean(tail @ A > tau) > 0.1  # the restoring branch is in use
    x_star = Z - EXCESS * A
    assert np.linalg.norm(tail.mean(axis=0) - x_star) < 2 * alpha


def test_without_constraints_all_three_are_gradient_descent(key):
    """B < n directions drawn from one key: three equal paths, which reach the minimizer."""
    p = problem.make_problem(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(6))
    makers = [penalty.make_quadratic_penalty, penalty.make_exact_penalty, penalty.make_switching]
    settings = {"alpha": 0.1, "B": 3, "u": 0.1}
    runs = [
        jax.jit(lambda key, make=make: method.run(make(p, **settings), key, num_steps=60)[0])(key)
        for make in makers
    ]
    np.testing.assert_allclose(runs[0].next_x, jnp.ones(6), atol=1e-3)
    np.testing.assert_allclose(runs[1].next_x, runs[0].next_x, atol=1e-5)
    np.testing.assert_allclose(runs[2].next_x, runs[0].next_x, atol=1e-5)
    assert int(runs[0].queries) == 60 * 7


def test_no_query_leaves_the_box(key):
    """A query outside the box returns a value that is not finite, so its update is rejected."""
    low, high = -0.5, 0.25

    def fun(x):
        outside = jnp.any((x < low) | (x > high))
        f = jnp.where(outside, jnp.nan, jnp.sum((x - 1.0) ** 2))
        return f, jnp.sum(x, keepdims=True) - 0.6

    p = problem.make_problem(fun, jnp.full(3, 0.2), lower=low, upper=high)
    algorithm = penalty.make_exact_penalty(p, rho=5.0, u=0.1, kind="gaussian", B=4)
    keys = jax.random.split(key, 8)
    state, _ = jax.jit(jax.vmap(lambda key: method.run(algorithm, key, num_steps=50)))(keys)
    np.testing.assert_array_equal(state.rejected, 0)
    assert np.all(np.asarray(state.next_x) <= high)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": 0.0}, "rho must be positive"),
        ({"alpha": -1.0}, "alpha must be positive"),
        ({"u": 0.0}, "radius u must be positive"),
        ({"B": 9}, "at most 3 directions"),
        ({"kind": "coordinate", "B": 2}, "takes all n = 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        penalty.make_exact_penalty(projection(jnp.float32), **settings)
    if "rho" not in settings:
        with pytest.raises(ValueError, match=message):
            penalty.make_switching(projection(jnp.float32), **settings)
