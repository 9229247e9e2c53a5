"""The next token of every request: the most probable one, or one of the nucleus."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.jit
def draw(
    logits: Float[Array, "B S V"],
    count: Int[Array, " B"],
    seed: Int[Array, " B"],
    pos: Int[Array, " B"],
    temperature: Float[Array, " B"],
    top_p: Float[Array, " B"],
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """Draws the next token of every request, each with the key of its seed and position.

    Args:
        logits: `[B, S, V]`, of what follows each of S tokens.
        count: `[B]`, number of tokens that count, 1 to S: the logits of the last one are taken.
        seed: `[B]` uint32, of the requests.
        pos: `[B]`, position of the token that is drawn.
        temperature: `[B]`; 0 takes the most probable token.
        top_p: `[B]` in (0, 1], probability of the tokens that are drawn from.

    Returns:
        `(token, is_finite)`: `[B]` int32, and whether the logits were finite.

    Source: Holtzman et al. 2020 (top-p).
    """
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    last = jnp.take_along_axis(logits, count[:, None, None] - 1, axis=1)[:, 0].astype(wide)

    def one(logits: Array, seed: Array, pos: Array, temperature: Array, top_p: Array) -> Array:
        is_greedy = temperature == 0.0
        scaled = logits / jnp.where(is_greedy, 1.0, temperature).astype(wide)
        order = jnp.argsort(-scaled, stable=True)
        prob = jax.nn.softmax(scaled)[order]
        before = jnp.cumsum(prob) - prob
        # The most probable token stays whatever rounding makes of the sums.
        kept = (before < top_p.astype(wide)).at[0].set(True) | (top_p >= 1.0)
        key = jax.random.fold_in(jax.random.key(seed), pos)
        noise = jax.random.gumbel(key, scaled.shape, wide)  # by token, not by rank
        choice = jnp.argmax(jnp.where(kept, scaled[order] + noise[order], -jnp.inf))
        return jnp.where(is_greedy, jnp.argmax(logits), order[choice]).astype(jnp.int32)

    token = jax.vmap(one)(last, seed, pos, temperature, top_p)
    return token, jnp.all(jnp.isfinite(last), axis=-1)
