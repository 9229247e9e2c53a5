"""Oracles for the primal-dual methods: numpy loops over quadratics, closed forms, and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.zeroth_order import method, problem
from jaxlab.zeroth_order.baselines import lagrangian, primal_dual

N = 4


def quadratics(num_constraints, seed=3):
    """q_k(x) = x'H_k x/2 + g_k'x + r_k for f and each h, f strongly convex."""
    rng = np.random.default_rng(seed)
    G = rng.normal(size=(1 + num_constraints, N, N))
    H = 0.2 * (G + G.transpose(0, 2, 1))
    H[0] = G[0] @ G[0].T / N + np.eye(N)
    return H, rng.normal(size=H.shape[:2]), rng.normal(size=H.shape[:1])


def host_values(coefficients, x):
    H, g, r = coefficients
    q = 0.5 * np.einsum("kij,i,j->k", H, x, x) + g @ x + r
    return q[0], q[1:]


def recorded(coefficients, m_eq, x0, **bounds):
    """The problem and the list of all points it is asked for, in order."""
    points = []

    def fun(x):
        points.append(np.array(x))
        return host_values(coefficients, x)

    on_device = problem.from_host(fun, len(coefficients[2]) - 1)
    return problem.make_problem(on_device, jnp.asarray(x0), m_eq=m_eq, **bounds), points


def pairs(h, m_eq):
    """Each equality as two inequalities."""
    return np.array([*h[:m_eq], *(-h[:m_eq]), *h[m_eq:]])


def lagrangian_value(coefficients, m_eq, x, y):
    f, h = host_values(coefficients, x)
    return f + y @ pairs(h, m_eq)


def forward_gradient(coefficients, m_eq, x, y, u):
    """Forward differences of a quadratic L: its gradient plus u/2 times the curvatures."""
    H, g, _ = coefficients
    slopes = H @ x + g + 0.5 * u * np.einsum("kii->ki", H)
    return slopes[0] + y @ np.concatenate(
        [slopes[1:][:m_eq], -slopes[1:][:m_eq], slopes[1 + m_eq :]]
    )


def test_duals_have_the_layout_of_as_inequalities(x64):
    """y'c = lam'h for every y, with c the constraints of the problem without equalities."""
    coefficients, m_eq = quadratics(4), 2
    H, g, r = map(jnp.asarray, coefficients)

    def fun(x):
        q = 0.5 * (H @ x) @ x + g @ x + r
        return q[0], q[1:]

    prob = problem.make_problem(fun, jnp.ones(N), m_eq=m_eq)
    x = jnp.arange(1.0, N + 1)
    _, h = prob.exact(x)
    _, c = problem.as_inequalities(prob).exact(x)
    np.testing.assert_array_equal(lagrangian.inequalities(h, m_eq), c)
    y = jnp.asarray(np.random.default_rng(0).uniform(size=lagrangian.init_duals(prob).shape))
    # Round-off of a sum of six terms of order 10.
    np.testing.assert_allclose(lagrangian.multipliers(y, m_eq) @ h, y @ c, rtol=1e-13)
    f, _ = prob.exact(x)
    stacked = jnp.concatenate([f[None], h])
    np.testing.assert_allclose(lagrangian.weights(y, m_eq) @ stacked, f + y @ c, rtol=1e-13)


@pytest.mark.parametrize("m", [0, 3], ids=["m0", "m3"])
def test_minmax_equals_a_loop_over_its_own_queries(x64, key, m):
    """The directions are read off the recorded queries; u is large, so they are read exactly."""
    coefficients, m_eq = quadratics(m), min(m, 1)
    alpha, beta, u, y_max, num_steps = 0.07, 0.2, 0.1, 0.5, 8
    prob, points = recorded(coefficients, m_eq, np.ones(N))
    algorithm = primal_dual.make_zo_minmax(prob, alpha=alpha, beta=beta, u=u, y_max=y_max)
    state, history = jax.jit(lambda key: method.run(algorithm, key, num_steps=num_steps))(key)

    x, y, capped = np.ones(N), np.zeros(m + m_eq), m == 0
    np.testing.assert_array_equal(points[0], x)
    for t in range(num_steps):
        probe, following = points[1 + 2 * t : 3 + 2 * t]
        s = (probe - x) / u
        np.testing.assert_allclose(np.linalg.norm(s), 1.0, rtol=1e-13)
        rise = lagrangian_value(coefficients, m_eq, x + u * s, y)
        slope = (rise - lagrangian_value(coefficients, m_eq, x, y)) / u
        x = x - alpha * N * slope * s
        # Rounding of values of order 10, divided by u: 1e-13.
        np.testing.assert_allclose(following, x, rtol=1e-11)
        x = following
        f, h = host_values(coefficients, x)
        y = np.clip(y + beta * pairs(h, m_eq), 0.0, y_max)
        capped |= bool(np.any(y == y_max))
        np.testing.assert_allclose(history["zo/f"][t], f, rtol=1e-10)
        np.testing.assert_allclose(history["zo/dual_max"][t], max(y, default=0.0), atol=1e-10)
    assert capped
    np.testing.assert_allclose(state.next_x, x, rtol=1e-10)
    np.testing.assert_allclose(state.inner.y, y, atol=1e-10)
    np.testing.assert_allclose(state.h, host_values(coefficients, x)[1], atol=1e-9)
    assert int(state.queries) == len(points) == 1 + 2 * num_steps
    assert len({point.tobytes() for point in points}) == len(points)  # none asked twice


def test_zoagp_equals_a_loop_with_the_differences_in_closed_form(x64, key):
    coefficients, m, m_eq = quadratics(3), 3, 1
    alpha, beta, u0, decay, y_max, num_steps = 0.2, 0.3, 0.05, 0.4, 0.6, 9
    prob, points = recorded(coefficients, m_eq, np.ones(N))
    algorithm = primal_dual.make_zoagp(prob, alpha=alpha, beta=beta, u=u0, decay=decay, y_max=y_max)
    state, history = jax.jit(lambda key: method.run(algorithm, key, num_steps=num_steps))(key)

    x, y, capped = np.ones(N), np.zeros(m + m_eq), False
    for t in range(1, num_steps + 1):
        u, step = u0 / t**0.5, alpha * 101 / (100 + t**0.5)
        x = x - step * forward_gradient(coefficients, m_eq, x, y, u)
        f, h = host_values(coefficients, x)
        y = np.clip(y + beta * (pairs(h, m_eq) - decay / t**0.25 * y), 0.0, y_max)
        capped |= bool(np.any(y == y_max))
        # Rounding of values of order 10 divided by u > 0.01.
        np.testing.assert_allclose(history["zo/f"][t - 1], f, rtol=1e-10)
    assert capped
    np.testing.assert_allclose(state.next_x, x, rtol=1e-10)
    np.testing.assert_allclose(state.inner.y, y, atol=1e-10)
    assert int(state.queries) == len(points) == 1 + num_steps * (N + 1)
    assert len({point.tobytes() for point in points}) == len(points)


def test_zoceg_equals_a_loop_with_the_differences_in_closed_form(x64, key):
    coefficients, m, m_eq = quadratics(3), 3, 1
    alpha, u, num_steps = 0.1, 0.05, 8
    prob, points = recorded(coefficients, m_eq, np.ones(N))
    algorithm = primal_dual.make_zoceg(prob, alpha=alpha, u=u)
    state, history = jax.jit(lambda key: method.run(algorithm, key, num_steps=num_steps))(key)

    def ascend(y, at):
        return np.maximum(y + alpha * pairs(host_values(coefficients, at)[1], m_eq), 0.0)

    x, y = np.ones(N), np.zeros(m + m_eq)
    for t in range(num_steps):
        np.testing.assert_allclose(history["zo/f"][t], host_values(coefficients, x)[0], rtol=1e-10)
        x_trial = x - alpha * forward_gradient(coefficients, m_eq, x, y, u)
        y_trial = ascend(y, x)
        x, y = (
            x - alpha * forward_gradient(coefficients, m_eq, x_trial, y_trial, u),
            ascend(y, x_trial),
        )
    np.testing.assert_allclose(state.next_x, x, rtol=1e-10)
    np.testing.assert_allclose(state.inner, y, atol=1e-10)
    assert int(state.queries) == len(points) == num_steps * 2 * (N + 1)
    assert len({point.tobytes() for point in points}) == len(points)


def test_zoeg_equals_a_loop_over_its_own_queries(x64, key):
    coefficients, m, m_eq = quadratics(3), 3, 1
    alpha, u, B, num_steps = 0.05, 0.1, 2, 5
    prob, points = recorded(coefficients, m_eq, np.ones(N))
    algorithm = primal_dual.make_zoeg(prob, alpha=alpha, u=u, B=B)
    state, _ = jax.jit(lambda key: method.run(algorithm, key, num_steps=num_steps))(key)

    def measure(asked, at, y):
        """The gradient from one batch of queries: `at`, wherever it stands, and B around it."""
        distance = [np.linalg.norm(point - at) for point in asked]
        np.testing.assert_allclose(min(distance), 0.0, atol=1e-11)
        around = [point for point, d in zip(asked, distance, strict=True) if d > 0.5 * u]
        S = (np.array(around) - at[None]) / u
        np.testing.assert_allclose(np.linalg.norm(S, axis=1), np.ones(B), rtol=1e-9)
        base = lagrangian_value(coefficients, m_eq, at, y)
        rise = [lagrangian_value(coefficients, m_eq, at + u * s, y) - base for s in S]
        h = pairs(host_values(coefficients, at)[1], m_eq)
        return N / B * np.array(rise) / u @ S, h, S

    x, y = np.ones(N), np.zeros(m + m_eq)
    for t in range(num_steps):
        first = points[2 * (B + 1) * t : 2 * (B + 1) * t + B + 1]
        second = points[2 * (B + 1) * t + B + 1 : 2 * (B + 1) * (t + 1)]
        grad, h, S = measure(first, x, y)
        x_trial, y_trial = x - alpha * grad, np.maximum(y + alpha * h, 0.0)
        grad, h, S_trial = measure(second, x_trial, y_trial)
        x, y = x - alpha * grad, np.maximum(y + alpha * h, 0.0)
        assert np.max(np.abs(S @ S_trial.T)) < 0.999  # new directions at the trial point
    # Reading directions off x + u s loses 1e-15 / u; five iterations multiply it by about 10.
    np.testing.assert_allclose(state.next_x, x, rtol=1e-9)
    np.testing.assert_allclose(state.inner, y, atol=1e-9)
    assert int(state.queries) == len(points) == num_steps * 2 * (B + 1)
    assert len({point.tobytes() for point in points}) == len(points)


BUILDERS = {
    "minmax": lambda prob: primal_dual.make_zo_minmax(prob, alpha=0.2, u=0.3, B=3),
    "zoagp": lambda prob: primal_dual.make_zoagp(prob, u=0.3),
    "zoeg": lambda prob: primal_dual.make_zoeg(prob, alpha=0.2, u=0.3, B=3),
    "zoceg": lambda prob: primal_dual.make_zoceg(prob, alpha=0.2, u=0.3),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_no_query_leaves_the_box(key, name):
    """float32, a start in a corner, a minimizer outside, one fixed coordinate, a large radius."""
    lower = np.float32([-0.7, -1.0, 0.3, -np.inf])
    upper = np.float32([0.1, 1.0, 0.3, 0.9])
    start = np.float32([0.1, 1.0, 0.3, 0.9])
    prob, points = recorded(
        quadratics(2), 1, start, lower=jnp.asarray(lower), upper=jnp.asarray(upper)
    )
    state, iterates = jax.jit(
        lambda key: method.run(
            BUILDERS[name](prob), key, num_steps=25, observe=lambda state: state.next_x
        )
    )(key)
    asked = np.array(points)
    assert np.all(asked >= lower) and np.all(asked <= upper)
    iterates = np.asarray(iterates)
    assert np.all(iterates >= lower) and np.all(iterates <= upper)
    assert int(state.queries) == len(points)
    assert np.ptp(asked, axis=0)[[0, 1, 3]].min() > 0.05  # it moved


def test_cut_off_directions_shrink_the_gradient_and_mix_nothing(x64, key):
    """At a bound half of the directions lose a component: E g = (g_0/2, g_1/2, g_2, g_3)."""
    grad, B = jnp.array([1.0, -2.0, 3.0, 0.5]), 40_000
    prob = problem.make_problem(
        lambda x: grad @ x,
        jnp.zeros(N),
        lower=jnp.array([-9.0, 0.0, -9.0, -9.0]),
        upper=jnp.array([0.0, 9.0, 9.0, 9.0]),
    )
    algorithm = primal_dual.make_zo_minmax(prob, alpha=1.0, B=B)
    state, _ = jax.jit(lambda key: method.run(algorithm, key, num_steps=1))(key)
    # One direction's estimate has a deviation of at most n |g| = 15 a component: 4.5 deviations.
    np.testing.assert_allclose(-state.next_x, [0.5, -1.0, 3.0, 0.5], atol=4.5 * 15 / B**0.5)


Z = np.array([1.4, 2.0, -1.0, 0.4])
X_STAR = np.array([0.5, *(np.sqrt(0.75) * Z[1:] / np.linalg.norm(Z[1:]))])
Y_BALL = (np.linalg.norm(Z[1:]) / np.sqrt(0.75) - 1.0) / 2.0
Y_LINE = Z[0] - 0.5 - 2.0 * Y_BALL * 0.5


def ball_and_line():
    """min ||x - z||^2/2 with x_0 = 1/2 and ||x||^2 <= 1: minimizer and multipliers known."""

    def fun(x):
        return 0.5 * jnp.sum((x - Z) ** 2), jnp.stack([x[0] - 0.5, jnp.sum(x**2) - 1.0])

    return problem.make_problem(fun, jnp.zeros(N), m_eq=1)


def test_zoceg_reaches_the_saddle_point(x64, key):
    algorithm = primal_dual.make_zoceg(ball_and_line(), alpha=0.1, u=1e-6)
    state, history = jax.jit(lambda key: method.run(algorithm, key, num_steps=2000))(key)
    # Forward differences of step u move the saddle point by O(u).
    np.testing.assert_allclose(state.next_x, X_STAR, atol=1e-5)
    lam = lagrangian.multipliers(state.inner, 1)
    np.testing.assert_allclose(lam, [Y_LINE, Y_BALL], atol=1e-5)
    np.testing.assert_allclose(history["zo/f"][-1], 0.5 * np.sum((X_STAR - Z) ** 2), atol=1e-5)


def test_zoagp_follows_the_regularized_saddle_point(x64, key):
    """Its duals are pulled to 0: it stands where c(x) = lambda_t y, near the constraints."""
    num_steps = 4000
    algorithm = primal_dual.make_zoagp(ball_and_line())
    state, _ = jax.jit(lambda key: method.run(algorithm, key, num_steps=num_steps))(key)
    decay, y = 0.1 / num_steps**0.25, np.asarray(state.inner.y)
    active = y > 0.0
    assert active.tolist() == [Y_LINE > 0.0, Y_LINE < 0.0, True]
    # lambda_t falls by 1/(4t) of itself an iteration, which it follows within 1e-4.
    c = pairs(np.asarray(state.h), 1)
    np.testing.assert_allclose(c[active], decay * y[active], atol=1e-4)
    # The violation lambda y moves x by about as much.
    np.testing.assert_allclose(state.next_x, X_STAR, atol=2.0 * decay * y.max())


@pytest.mark.parametrize("name", ["minmax", "zoeg"])
def test_random_methods_reach_the_saddle_point(x64, key, name):
    """The estimate's error is proportional to the gradient of L, so it vanishes with it."""
    prob = ball_and_line()
    if name == "minmax":
        algorithm = primal_dual.make_zo_minmax(prob, beta=0.05, u=1e-5)
    else:
        algorithm = primal_dual.make_zoeg(prob, alpha=0.05, u=1e-5)
    keys = jax.random.split(key, 16)
    states, _ = jax.jit(
        jax.vmap(lambda key: method.run(algorithm, key, num_steps=3000, log_every=3000))
    )(keys)
    spread = np.std(states.next_x, axis=0, ddof=1) / 4.0
    assert spread.max() < 1e-3
    # Three deviations of the mean of 16 runs, and the bias O(n u) of forward differences.
    assert np.all(np.abs(np.mean(states.next_x, axis=0) - X_STAR) < 3.0 * spread + 1e-4)


