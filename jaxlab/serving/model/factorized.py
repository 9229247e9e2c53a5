"""Multi-matrix factorization attention (MFA): many heads of low-rank queries, one key, one value.

A token leaves one key and one value of C dimensions for all heads; with key reuse (MFA-KR) one
vector, from which the value is computed by a gated linear map.

Source: MFA, arXiv:2412.19255; Step-3, arXiv:2507.19427.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.kernels.rms_up_rope import api as rms_up_rope  # pyright: ignore[reportMissingImports]
from jaxlab.nn import transformer
from jaxlab.nn.transformer import dense
from jaxlab.serving.model.attention import Layer, attend, check_builder, check_tokens, remember


class MfaConfig(NamedTuple):
    """Sizes and constants of a layer; the defaults are Step-3's.

    Attributes:
        d_model: width D of the model.
        num_heads: number of query heads H.
        head_dim: dimensions C of a head.
        q_rank: dimensions R of the query space that all heads share.
        theta: base of the rotary embedding's wavelengths.
        eps: constant of the inner norm.
        inner_norm: whether to normalize in the shared query space (Step-3 does, MFA did not).
        key_reuse: whether values are computed from cached keys (MFA-KR).
        absorbed: whether the value map of MFA-KR goes behind the attention, where it maps the
            averages of H heads instead of all cached keys. The function is the same.
        depth: index of the layer from 1, by which its initial output is shrunk.
    """

    d_model: int = 7168
    num_heads: int = 64
    head_dim: int = 256
    q_rank: int = 2048
    theta: float = 5e5
    eps: float = 1e-5
    inner_norm: bool = True
    key_reuse: bool = False
    absorbed: bool = True
    depth: int = 1

    @property
    def scale(self) -> float:
        """The factor of the scores, C^-1/2."""
        return self.head_dim**-0.5


class MfaParams(NamedTuple):
    """Weights.

    Attributes:
        query_down: `[D, R]`, into the shared query space.
        query_norm: `[R]`, of the norm there, or None once it is folded into query_up.
        query_up: `[R, H, C]`, from there to the queries of every head.
        key: `[D, C]`, to the one key.
        value: `[D, C]`, to the one value; with key reuse a `ValueMap`, or None once it is absorbed
            into out.
        out: `[H, C, D]`, from the heads back to the width of the model.
    """

    query_down: Float[Array, "D R"]
    query_norm: Float[Array, " R"] | None
    query_up: Float[Array, "R H C"]
    key: Float[Array, "D C"]
    value: Any
    out: Float[Array, "H C D"]


class ValueMap(NamedTuple):
    """The value of a cached key c: c + gate * (mix c); gate 0 makes values equal to keys.

    Attributes:
        gate: `[C]`, the share of the mixture in every dimension: 0 at the start, which training
            needs.
        mix: `[C, C]`, the matrix that mixes the dimensions of a key.
    """

    gate: Float[Array, " C"]
    mix: Float[Array, "C C"]


def init_mfa(key: Array, config: MfaConfig, *, dtype: Any = None) -> MfaParams:
    """Draws weights of variance 1 / fan-in, those of `out` shrunk by the depth.

    Args:
        key: PRNG key for all weights.
        config: sizes and constants of the layer.
        dtype: dtype that the drawn weights are rounded to; JAX's default float if None.

    Raises:
        ValueError: if a size, theta or depth is not positive, or `head_dim` is odd.
    """
    _check_config(config)
    D, H, C, R = config.d_model, config.num_heads, config.head_dim, config.q_rank
    keys = jax.random.split(key, 5)
    if config.key_reuse:
        value = ValueMap(jnp.zeros((C,)), dense(keys[3], C, C))
    else:
        value = dense(keys[3], D, C)
    params = MfaParams(
        query_down=dense(keys[0], D, R),
        query_norm=jnp.ones((R,)),
        query_up=dense(keys[1], R, H * C).reshape(R, H, C),
        key=dense(keys[2], D, C),
        value=value,
        out=dense(keys[4], H * C, D, depth=config.depth).reshape(H, C, D),
    )
    return params if dtype is None else jax.tree.map(lambda w: w.astype(dtype), params)


def fold_norm(params: MfaParams) -> MfaParams:
    """Multiplies the weight of the inner norm into the rows of `query_up`, once before decoding."""
    if params.query_norm is None:
        return params
    up = params.query_up * params.query_norm[:, None, None]
    return params._replace(query_norm=None, query_up=up)


def project_q(
    params: MfaParams,
    x: Float[Array, "B T D"],
    pos: Int[Array, "B T"],
    config: MfaConfig,
    *,
    fused: bool = True,
    impl: rms_up_rope.Impl | None = None,
) -> Float[Array, "B T H C"]:
    """Returns rotated queries, `[B, T, H, C]`.

    The norm commutes with the up-projection: its weight scales rows of the matrix, and its
    1 / rms, one number a token, multiplies the product. Fused, product, norm and rotation are one
    kernel, `jaxlab.kernels.rms_up_rope`; else they follow one another as they are written.

    Args:
        params: weights of the layer.
        x: `[B, T, D]`, normalized.
        pos: `[B, T]` integers.
        config: sizes and constants of the layer.
        fused: whether to run the kernel, or one step after another.
        impl: implementation of the kernel; None chooses one.
    """
    low = x @ params.query_down
    if fused:
        up = fold_norm(params).query_up if config.inner_norm else params.query_up
        q = rms_up_rope.rms_up_rope(
            low.reshape(-1, low.shape[-1]),
            up,
            pos.reshape(-1),
            theta=config.theta,
            eps=config.eps if config.inner_norm else None,
            impl=impl,
        )
        return q.reshape(*x.shape[:2], *q.shape[1:])
    if config.inner_norm:
        weight = params.query_norm
        weight = jnp.ones(low.shape[-1:], low.dtype) if weight is None else weight
        low = transformer.rms_norm(low, weight, eps=config.eps)
    q = jnp.einsum("btr,rhc->bthc", low, params.query_up)
    return transformer.rotate(q, pos[..., None], theta=config.theta)


def project_kv(
    params: MfaParams, x: Float[Array, "B T D"], pos: Int[Array, "B T"], config: MfaConfig
) -> tuple[Array, ...]:
    """Returns what tokens leave in the cache, `[B, T, C]` each.

    A rotated key and a value; with key reuse one vector that is not rotated yet, so that values
    can be computed from it.
    """
    key = x @ params.key
    if config.key_reuse:
        return (key,)
    return transformer.rotate(key, pos, theta=config.theta), x @ params.value


def values(value: ValueMap, cached: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Returns the values of cached keys, or of averages of them, c + gate * (c mix')."""
    return cached + cached @ (value.gate[:, None] * value.mix).T


