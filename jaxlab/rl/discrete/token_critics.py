"""Values of macro-actions: twin critics of a state and K tokens, flat ones, and values of states.

A macro-action takes time, so that what follows counts gamma^k after its k steps. Tokens that were
not carried out, since the episode had ended, made no difference: each time that a critic looks at
them they are drawn anew, of those that were allowed, which teaches it so.

Ma et al. 2025, arXiv:2509.22963, off-policy learning; clipped double critics arXiv:1802.09477.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab import envs
from jaxlab.diffusion.discrete import exact
from jaxlab.envs import spaces
from jaxlab.learning.returns import td_target
from jaxlab.nn import transformer
from jaxlab.rl import critics as critics_lib
from jaxlab.rl.critics import Critics, Transitions
from jaxlab.rl.discrete import transformers
from jaxlab.rl.discrete.policies import check_sizes
from jaxlab.rl.discrete.state_policies import StateEncoder, check_obs_shape
from jaxlab.rl.discrete.transformers import TrunkParams

MOST_ACTIONS = 4096
"""Macro-actions that a flat critic may list; V^K grows beyond any network soon."""


class _CriticParams(NamedTuple):
    """Weights of one critic; its trunk has a single output and sees no hidden token."""

    encoder: Any
    trunk: TrunkParams


def make_token_critics(
    obs_shape: tuple[int, ...],
    vocab: int,
    length: int,
    *,
    width: int = 128,
    num_layers: int = 2,
    num_heads: int = 4,
    num_prefix: int = 4,
) -> Critics:
    """Makes two transformers over the state's tokens and the action's, each averaged to one value.

    Their target is R + gamma^k (1 - terminated) times the mean over the M proposed next actions
    `[M, B, K]` of the smaller target critic.

    Args:
        obs_shape: (O,), or (H, W, C) of flat images, see `StateEncoder`.
        vocab: V.
        length: K.
        width: of the transformers.
        num_layers: of the transformers.
        num_heads: of the transformers.
        num_prefix: tokens that a state becomes.

    Raises:
        ValueError: if a size is below 1, heads do not divide the width evenly, or states are
            neither vectors nor images.
    """
    config = transformers.block_config(vocab, length, width, num_layers, num_heads)
    check_sizes(num_prefix)
    encoder: Any = StateEncoder(check_obs_shape(obs_shape), num_prefix * width)
    size = num_prefix + length
    still, sees = jnp.zeros((size,), jnp.int32), jnp.ones((size, size), bool)

    def init_one(key: jax.Array) -> _CriticParams:
        key_encoder, key_trunk = jax.random.split(key)
        return _CriticParams(
            encoder.init(key_encoder, jnp.zeros((math.prod(obs_shape),))),
            transformers.init_trunk(key_trunk, vocab, length, num_layers, config)._replace(
                head=jnp.zeros((width, 1))
            ),
        )

    def one(params: _CriticParams, obs: Array, tokens: Array) -> Array:
        state = encoder.apply(params.encoder, obs).reshape(*obs.shape[:-1], num_prefix, width)
        x = params.trunk.tokens[tokens] + params.trunk.places.reshape(
            (1,) * (tokens.ndim - 1) + (length, width)
        )
        state = jnp.broadcast_to(state, (*x.shape[:-2], num_prefix, width))
        x = jnp.concatenate([state, x], axis=-2)
        pos, mask = (jnp.broadcast_to(y, (*x.shape[:-2], *y.shape)) for y in (still, sees))
        x, _ = transformer.apply_blocks(params.trunk.blocks, x, pos, mask, config)
        pooled = transformer.rms_norm(jnp.mean(x, axis=-2), params.trunk.norm, eps=config.eps)
        return (pooled @ params.trunk.head)[..., 0]

    def apply(params: Any, obs: Array, tokens: Int[Array, "*B K"]) -> Float[Array, " 2 *B"]:
        return jax.vmap(lambda p: one(p, obs, tokens))(params)

    def init(key: jax.Array) -> Any:
        return jax.vmap(init_one)(jax.random.split(key))

    space = envs.MultiDiscrete((vocab,) * length)
    return Critics(init, apply, macro_loss(apply, vocab), action_space=space)


def make_flat_critics(
    obs_shape: tuple[int, ...], vocab: int, length: int, *, hidden: tuple[int, ...] = (128, 128)
) -> Critics:
    """Makes two critics that list the values of all V^K macro-actions of a state: deep Q networks.

    Args:
        obs_shape: see `StateEncoder`.
        vocab: V.
        length: K.
        hidden: widths of the hidden layers.

    Raises:
        ValueError: if a size is below 1, states are neither vectors nor images, or there are more
            than 4096 macro-actions.
    """
    check_sizes(vocab, length, *hidden)
    check_flat(vocab, length)
    network: Any = StateEncoder(check_obs_shape(obs_shape), vocab**length, hidden)

    def apply(params: Any, obs: Array, tokens: Int[Array, "*B K"]) -> Float[Array, " 2 *B"]:
        values = jax.vmap(lambda p: network.apply(p, obs))(params)
        index = exact.number(tokens, vocab)
        # Rows of the batch by number, so that values of a state are not repeated for each action.
        rows = [
            jax.lax.broadcasted_iota(jnp.int32, index.shape, axis)
            if n > 1
            else jnp.zeros_like(index)
            for axis, n in enumerate(obs.shape[:-1])
        ]
        return values[(slice(None), *rows, index)]

    def init(key: jax.Array) -> Any:
        obs = jnp.zeros((math.prod(obs_shape),))
        return jax.vmap(lambda k: network.init(k, obs))(jax.random.split(key))

    space = envs.MultiDiscrete((vocab,) * length)
    return Critics(init, apply, macro_loss(apply, vocab), action_space=space)


class StateValue(nn.Module):
    """The value of a state, for `reverse_rollouts` and `forward_rollouts`.

    Attributes:
        shape: of the state, see `StateEncoder`.
        hidden: widths of the hidden layers.
    """

    shape: tuple[int, ...]
    hidden: tuple[int, ...] = (128, 128)

    @nn.compact
    def __call__(self, obs: Float[Array, "*S O"]) -> Float[Array, "*S 1"]:
        return StateEncoder(check_obs_shape(self.shape), 1, self.hidden)(obs)


def macro_loss(apply: Any, vocab: int) -> Any:
    """Makes the loss of `Critics` for macro-actions; see `make_token_critics`.

    Args:
        apply: `apply(params, obs, tokens) -> [2, ...]`.
        vocab: V.
    """

    def loss(
        key: jax.Array, params: Any, target_params: Any, data: Transitions, gamma: float
    ) -> tuple[Float[Array, ""], Float[Array, "2 B"]]:
        next_q = jnp.min(apply(target_params, data.next_obs[None], data.next_action), axis=0)
        bonus, discount = data.bonus, critics_lib.discount(data, gamma)
        target = td_target(jnp.mean(next_q, axis=0) + bonus, data.reward, discount)
        tokens = data.action
        if not isinstance(data.duration, tuple):
            length = tokens.shape[-1]
            space = envs.MultiDiscrete((vocab,) * length)
            anew = spaces.sample(key, space, tokens.shape[:-1], data.action_mask)
            kept = envs.executed(data.duration, length)
            tokens = jnp.where(kept, tokens, anew.astype(tokens.dtype))
        q = apply(params, data.obs, tokens)
        return jnp.sum(jnp.mean((q - target[None]) ** 2, axis=1)), q

    return loss


def check_flat(vocab: int, length: int) -> None:
    """Refuses more macro-actions than a network can list, with a ValueError."""
    if vocab**length > MOST_ACTIONS:
        raise ValueError(
            f"a flat critic lists at most {MOST_ACTIONS} macro-actions, got {vocab}^{length}; take "
            "make_token_critics"
        )
