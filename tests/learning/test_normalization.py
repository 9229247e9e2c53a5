"""Moments of observations against float64 NumPy: offsets, counts, rows left out, floors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.learning import normalization
from jaxlab.learning.normalization import ObsStats


def stream(batches, keeps=None):
    """Statistics after all batches, `[T, B, O]`."""

    @jax.jit
    def run(batches, keeps):
        def one(stats, inputs):
            return normalization.update_obs_stats(stats, *inputs), None

        start = normalization.init_obs_stats(batches.shape[-1])
        return jax.lax.scan(one, start, (batches, keeps))[0]

    keeps = np.ones(batches.shape[:2], bool) if keeps is None else keeps
    return run(jnp.asarray(batches, jnp.float32), jnp.asarray(keeps))


@pytest.mark.parametrize("batch", [1, 5])
def test_moments_far_from_zero_keep_their_digits(batch):
    """Offsets of a million and spreads of one, in float32: the spread to a thousandth."""
    rng = np.random.default_rng(0)
    offset, spread = np.array([0.0, 1e6, -3e4, 1e-3]), np.array([1.0, 1.0, 10.0, 1e-3])
    data = (offset + spread * rng.uniform(-1.0, 1.0, (2000, batch, 4))).astype(np.float32)
    stats = stream(data)
    flat = data.reshape(-1, 4).astype(np.float64)
    assert stats.count == len(flat)
    np.testing.assert_allclose(stats.mean, flat.mean(axis=0), rtol=1e-6, atol=1e-6)
    exact = np.asarray(stats.mean, np.float64) + np.asarray(stats.rest, np.float64)
    assert np.all(np.abs(exact - flat.mean(axis=0)) < 1e-3 * spread)
    np.testing.assert_allclose(stats.square, flat.var(axis=0), rtol=1e-3)
    scaled = np.asarray(normalization.normalize_obs(stats, jnp.asarray(data[:50])))
    want = (data[:50] - flat.mean(axis=0)) / flat.std(axis=0)
    np.testing.assert_allclose(scaled, want, atol=3e-3)


def test_a_batch_among_many_counts_for_its_share():
    """After 3e8 observations one counts for 1 / 3e8 still, and the counter goes on."""
    many = 300_000_000
    one = jnp.ones(1)
    stats = ObsStats(jnp.asarray(many, jnp.int32), 0.0 * one, 0.0 * one, one)
    stats = normalization.update_obs_stats(stats, jnp.full((7, 1), 1e4))
    assert stats.count == many + 7
    share = 7 / (many + 7)
    np.testing.assert_allclose(stats.mean, share * 1e4, rtol=1e-5)
    np.testing.assert_allclose(stats.square, 1 + share * (1e8 * (1 - share) - 1), rtol=1e-5)
    full = stats._replace(count=jnp.asarray(2**31 - 3, jnp.int32))
    assert normalization.update_obs_stats(full, jnp.ones((7, 1))).count == 2**31 - 1


def test_rows_that_failed_or_are_not_finite_are_not_counted():
    rng = np.random.default_rng(1)
    data = rng.normal(size=(6, 4, 3)).astype(np.float32)
    keep = rng.random((6, 4)) < 0.6
    keep[0], keep[3] = False, False  # whole batches, the first among them
    data[~keep] = 1e6
    data[1, 0, 2], data[2, 1, 0], data[4, 2, 1] = np.nan, np.inf, 1e30
    counted = keep & (np.abs(data) < 1e4).all(axis=-1)
    stats = stream(data, keep)
    flat = data[counted].astype(np.float64)
    assert stats.count == len(flat) > 5
    np.testing.assert_allclose(stats.mean, flat.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(stats.square, flat.var(axis=0), rtol=1e-5)
    nothing = stream(np.full((2, 3, 2), np.nan))
    assert nothing.count == 0
    np.testing.assert_array_equal(np.stack([nothing.mean, nothing.square]), [[0, 0], [1, 1]])


def test_a_feature_that_never_moves_stays_small():
    """Its noise of rounding too, and what moves by less than its own last digit."""
    constant = np.array([0.0, 3.0, 1e6, -0.1], np.float32)
    stats = stream(np.broadcast_to(constant, (100, 3, 4)))
    at = normalization.normalize_obs(stats, jnp.asarray(constant))
    np.testing.assert_allclose(at, 0.0, atol=1e-6)
    near = normalization.normalize_obs(stats, jnp.asarray(np.nextafter(constant, 1e9)))
    assert np.abs(near).max() <= 1.0
    far = normalization.normalize_obs(stats, jnp.asarray(constant) + 1e5)
    np.testing.assert_array_equal(far, 10.0)
    assert normalization.normalize_obs(stats, jnp.asarray(constant) + 1e5, bound=3.0).max() == 3.0


@pytest.mark.usefixtures("float16")
def test_trees_and_dtypes():
    """Each part of a dict by its own moments; narrow floats are summed in float32."""
    rng = np.random.default_rng(2)
    data = {"a": rng.normal(5.0, 2.0, (40, 3)), "b": rng.normal(300.0, 9.0, (40, 2, 2))}
    obs = {"a": jnp.asarray(data["a"], jnp.float32), "b": jnp.asarray(data["b"], jnp.float16)}
    stats = jax.tree.map(lambda x: normalization.init_obs_stats(x.shape[1:], x.dtype), obs)
    stats = normalization.update_obs_stats(stats, obs)
    out = normalization.normalize_obs(stats, obs)
    assert (out["a"].dtype, out["b"].dtype) == (jnp.float32, jnp.float16)
    assert stats["b"].mean.dtype == jnp.float32
    for name, x in obs.items():
        seen = np.asarray(x, np.float64)
        want = (seen - seen.mean(axis=0)) / seen.std(axis=0)
        np.testing.assert_allclose(out[name], want, atol=5e-3)
    assert normalization.normalize_obs((), obs) is obs
    integers = normalization.normalize_obs(stats["a"], jnp.ones((3,), jnp.int32))
    np.testing.assert_allclose(
        integers, normalization.normalize_obs(stats["a"], jnp.ones(3)), rtol=1e-6
    )


def test_in_double_precision(x64):
    stats = normalization.init_obs_stats((2,), jnp.float64)
    data = np.random.default_rng(3).normal(1e9, 1.0, (50, 2))
    stats = normalization.update_obs_stats(stats, jnp.asarray(data))
    assert stats.count.dtype == jnp.int32 and stats.mean.dtype == jnp.float64
    np.testing.assert_allclose(stats.square, data.var(axis=0), rtol=1e-6)
    single = normalization.update_obs_stats(
        normalization.init_obs_stats(2), jnp.asarray(data, jnp.float32)
    )
    assert single.mean.dtype == jnp.float32
