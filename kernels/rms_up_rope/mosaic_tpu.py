"""Queries from their low-rank space on TPU, a head at a time: product, then norm and rotation."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..compat import precision


def rms_up_rope(
    low: jax.Array,
    up: jax.Array,
    factor: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    *,
    rows: int = 256,
    interpret: bool = False,
) -> jax.Array:
    """See `ref.rms_up_rope`; in the dtype of `low`."""
    (N, R), (_, H, C) = low.shape, up.shape
    rows = min(rows, -(-N // 16) * 16)
    count = -(-N // rows)
    low, factor, cos, sin = (
        jnp.pad(x, ((0, count * rows - N), (0, 0))) for x in (low, factor[:, None], cos, sin)
    )
    out = pl.pallas_call(
        _body,
        grid=(count, H),
        in_specs=[
            pl.BlockSpec((rows, R), lambda n, h: (n, 0)),
            pl.BlockSpec((R, C), lambda n, h: (0, h)),
            pl.BlockSpec((rows, 1), lambda n, h: (n, 0)),
            pl.BlockSpec((rows, C // 2), lambda n, h: (n, 0)),
            pl.BlockSpec((rows, C // 2), lambda n, h: (n, 0)),
        ],
        out_specs=pl.BlockSpec((rows, C), lambda n, h: (n, h)),
        out_shape=jax.ShapeDtypeStruct((count * rows, H * C), low.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(low, up.reshape(R, H * C), factor, cos, sin)
    return out[:N].reshape(N, H, C)


def _body(low, up, factor, cos, sin, out):
    x = jnp.dot(
        low[...], up[...], preferred_element_type=jnp.float32, precision=precision(low.dtype)
    )
    x = x * factor[...]
    half = x.shape[1] // 2
    first, second = x[:, :half], x[:, half:]
    out[:, :half] = (first * cos[...] - second * sin[...]).astype(out.dtype)
    out[:, half:] = (second * cos[...] + first * sin[...]).astype(out.dtype)
