"""Rounding to eight bits: saturation, scales, and the expected error of normal data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.serving.cache import quantization as qz


def test_the_cast_saturates():
    """Plain casts give NaN beyond 464; NaN stays visible."""
    x = jnp.asarray([1e6, -1e6, 500.0, 448.0, 0.3, jnp.nan])
    got = np.asarray(qz.to_fp8(x), np.float32)
    np.testing.assert_array_equal(got[:4], [448.0, -448.0, 448.0, 448.0])
    assert abs(got[4] - 0.3) <= 0.3 / 16 and np.isnan(got[5])


@pytest.mark.parametrize("group", [None, 16, 1])
def test_groups_round_trip(group, key):
    x = jax.random.normal(key, (64, 128)) * jnp.exp2(jnp.arange(64.0) - 32.0)[:, None]
    back = np.asarray(qz.dequantize_groups(qz.quantize_groups(x, group=group)))
    error = np.abs(back - x) / np.abs(x).max(1, keepdims=True)
    assert error.max() <= 1 / 28  # half a step of the largest binade, 16 of 448
    relative = np.abs(back - np.asarray(x)) / np.abs(np.asarray(x))
    if group == 1:
        assert relative.max() < 1e-6  # one number a group is its own scale


def test_expected_error_of_normal_data(key):
    x = jax.random.normal(key, (256, 128))
    back = qz.dequantize_groups(qz.quantize_groups(x))
    rms = float(jnp.sqrt(jnp.mean((back - x) ** 2)))
    assert 0.022 < rms < 0.029  # 2.6 %


def test_blocks_round_trip(key):
    w = jax.random.normal(key, (150, 200)) * jnp.where(jnp.arange(150) < 128, 1.0, 1e3)[:, None]
    q = qz.quantize_blocks(w, block=128)
    assert q.scale.shape == (2, 2) and q.values.shape == w.shape
    back = qz.dequantize_blocks(q, block=128)
    for rows in (slice(0, 128), slice(128, None)):
        part = np.asarray(w[rows])
        assert np.sqrt(((np.asarray(back)[rows] - part) ** 2).mean() / (part**2).mean()) < 0.03


def test_zeros_and_wrong_groups():
    zero = qz.quantize_groups(jnp.zeros((2, 8)))
    np.testing.assert_array_equal(qz.dequantize_groups(zero), 0.0)
    with pytest.raises(ValueError, match="group"):
        qz.quantize_groups(jnp.zeros((2, 8)), group=3)
    with pytest.raises(ValueError, match="block"):
        qz.quantize_blocks(jnp.zeros((2, 8)), block=0)


def test_the_smallest_and_the_largest_numbers_stay_numbers():
    """A scale that would underflow is not divided by; infinity saturates; NaN stays NaN."""
    x = jnp.asarray([[1e-37, 0.0, 0.0], [1e-45, -1e-40, 0.0], [jnp.inf, 1.0, -jnp.inf]])
    got = qz.dequantize_groups(qz.quantize_groups(x))
    assert np.isfinite(np.asarray(got)).all()
    np.testing.assert_allclose(got[:2], 0.0, atol=1e-36)
    np.testing.assert_allclose(got[2, [0, 2]], [3.4028e38, -3.4028e38], rtol=1e-4)
    spoiled = qz.quantize_groups(jnp.asarray([[jnp.nan, 1.0]]))
    assert np.isnan(np.asarray(spoiled.values.astype(jnp.float32))[0, 0])


def test_blocks_need_their_own_size(key):
    q = qz.quantize_blocks(jax.random.normal(key, (12, 8)), block=4)
    for block in (3, 8):
        with pytest.raises(ValueError, match="blocks of"):
            qz.dequantize_blocks(q, block=block)
    with pytest.raises(ValueError, match="at least 1"):
        qz.dequantize_blocks(q, block=0)


def test_rounding_is_a_share_of_an_element_or_of_the_scale():
    """1/16 of normal elements, 2^-10 of the scale below them."""
    x = jnp.concatenate([jnp.geomspace(1e-6, 448.0, 4001), jnp.asarray([448.0])])
    error = np.abs(np.asarray(qz.to_fp8(x), np.float64) - np.asarray(x, np.float64))
    assert np.all(error <= np.maximum(np.asarray(x) / 16, 2.0**-10))
    assert (error / np.asarray(x)).max() > 0.9  # a share of the element alone is no bound


def test_calibrated_scales_fill_the_range(key):
    """One number for a tensor, one a token, one a page; those a token are `quantize_groups`'."""
    x = jax.random.normal(key, (3, 5, 8)) * jnp.exp2(jnp.arange(3.0))[:, None, None]
    for axis, shape in ((None, ()), (-1, (3, 5)), ((-2, -1), (3,))):
        scale = qz.calibrate(x, axis=axis)
        assert scale.shape == shape and scale.dtype == jnp.float32
        np.testing.assert_allclose(scale, np.abs(np.asarray(x)).max(axis) / 448.0, rtol=1e-6)
    # Two programs: a division may be a product with the reciprocal in one of them.
    np.testing.assert_allclose(
        qz.calibrate(x, axis=-1), qz.quantize_groups(x).scale[..., 0], rtol=3e-7
    )
