"""SwiGLU layers: dense, and a dropless mixture of experts with a shared one.

No token is dropped and no capacity is set: tokens are sorted by expert and multiplied group by
group. The sum runs in a fixed order, so results do not depend on how tokens are batched together
with others of other experts.

Source: Step-3, arXiv:2507.19427 (48 routed experts, 3 active, 1 shared, softmax weights that are
not renormalized); Shazeer 2020 (SwiGLU).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.kernels.moe import api as grouped  # pyright: ignore[reportMissingImports]
from jaxlab.nn import transformer
from jaxlab.nn.transformer import Swiglu, init_swiglu, swiglu


class Moe(NamedTuple):
    """Weights of a mixture of experts.

    Attributes:
        router: `[D, E]`, whose products are the logits of the experts.
        experts: weights of E layers, `[E, D, F]` and `[E, F, D]`.
        shared: weights of one layer that every token visits, or None.
    """

    router: Float[Array, "D E"]
    experts: Swiglu
    shared: Swiglu | None


class Routing(NamedTuple):
    """Where tokens go.

    Attributes:
        weight: `[N, k]`, the factors of the chosen experts, in float32 or wider.
        expert: `[N, k]` int32, the chosen experts by falling probability.
        prob: `[N, E]`, the softmax over all experts.
    """

    weight: Float[Array, "N k"]
    expert: Int[Array, "N k"]
    prob: Float[Array, "N E"]


def init_moe(
    key: Array, d_model: int, hidden: int, num_experts: int, *, shared: bool = True, depth: int = 1
) -> Moe:
    """Draws a router, experts, and a shared expert of the same width."""
    key_router, key_experts, key_shared = jax.random.split(key, 3)
    return Moe(
        router=jax.random.normal(key_router, (d_model, num_experts)) * d_model**-0.5,
        experts=init_swiglu(key_experts, d_model, hidden, experts=num_experts, depth=depth),
        shared=init_swiglu(key_shared, d_model, hidden, depth=depth) if shared else None,
    )


def route(router: Float[Array, "D E"], x: Float[Array, "N D"], num_active: int) -> Routing:
    """Picks the most probable experts of each token; their weights are not renormalized.

    Raises:
        ValueError: if `num_active` is not between 1 and the number of experts.
    """
    num_experts = router.shape[1]
    if not 1 <= num_active <= num_experts:
        raise ValueError(f"num_active must be in 1 to {num_experts}, got {num_active}")
    exact = jax.lax.Precision.HIGHEST  # a rounded logit sends a token to another expert
    wide = transformer.wide_dtype(x.dtype)
    logits = jnp.dot(x.astype(wide), router.astype(wide), precision=exact)
    prob = jax.nn.softmax(logits, axis=-1)
    weight, expert = jax.lax.top_k(prob, num_active)
    return Routing(weight, expert, prob)


def apply_experts(
    experts: Swiglu, x: Float[Array, "N D"], routing: Routing, *, impl: grouped.Impl | None = None
) -> Float[Array, "N D"]:
    """Returns sum over a token's experts of weight * expert(x), without dropping any.

    Args:
        experts: weights of E layers.
        x: `[N, D]`, one row a token.
        routing: experts of every token and their weights, see `route`.
        impl: implementation of the grouped products, see `jaxlab.kernels.moe`; None chooses one.
    """
    num_tokens, num_active = routing.expert.shape
    num_experts = experts.gate.shape[0]
    order = jnp.argsort(routing.expert.reshape(-1), stable=True)
    rows = x[order // num_active]
    sizes = jnp.bincount(routing.expert.reshape(-1), length=num_experts).astype(jnp.int32)
    out = grouped.grouped_swiglu(rows, *experts, sizes, impl=impl)
    # Back into the order of the tokens; then the sum is over an axis, in a fixed order.
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
    out = out[place].reshape(num_tokens, num_active, -1)
    weighted = out.astype(routing.weight.dtype) * routing.weight[..., None]
    return jnp.sum(weighted, axis=1).astype(x.dtype)


def moe(params: Moe, x: Float[Array, "... D"], *, num_active: int) -> Float[Array, "... D"]:
    """Returns shared(x) + the weighted experts of every token."""
    if not x.size:
        return x
    tokens = x.reshape(-1, x.shape[-1])
    out = apply_experts(params.experts, tokens, route(params.router, tokens, num_active))
    if params.shared is not None:
        out = out + swiglu(params.shared, tokens)
    return out.reshape(x.shape)


def load_balance_loss(routing: Routing) -> Float[Array, ""]:
    """Returns E sum_e f_e P_e: 1 if tokens spread evenly, E if all visit one expert.

    f is the share of visits, P the mean probability. Source: Fedus et al. 2022, eq. 4.
    """
    num_experts = routing.prob.shape[-1]
    visits = jnp.bincount(routing.expert.reshape(-1), length=num_experts)
    share = visits.astype(routing.prob.dtype) / routing.expert.size
    return num_experts * jnp.sum(share * jnp.mean(routing.prob, axis=0))


def router_z_loss(router: Float[Array, "D E"], x: Float[Array, "N D"]) -> Float[Array, ""]:
    """Returns the mean squared log-partition of the router's logits. Source: Zoph et al. 2022."""
    wide = transformer.wide_dtype(x.dtype)
    logits = x.astype(wide) @ router.astype(wide)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2)
