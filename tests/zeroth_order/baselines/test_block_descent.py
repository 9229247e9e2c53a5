"""Oracles for the block methods: a numpy loop over the queries they made, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.zeroth_order import method, problem
from jaxlab.zeroth_order.baselines import block_descent

N, B_SIZE = 5, 2


def quadratics(num_constraints, seed=5):
    """q_k(x) = x'H_k x/2 + g_k'x + r_k for f and each h, f strongly convex."""
    rng = np.random.default_rng(seed)
    G = rng.normal(size=(1 + num_constraints, N, N))
    H = 0.2 * (G + G.transpose(0, 2, 1))
    H[0] = G[0] @ G[0].T / N + np.eye(N)
    return H, rng.normal(size=H.shape[:2]), rng.normal(size=H.shape[:1])


def host_values(coefficients, x):
    H, g, r = coefficients
    return 0.5 * np.einsum("kij,i,j->k", H, x, x) + g @ x + r


def recorded(coefficients, m_eq, x0, **bounds):
    """The problem and the list of all points it is asked for."""
    points = []

    def fun(x):
        points.append(np.array(x))
        q = host_values(coefficients, x)
        return q[0], q[1:]

    on_device = problem.from_host(fun, len(coefficients[2]) - 1)
    return problem.make_problem(on_device, jnp.asarray(x0), m_eq=m_eq, **bounds), points


def pairs(h, m_eq):
    """Each equality as two inequalities."""
    return np.array([*h[:m_eq], *(-h[:m_eq]), *h[m_eq:]])


@pytest.mark.parametrize("smoothed", [False, True], ids=["gda", "sgda"])
@pytest.mark.parametrize("m", [0, 3], ids=["m0", "m3"])
def test_equals_a_loop_over_its_own_queries(x64, key, smoothed, m):
    """The blocks are read off the recorded queries, everything else is computed anew."""
    coefficients, m_eq = quadratics(m), min(m, 1)
    alpha, beta, u0, y_max, num_steps = 0.12, 0.3, 0.04, 0.7, 12
    x = np.array([0.2, -3.0, 0.5, 2.0, -0.1])
    prob, points = recorded(coefficients, m_eq, x)
    settings = {"alpha": alpha, "beta": beta, "u": u0, "block_size": B_SIZE, "y_max": y_max}
    if smoothed:
        algorithm = block_descent.make_zob_sgda(prob, num_steps=num_steps, **settings)
    else:
        algorithm = block_descent.make_zob_gda(prob, **settings)
    state, history = jax.jit(lambda key: method.run(algorithm, key, num_steps=num_steps))(key)

    num_blocks = N / B_SIZE
    gamma = min(
        1 / 40, 1 / np.sqrt(num_steps * num_blocks), np.sqrt(alpha / (768 * num_blocks * beta))
    )
    p = num_blocks * gamma / alpha if smoothed else 0.0
    y, z, capped, moved = np.zeros(m + m_eq), x.copy(), m == 0, np.zeros(N)
    for k in range(num_steps):
        asked = points[k * (B_SIZE + 1) : (k + 1) * (B_SIZE + 1)]
        # Rounding of values of order 10 divided by steps of order 0.01: 1e-12 after a few steps.
        away = np.abs(np.array(asked) - x) > 1e-6
        block = np.flatnonzero(away.any(axis=0))
        assert len(block) == B_SIZE and sorted(away.sum(axis=1)) == [0, *[1] * B_SIZE]
        q0 = host_values(coefficients, x)
        grad = np.zeros(B_SIZE)
        for j, i in enumerate(block):
            step = u0 / np.sqrt(k + 1) * max(1.0, abs(x[i])) * np.eye(N)[i]
            nearest = min(np.abs(point - x - step).max() for point in asked)
            np.testing.assert_allclose(nearest, 0.0, atol=1e-11)
            slope = (host_values(coefficients, x + step) - q0) / step[i]
            grad[j] = slope[0] + y @ pairs(slope[1:], m_eq) + p * (x[i] - z[i])
        np.testing.assert_allclose(history["zo/f"][k], q0[0], rtol=1e-10)
        y = np.clip(y + beta * pairs(q0[1:], m_eq), 0.0, y_max)
        capped |= bool(np.any(y == y_max))
        np.testing.assert_allclose(history["zo/dual_max"][k], max(y, default=0.0), atol=1e-10)
        x[block] -= alpha * grad
        z = (1 - gamma) * z + gamma * x
        moved[block] += 1
    assert capped and np.all(moved > 0)
    np.testing.assert_allclose(state.next_x, x, rtol=1e-9)
    np.testing.assert_allclose(state.inner.y if smoothed else state.inner, y, atol=1e-10)
    if smoothed:
        np.testing.assert_allclose(state.inner.z, z, rtol=1e-9)
    assert int(state.queries) == len(points) == num_steps * (B_SIZE + 1)
    assert len({point.tobytes() for point in points}) == len(points)  # none asked twice


def test_every_coordinate_is_drawn_equally_often(key):
    """Blocks are uniform without replacement: each coordinate in b/n of them."""
    prob = problem.make_problem(lambda x: jnp.sum(x), jnp.zeros(N))
    algorithm = block_descent.make_zob_gda(prob, alpha=1.0, u=1.0, block_size=B_SIZE)
    num_steps = 2000
    state, _ = jax.jit(lambda key: method.run(algorithm, key, num_steps=num_steps))(key)
    # Every draw lowers its coordinate by 1, up to the rounding of slopes in float32.
    counts, share = -np.asarray(state.next_x), B_SIZE / N
    deviation = np.sqrt(num_steps * share * (1 - share))
    np.testing.assert_allclose(counts, num_steps * share, atol=4 * deviation)
    np.testing.assert_allclose(counts.sum(), num_steps * B_SIZE, rtol=0.01)


@pytest.mark.parametrize(("n", "gda", "sgda"), [(1, 1, 1), (5, 3, 2), (16, 4, 3), (17, 5, 4)])
def test_default_blocks(key, n, gda, sgda):
    """ceil(sqrt n) and ceil(0.75 sqrt n), seen in the query counts."""
    prob = problem.make_problem(lambda x: jnp.sum(x**2), jnp.ones(n))
    both = block_descent.make_zob_gda(prob), block_descent.make_zob_sgda(prob, num_steps=10)
    states = jax.jit(lambda key: [a.step(a.init(key))[0] for a in both])(key)
    for state, block in zip(states, (gda, sgda), strict=True):
        assert int(state.queries) == block + 1
        assert int(np.sum(np.asarray(state.next_x) != 1.0)) == block


def test_moved_points_by_hand(x64):
    """Room above; at the upper bound; less room than a step on both sides, twice; none at all."""
    x = jnp.array([0.0, 1.0, 0.4, 0.2, 2.0, -1.0])
    lb = jnp.array([-1.0, 0.0, 0.0, 0.0, 2.0, -1.0])
    ub = jnp.array([1.0, 1.0, 0.5, 0.5, 2.0, jnp.inf])
    size = jnp.array([0.5, 0.25, 0.5, 0.5, 0.5, 0.5])
    idx = jnp.array([5, 0, 1, 2, 3, 4])
    points, steps = block_descent.moved_points(x, idx, size, lb, ub)
    want = np.array([0.5, 0.5, -0.25, -0.4, 0.3, 0.0])
    np.testing.assert_allclose(steps, want, rtol=1e-15)
    moved = np.tile(x, (6, 1))
    moved[np.arange(6), idx] += want
    np.testing.assert_allclose(points, moved, rtol=1e-15)

    A = np.random.default_rng(0).normal(size=(3, 6))
    quotients = block_descent.slopes(points @ A.T, A @ x, steps)
    # Slopes of linear functions, up to the rounding of values of order 1 divided by 0.25.
    np.testing.assert_allclose(quotients[:-1], A.T[idx[:-1]], atol=1e-14)
    np.testing.assert_array_equal(quotients[-1], np.zeros(3))


@pytest.mark.parametrize("smoothed", [False, True], ids=["gda", "sgda"])
def test_no_query_leaves_the_box(key, smoothed):
    """float32, a start in a corner, a minimizer outside, one fixed coordinate, large steps."""
    lower = np.float32([-0.7, -1.0, 0.3, -np.inf, 0.0])
    upper = np.float32([0.1, 1.0, 0.3, 0.9, 0.2])
    start = np.float32([0.1, 1.0, 0.3, 0.9, 0.0])
    prob, points = recorded(
        quadratics(2), 1, start, lower=jnp.asarray(lower), upper=jnp.asarray(upper)
    )
    if smoothed:
        algorithm = block_descent.make_zob_sgda(prob, num_steps=40, u=0.3, block_size=3)
    else:
        algorithm = block_descent.make_zob_gda(prob, u=0.3, block_size=3)
    state, iterates = jax.jit(
        lambda key: method.run(algorithm, key, num_steps=40, observe=lambda state: state.next_x)
    )(key)
    asked, iterates = np.array(points), np.asarray(iterates)
    assert np.all(asked >= lower) and np.all(asked <= upper)
    assert np.all(iterates >= lower) and np.all(iterates <= upper)
    assert int(state.queries) == len(points)
    assert np.ptp(asked, axis=0)[[0, 1, 3, 4]].min() > 0.05  # it moved


Z = np.array([1.4, 2.0, -1.0, 0.4, 0.0])
X_STAR = np.array([0.5, *(np.sqrt(0.75) * Z[1:] / np.linalg.norm(Z[1:]))])
Y_BALL = (np.linalg.norm(Z[1:]) / np.sqrt(0.75) - 1.0) / 2.0


def ball_and_line():
    """min ||x - z||^2/2 with x_0 = 1/2 and ||x||^2 <= 1: minimizer and multipliers known."""

    def fun(x):
        return 0.5 * jnp.sum((x - Z) ** 2), jnp.stack([x[0] - 0.5, jnp.sum(x**2) - 1.0])

    return problem.make_problem(fun, jnp.zeros(N), m_eq=1)


@pytest.mark.parametrize("smoothed", [False, True], ids=["gda", "sgda"])
def test_reaches_the_saddle_point_with_the_published_settings(x64, key, smoothed):
    """A block's gradient has no error at the saddle point, so the randomness vanishes there."""
    num_steps = 6000
    if smoothed:
        algorithm = block_descent.make_zob_sgda(ball_and_line(), num_steps=num_steps)
    else:
        algorithm = block_descent.make_zob_gda(ball_and_line())
    states, _ = jax.jit(
        jax.vmap(lambda key: method.run(algorithm, key, num_steps=num_steps, log_every=1000))
    )(jax.random.split(key, 4))
    y = np.asarray(states.inner.y if smoothed else states.inner)
    # The step u_k = 0.003 / sqrt(6000) = 4e-5 biases the gradient by up to u_k (1 + 2y) / 2.
    np.testing.assert_allclose(states.next_x, np.tile(X_STAR, (4, 1)), atol=2e-4)
    np.testing.assert_allclose(y[:, 2], np.full(4, Y_BALL), atol=5e-4)