def absorb(params: MfaParams) -> MfaParams:
    """Multiplies the value map into the output, once before decoding with key reuse.

    Averages of values are maps of averages of keys, out'_h = (I + diag(gate) mix)' out_h. Values
    are then equal to keys.

    Raises:
        ValueError: if values have weights of their own, that is without key reuse.
    """
    if params.value is None:
        return params
    if not isinstance(params.value, ValueMap):
        raise ValueError("absorb takes parameters with key reuse (MFA-KR); these have values")
    gate, mix = params.value
    through = jnp.eye(gate.shape[0], dtype=mix.dtype) + gate[:, None] * mix
    out = jnp.einsum("ec,hed->hcd", through, params.out)
    return params._replace(out=out, value=None)


def make_mfa(config: MfaConfig) -> Layer:
    """Makes the layer; a token leaves 2C elements in the cache, C with key reuse.

    Raises:
        ValueError: if a size, theta or depth is not positive, or `head_dim` is odd.
    """
    _check_config(config)

    def apply(params: MfaParams, x: Array, pos: Array, cache: Any = None) -> tuple[Array, Any]:
        check_tokens(x, pos)
        q = project_q(params, x, pos, config)
        left, k_pos, cache = remember(cache, project_kv(params, x, pos, config), pos)
        left = tuple(array.astype(x.dtype) for array in left)
        if config.key_reuse:
            (v,) = left
            k = transformer.rotate(v, k_pos, theta=config.theta)
            if isinstance(params.value, ValueMap) and not config.absorbed:
                v = values(params.value, v)
        else:
            k, v = left
        out = attend(q, k[:, :, None], v[:, :, None], pos, k_pos, scale=config.scale)
        if isinstance(params.value, ValueMap) and config.absorbed:
            out = values(params.value, out)
        return jnp.einsum("bthc,hcd->btd", out, params.out), cache

    def init_cache(batch: int, length: int, dtype: Any = jnp.float32) -> tuple[Array, ...]:
        count = 1 if config.key_reuse else 2
        return transformer.empty_cache(*[(batch, length, config.head_dim)] * count, dtype=dtype)

    cached = config.head_dim * (1 if config.key_reuse else 2)
    return Layer(lambda key: init_mfa(key, config), apply, init_cache, cached)


def _check_config(config: MfaConfig) -> None:
    sizes = (config.d_model, config.num_heads, config.head_dim, config.q_rank)
    if min(sizes) < 1 or config.head_dim % 2:
        raise ValueError(
            "d_model, num_heads, head_dim and q_rank must be positive and head_dim even, got "
            f"{sizes}"
        )
    check_builder(config.theta, config.depth)
