"""Timings of zeroth-order optimization: what they count, and the rivals that they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import zeroth_order
from jaxlab import zeroth_order as zo
from jaxlab.zeroth_order.problems import policy_search


def test_the_batched_oracle_in_numpy_is_the_problem(x64):
    """What the rival in NumPy queries is what ours queries."""
    data = zo.draw_curved_quadratics(3)
    points = np.random.default_rng(0).normal(size=(3, 2, 10))
    f, h = zeroth_order._evaluate(data, points)
    exact = jax.jit(jax.vmap(lambda one, x: jax.vmap(zo.curved_quadratic(one).exact)(x)))
    want_f, want_h = exact(jax.tree.map(jnp.asarray, data), jnp.asarray(points))
    np.testing.assert_allclose(f, want_f, rtol=1e-12)
    np.testing.assert_allclose(h, want_h, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_timings_at_tiny_sizes():
    """Work is counted right."""
    (batch,) = zeroth_order.batches(3, 4)
    (stream,) = zeroth_order.streamed(1000, 8)
    (tuned,) = zeroth_order.rollouts(2, 3)
    for item, work in ((batch, 12.0), (stream, 8.0), (tuned, 2 * 17 * 4.0)):
        assert item.work == work and item.rival is not None
        assert item.rate == pytest.approx(work / item.ours.median_s)


def test_the_rival_in_numpy_makes_the_same_rollouts_as_the_problem():
    gains = policy_search.START[None] + np.linspace(-0.1, 0.1, 24).reshape(3, 2, 4)
    cost, peak = zeroth_order._numpy_rollouts(gains)
    exact = jax.vmap(policy_search.policy_search_problem().exact)
    f, h = exact(jnp.asarray(gains, jnp.float32).reshape(3, 8))
    np.testing.assert_allclose(cost, f, rtol=1e-5)
    np.testing.assert_allclose(peak / policy_search.MAX_SPEED[None] - 1.0, h, atol=1e-5)
