"""Oracles for SZO-ConEx: a NumPy loop with the same directions, and a convex program's solution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.zeroth_order import direction_sets, method, problem
from jaxlab.zeroth_order.baselines import conex

TARGET = np.array([2.0, 1.0])


def mixed(x):
    """One equality, then one inequality."""
    return jnp.sum(x**4) + x[0], jnp.stack([x[0] + x[1] ** 2 - 1.0, jnp.sum(x**2) - 1.5])


def scalar_functions(x):
    """f, h, -h, c in NumPy: the functions that the method keeps apart."""
    h, c = x[0] + x[1] ** 2 - 1.0, np.sum(x**2) - 1.5
    return np.array([np.sum(x**4) + x[0], h, -h, c])


def test_trajectory_equals_a_numpy_loop(x64, key):
    """The directions are drawn again from the same keys; float64, 12 steps."""
    alpha, beta, u, theta, low, high, steps = 0.03, 0.4, 0.01, 0.7, -0.9, 1.0, 12
    start = np.array([0.9, -0.2, 0.6])
    p = problem.make_problem(mixed, jnp.asarray(start), m_eq=1, lower=low, upper=high)
    algorithm = conex.make_szo_conex(p, alpha=alpha, beta=beta, u=u, theta=theta)

    def observe(state):
        return state.next_x, state.inner.y, state.key

    state, (path, duals, _) = jax.jit(
        lambda key: method.run(algorithm, key, num_steps=steps, observe=observe)
    )(key)

    x, y, x_prev, values, slopes, modeled = start, np.zeros(3), start, None, None, None
    chain = jax.random.split(key)[0]
    xs, ys = [], []
    for _ in range(steps):
        chain, key_update = jax.random.split(chain)
        key_directions = jax.random.split(key_update)[0]
        S = np.asarray(direction_sets.directions(key_directions, 3, 4, "gaussian", jnp.float64)[0])
        ahead, grads = np.zeros(4), np.zeros((4, 3))
        for i in range(4):  # one direction and one pair of points for each function
            point = np.clip(x + u * S[:, i], low, high)
            ahead[i] = scalar_functions(point)[i]
            grads[i] = (ahead[i] - scalar_functions(x)[i]) / u * (point - x) / u
        model = ahead[1:] if values is None else values + slopes @ (x - x_prev)
        modeled = model if modeled is None else modeled
        y = np.maximum(y + beta * ((1.0 + theta) * model - theta * modeled), 0.0)
        x_prev, values, slopes, modeled = x, ahead[1:], grads[1:], model
        x = np.clip(x - alpha * (grads[0] + y @ grads[1:]), low, high)
        xs.append(x)
        ys.append(y)
    np.testing.assert_allclose(duals, ys, rtol=0, atol=1e-10)
    np.testing.assert_allclose(path, xs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(state.average, np.mean(xs, axis=0), rtol=0, atol=1e-10)
    assert int(state.queries) == steps * 2 * (1 + 2 + 1)
    f, h = mixed(xs[-2])  # the last iterate measured; the mean of equal values is the value
    np.testing.assert_allclose(state.f, f, rtol=1e-12)
    np.testing.assert_allclose(state.h, h, rtol=1e-10, atol=1e-12)


def disc(sigma):
    """min ||x - t||^2 / 2 on the unit disc: x* = t / ||t||."""

    def fun(x, key):
        key_f, key_h = jax.random.split(key)
        f = 0.5 * jnp.sum((x - jnp.asarray(TARGET, x.dtype)) ** 2)
        h = jnp.sum(x**2, keepdims=True) - 1.0
        noise_f = sigma * jax.random.normal(key_f, (), x.dtype)
        return f + noise_f, h + sigma * jax.random.normal(key_h, (1,), x.dtype)

    return problem.make_problem(fun, jnp.zeros(2), takes_key=True, sigma=sigma)


def test_average_approaches_the_solution(key):
    """Without and with noise, 8 seeds each; steps and noise are traced.

    The transient, some 1 / alpha of the 1500 steps, stays in the average: 5 percent of the way.
    """

    def end(key, sigma, alpha, beta):
        algorithm = conex.make_szo_conex(disc(sigma), alpha=alpha, beta=beta)
        return method.run(algorithm, key, num_steps=1500, log_every=1500)[0]

    sigma = jnp.repeat(jnp.array([0.0, 1e-3]), 8)
    batched = jax.jit(jax.vmap(end, in_axes=(0, 0, None, None)))
    state = batched(jax.random.split(key, 16), sigma, jnp.float32(0.01), jnp.float32(0.05))
    average = np.asarray(state.average, np.float64).reshape(2, 8, 2)
    duals = np.asarray(state.inner.y).reshape(2, 8)
    x_star = TARGET / np.linalg.norm(TARGET)
    y_star = 0.5 * (np.linalg.norm(TARGET) - 1.0)  # the multiplier of the solution
    assert np.all(np.linalg.norm(average.mean(axis=1) - x_star, axis=1) < 0.05)
    assert np.all(np.abs(duals.mean(axis=1) - y_star) < 0.2 * y_star)


def test_without_constraints_it_is_gradient_descent(key):
    p = problem.make_problem(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(3))
    state, _ = jax.jit(lambda key: method.run(conex.make_szo_conex(p, u=1e-2), key, num_steps=600))(
        key
    )
    np.testing.assert_allclose(state.next_x, jnp.ones(3), atol=0.1)
    assert int(state.queries) == 2 * 600
    assert state.inner.y.shape == (0,)


def test_bad_settings():
    with pytest.raises(ValueError, match="beta must be positive"):
        conex.make_szo_conex(disc(0.0), beta=0.0)
    with pytest.raises(ValueError, match="radius u must be positive"):
        conex.make_szo_conex(disc(0.0), u=-1.0)