@pytest.mark.parametrize(
    ("num_steps", "beta", "gamma"),
    [
        (10, 1e-4, 1 / 40),
        (4000, 1e-4, 1 / np.sqrt(4000 * 2.5)),
        (10, 0.5, np.sqrt(0.1 / (768 * 2.5 * 0.5))),
    ],
    ids=["cap", "horizon", "stability"],
)
def test_speed_of_the_center(x64, key, num_steps, beta, gamma):
    """z+ - z = gamma (x+ - z) with the least of three speeds, for N = 5/2 blocks."""
    algorithm = block_descent.make_zob_sgda(
        ball_and_line(), num_steps=num_steps, beta=beta, block_size=2
    )
    state, _ = jax.jit(lambda key: algorithm.step(algorithm.init(key)))(key)
    np.testing.assert_allclose(state.inner.z, gamma * state.next_x, rtol=1e-12)  # z started at 0
    assert np.abs(state.next_x).max() > 0.01


def test_settings_can_be_traced(x64, key):
    """A vmap over settings gives what a builder with those numbers gives."""
    prob = ball_and_line()

    def final(alpha, beta):
        settings = {"alpha": alpha, "beta": beta, "u": 0.1 * beta, "y_max": 9 * beta}
        algorithms = (
            block_descent.make_zob_gda(prob, **settings),
            block_descent.make_zob_sgda(prob, num_steps=20, **settings),
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
        (block_descent.make_zob_gda, {"alpha": 0.0}, "alpha must be positive"),
        (block_descent.make_zob_gda, {"u": 0.0}, "radius u"),
        (block_descent.make_zob_gda, {"block_size": 6}, "between 1 and n = 5"),
        (block_descent.make_zob_sgda, {"num_steps": 0}, "num_steps must be positive"),
        (block_descent.make_zob_sgda, {"num_steps": 9, "beta": 0.0}, "beta must be positive"),
        (block_descent.make_zob_sgda, {"num_steps": 9, "block_size": 0}, "between 1 and n = 5"),
    ],
)
def test_bad_settings_are_named(build, settings, match):
    with pytest.raises(ValueError, match=match):
        build(ball_and_line(), **settings)
