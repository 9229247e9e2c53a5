"""Oracles for the query up-projection: norm, product and rotation one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxlab.kernels import compat
from jaxlab.kernels.rms_up_rope import api, mosaic_gpu, mosaic_tpu


def draw(rng, N=5, R=24, H=3, C=8, dtype=np.float32):
    low, up = (jnp.asarray(rng.normal(size=s), dtype) for s in ((N, R), (R, H, C)))
    return low, up, jnp.asarray(rng.integers(0, 1000, N), jnp.int32)


def oracle(low, up, position, theta=5e5, eps=1e-5, scale=1.0):
    """NumPy in float64: norm first, then the product, then complex rotation."""
    low, up = (np.asarray(x).astype(np.float64) for x in (low, up))
    if eps is not None:
        low = low / np.sqrt((low**2).mean(-1, keepdims=True) + eps)
    x = np.einsum("nr,rhc->nhc", low, up)
    half = x.shape[-1] // 2
    angle = np.asarray(position, float)[:, None] * theta ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
    return scale * np.concatenate([z.real, z.imag], -1)


@pytest.mark.parametrize("eps", [1e-5, None], ids=["norm", "plain"])
def test_is_norm_product_rotation(eps, x64):
    operands = draw(np.random.default_rng(0), dtype=np.float64)
    got = jax.jit(lambda *x: api.rms_up_rope(*x, eps=eps, theta=100.0, scale=0.3))(*operands)
    np.testing.assert_allclose(got, oracle(*operands, 100.0, eps, 0.3), atol=1e-12)


def test_gradient(x64):
    """Against finite differences, through the norm too."""
    low, up, position = draw(np.random.default_rng(1), N=2, R=6, H=2, C=4, dtype=np.float64)
    fn = lambda low, up: jnp.sin(api.rms_up_rope(low, up, position))  # noqa: E731
    check_grads(fn, (low, up), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_kernels_in_the_interpreter():
    rng = np.random.default_rng(2)
    low, up, position = draw(rng, N=150, R=128, H=2, C=128, dtype=jnp.bfloat16)
    wide = jnp.asarray(low, jnp.float32)
    factor = 0.1 * jax.lax.rsqrt(jnp.mean(wide**2, -1) + 1e-5)
    frequency = 5e5 ** (-np.arange(64) / 64)
    angle = jnp.asarray(np.asarray(position)[:, None] * frequency, jnp.float32)
    operands = (low, up, factor, jnp.cos(angle), jnp.sin(angle))
    want = oracle(low, up, position, scale=0.1)
    for kernel in (mosaic_tpu, mosaic_gpu):
        got = kernel.rms_up_rope(*operands, interpret=True)
        assert got.dtype == low.dtype
        # Results up to 4, rounded to 8 bits.
        np.testing.assert_allclose(jnp.asarray(got, jnp.float32), want, atol=2e-2)


@pytest.mark.parametrize(
    "kernel, platform, target",
    [(mosaic_gpu, "cuda", "mosaic_gpu"), (mosaic_tpu, "tpu", "tpu_custom_call")],
    ids=["hopper", "tpu"],
)
def test_kernels_lower_at_the_published_size(kernel, platform, target):
    N, R, H, C = 100, 2048, 64, 256
    specs = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((N, R), jnp.bfloat16),
            ((R, H, C), jnp.bfloat16),
            ((N,), jnp.float32),
            ((N, C // 2), jnp.float32),
            ((N, C // 2), jnp.float32),
        )
    ]
    with compat.target():
        low = jax.jit(kernel.rms_up_rope).trace(*specs).lower(lowering_platforms=(platform,))
    assert target in low.as_text()


def test_bad_input_is_named():
    low, up, position = draw(np.random.default_rng(3))
    for message, arguments, options in (
        ("low must be", (low, up[:3], position), {}),
        ("position must be", (low, up, position[:2]), {}),
        ("share a dtype", (low, up.astype(jnp.bfloat16), position), {}),
        ("impl must be one of", (low, up, position), {"impl": "triton"}),
        ("must be in float16", (low.astype(jnp.float8_e4m3fn), up, position), {}),
        ("theta must be positive", (low, up, position), {"theta": 0.0}),
        ("eps not negative", (low, up, position), {"eps": -1e-5}),
    ):
        with pytest.raises(ValueError, match=message):
            api.rms_up_rope(*arguments, **options)
    with pytest.raises(NotImplementedError, match="backend is cpu"):
        api.rms_up_rope(low, up, position, impl="mosaic_tpu")
    assert api.rms_up_rope(low[:0], up, position[:0]).shape == (0, *up.shape[1:])