@pytest.mark.parametrize("name", BUILDERS)
def test_without_constraints_it_is_gradient_descent(x64, key, name):
    prob = problem.make_problem(lambda x: 0.5 * jnp.sum((x - Z) ** 2), jnp.zeros(N))
    algorithm = {
        "minmax": lambda: primal_dual.make_zo_minmax(prob, u=1e-5),
        "zoagp": lambda: primal_dual.make_zoagp(prob, u=1e-5),
        "zoeg": lambda: primal_dual.make_zoeg(prob, alpha=0.1, u=1e-5),
        "zoceg": lambda: primal_dual.make_zoceg(prob, alpha=0.1, u=1e-5),
    }[name]()
    state, history = jax.jit(lambda key: method.run(algorithm, key, num_steps=500))(key)
    # Linear convergence down to the bias u/2 of forward differences, n u/2 along one direction.
    np.testing.assert_allclose(state.next_x, Z, atol=5e-5)
    assert float(history["zo/dual_max"][-1]) == 0.0


def test_settings_can_be_traced(x64, key):
    """A vmap over settings gives what a builder with those numbers gives."""
    prob = ball_and_line()

    def final(alpha, beta):
        algorithms = (
            primal_dual.make_zo_minmax(prob, alpha=alpha, beta=beta, u=0.1 * beta, y_max=9 * beta),
            primal_dual.make_zoagp(prob, alpha=alpha, beta=beta, u=0.1 * beta, decay=beta),
            primal_dual.make_zoeg(prob, alpha=alpha, u=0.1 * beta),
            primal_dual.make_zoceg(prob, alpha=alpha, u=0.1 * beta),
        )
        return [method.run(algorithm, key, num_steps=20)[0].next_x for algorithm in algorithms]

    together = jax.jit(jax.vmap(final))(jnp.array([0.02, 0.1]), jnp.array([0.01, 0.2]))
    alone = jax.jit(lambda: final(0.1, 0.2))()
    for mapped, numbers in zip(together, alone, strict=True):
        np.testing.assert_allclose(mapped[1], numbers, rtol=1e-9)
        assert np.abs(mapped[0] - mapped[1]).max() > 1e-2


@pytest.mark.parametrize(
    ("build", "settings", "match"),
    [
        (primal_dual.make_zo_minmax, {"alpha": 0.0}, "alpha must be positive"),
        (primal_dual.make_zo_minmax, {"alpha": jnp.asarray(-1.0)}, "alpha must be positive"),
        (primal_dual.make_zo_minmax, {"u": -1.0}, "radius u"),
        (primal_dual.make_zo_minmax, {"B": 0}, "at least 1"),
        (primal_dual.make_zoagp, {"beta": -0.1}, "beta must be positive"),
        (primal_dual.make_zoagp, {"u": 0.0}, "radius u"),
        (primal_dual.make_zoeg, {"alpha": float("nan")}, "alpha must be positive"),
        (primal_dual.make_zoeg, {"B": 0}, "at least 1"),
        (primal_dual.make_zoceg, {"u": float("inf")}, "radius u"),
    ],
)
def test_bad_settings_are_named(build, settings, match):
    with pytest.raises(ValueError, match=match):
        build(ball_and_line(), **settings)
