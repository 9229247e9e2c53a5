"""Multi-head latent attention (MLA): keys and values of all heads from one small latent.

Naive, it expands the latent to keys and values of every head. Absorbed, the expansion moves into
query and output, and all heads attend to the latent itself: the same function, another cost.

Source: DeepSeek-V2, arXiv:2405.04434.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.nn import transformer
from jaxlab.nn.transformer import dense
from jaxlab.serving.model.attention import Layer, attend, check_builder, check_tokens, remember


class MlaParams(NamedTuple):
    """Weights: ranks R (query) and L (latent), H heads of C + P dimensions, P of them rotated.

    Attributes:
        query_down: `[D, R]`, into the low-rank space of the queries.
        query_norm: `[R]`, of the norm there.
        query_up: `[R, H, C + P]`, from there to the queries of every head.
        latent_down: `[D, L]`, to the latent of a token.
        latent_norm: `[L]`, of the norm there.
        rope: `[D, P]`, to one rotated key for all heads.
        key_up: `[L, H, C]`, from the latent to the keys of every head.
        value_up: `[L, H, C]`, from the latent to the values of every head.
        out: `[H, C, D]`, from the heads back to the width of the model.
    """

    query_down: Float[Array, "D R"]
    query_norm: Float[Array, " R"]
    query_up: Float[Array, "R H CP"]
    latent_down: Float[Array, "D L"]
    latent_norm: Float[Array, " L"]
    rope: Float[Array, "D P"]
    key_up: Float[Array, "L H C"]
    value_up: Float[Array, "L H C"]
    out: Float[Array, "H C D"]


def make_mla(
    d_model: int,
    num_heads: int,
    *,
    q_rank: int = 1536,
    kv_rank: int = 512,
    head_dim: int = 128,
    rope_dim: int = 64,
    absorbed: bool = False,
    theta: float = 1e4,
    eps: float = 1e-6,
    depth: int = 1,
) -> Layer:
    """Makes latent attention; a token leaves `kv_rank + rope_dim` elements in the cache.

    Args:
        d_model: width D of the model.
        num_heads: number of heads H.
        q_rank: dimensions R of the low-rank space of the queries.
        kv_rank: dimensions L of the latent.
        head_dim: dimensions C of a head that are not rotated.
        rope_dim: dimensions P of a head that are rotated, even.
        absorbed: whether to attend to the latent instead of expanding it; parameters and values
            are the same.
        theta: base of the rotary embedding's wavelengths.
        eps: constant of the norms.
        depth: index of the layer from 1, by which its initial output is shrunk.

    Raises:
        ValueError: if a size, theta or depth is not positive, or `rope_dim` is odd.
    """
    sizes = (d_model, num_heads, q_rank, kv_rank, head_dim, rope_dim)
    if min(sizes) < 1 or rope_dim % 2:
        raise ValueError(f"sizes must be positive and rope_dim even, got {sizes}")
    check_builder(theta, depth)
    H, C, P = num_heads, head_dim, rope_dim
    scale = (C + P) ** -0.5

    def init(key: Array) -> MlaParams:
        keys = jax.random.split(key, 7)
        return MlaParams(
            query_down=dense(keys[0], d_model, q_rank),
            query_norm=jnp.ones((q_rank,)),
            query_up=dense(keys[1], q_rank, H * (C + P)).reshape(q_rank, H, C + P),
            latent_down=dense(keys[2], d_model, kv_rank),
            latent_norm=jnp.ones((kv_rank,)),
            rope=dense(keys[3], d_model, P),
            key_up=dense(keys[4], kv_rank, H * C).reshape(kv_rank, H, C),
            value_up=dense(keys[5], kv_rank, H * C).reshape(kv_rank, H, C),
            out=dense(keys[6], H * C, d_model, depth=depth).reshape(H, C, d_model),
        )

    def apply(params: MlaParams, x: Array, pos: Array, cache: Any = None) -> tuple[Array, Any]:
        check_tokens(x, pos)
        low = transformer.rms_norm(x @ params.query_down, params.query_norm, eps=eps)
        q = jnp.einsum("btr,rhc->bthc", low, params.query_up)
        q_plain, q_rope = q[..., :C], transformer.rotate(q[..., C:], pos[..., None], theta=theta)
        latent = transformer.rms_norm(x @ params.latent_down, params.latent_norm, eps=eps)
        rope = transformer.rotate(x @ params.rope, pos, theta=theta)
        (latent, rope), k_pos, cache = remember(cache, (latent, rope), pos)
        latent, rope = latent.astype(x.dtype), rope.astype(x.dtype)
        attention = _absorbed if absorbed else _naive
        out = attention(params, q_plain, q_rope, latent, rope, pos, k_pos, scale)
        return jnp.einsum("bthc,hcd->btd", out, params.out), cache

    def init_cache(batch: int, length: int, dtype: Any = jnp.float32) -> tuple[Array, ...]:
        return transformer.empty_cache((batch, length, kv_rank), (batch, length, P), dtype=dtype)

    return Layer(init, apply, init_cache, kv_rank + P)


def _naive(
    params: MlaParams,
    q_plain: Array,
    q_rope: Array,
    latent: Array,
    rope: Array,
    pos: Array,
    k_pos: Array,
    scale: float,
) -> Array:
    """Expands keys and values of every head."""
    k_plain, v = (jnp.einsum("bsl,lhc->bshc", latent, w) for w in (params.key_up, params.value_up))
    shared = jnp.broadcast_to(rope[:, :, None], (*k_plain.shape[:3], rope.shape[-1]))
    q, k = (jnp.concatenate(parts, axis=-1) for parts in ((q_plain, q_rope), (k_plain, shared)))
    return attend(q, k, v, pos, k_pos, scale=scale)


def _absorbed(
    params: MlaParams,
    q_plain: Array,
    q_rope: Array,
    latent: Array,
    rope: Array,
    pos: Array,
    k_pos: Array,
    scale: float,
) -> Array:
    """q (W c) = (q W) c: queries go down to the latent, its average goes up to the values."""
    q_latent = jnp.einsum("bthc,lhc->bthl", q_plain, params.key_up)
    q = jnp.concatenate([q_latent, q_rope], axis=-1)
    k = jnp.concatenate([latent, rope], axis=-1)
    average = attend(q, k[:, :, None], latent[:, :, None], pos, k_pos, scale=scale)
    return jnp.einsum("bthl,lhc->bthc", average, params.value_up)
