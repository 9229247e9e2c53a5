"""Policies over tokens that look at a state: what to do with what is observed.

A policy with states is a function from states to one of the policies over sequences that there are
anyway. Whatever draws, weighs or compares those (`matching`, `bandits.draw`) knows no states.

Networks: the transformers of `transformers` with the state as tokens before the others, and heads
that know of no other token. Ma et al. 2025, arXiv:2509.22963, macro-actions.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.core.types import PyTree
from jaxlab.diffusion.discrete import sampling
from jaxlab.diffusion.discrete.masked import Denoise
from jaxlab.nn import Mlp
from jaxlab.rl.discrete import transformers
from jaxlab.rl.discrete.matching import Policy
from jaxlab.rl.discrete.policies import TokenPolicy, check_sizes
from jaxlab.rl.discrete.transformers import TrunkParams


class StatePolicy(NamedTuple):
    """A policy over sequences for every state.

    Attributes:
        vocab: V, tokens are 0 .. V - 1.
        length: K tokens of an action.
        init: `init(key) -> params`.
        given: `given(obs [*S, O], valid=None) -> policy` over sequences, a denoiser or one that
            writes, of the same parameters. What it draws and judges is `[..., *S, K]`: the axes of
            states are the last before the tokens. `valid [*S, K, V]` is True where a token may be
            drawn; the others have no probability. One for states without action masks alone need
            not take it.

    Example:
        >>> policy = make_state_policy((4,), 3, 8, width=32)
        >>> params, here = policy.init(key), policy.given(obs)
        >>> logits = here.denoise(params)(tokens, level)  # tokens [64, B, 8] of obs [B, 4]
    """

    vocab: int
    length: int
    init: Callable[[jax.Array], PyTree]
    given: Callable[..., Policy]


class StateEncoder(nn.Module):
    """Features of a state: of a vector by layers, of an image by one convolution and a layer.

    Attributes:
        shape: (O,) of a vector; height, width and channels (H, W, C) of a flat image, such as those
            of MinAtar: 16 filters of 3 x 3, without padding.
        out: width of the result.
        hidden: widths of the hidden layers, of ReLU; MinAtar's networks have one of 128.
    """

    shape: tuple[int, ...]
    out: int
    hidden: tuple[int, ...] = (128,)

    @nn.compact
    def __call__(self, obs: Float[Array, "*S O"]) -> Float[Array, "*S out"]:
        if obs.shape[-1] != math.prod(self.shape):
            raise ValueError(
                f"states must be [..., {math.prod(self.shape)}], those of the shape {self.shape} "
                f"that the network was made for, got {obs.shape}"
            )
        x, lead = obs, obs.shape[:-1]
        if len(self.shape) == 3:
            image = obs.reshape(math.prod(lead), *self.shape)
            x = nn.relu(nn.Conv(16, (3, 3), padding="VALID")(image)).reshape(*lead, -1)
        return Mlp(self.hidden, self.out, nn.relu)(x)


class PrefixedParams(NamedTuple):
    """Weights of a transformer that sees a state: of the encoder, and of the trunk."""

    encoder: Any
    trunk: TrunkParams


def make_state_policy(
    obs_shape: tuple[int, ...],
    vocab: int,
    length: int,
    *,
    width: int = 128,
    num_layers: int = 3,
    num_heads: int = 4,
    num_prefix: int = 4,
) -> StatePolicy:
    """Makes a denoiser of actions in a state: all tokens see each other and the state's own.

    Args:
        obs_shape: (O,), or (H, W, C) of flat images, see `StateEncoder`.
        vocab: V.
        length: K.
        width: of the transformer.
        num_layers: of the transformer.
        num_heads: of the transformer.
        num_prefix: P tokens that a state becomes.

    Raises:
        ValueError: if a size is below 1, heads do not divide the width evenly, or states are
            neither vectors nor images.
    """
    config = transformers.block_config(vocab, length, width, num_layers, num_heads)
    init, prefix = _prefixed(obs_shape, vocab, length, num_layers, num_prefix, config)

    def given(obs: Float[Array, "*S O"], valid: Bool[Array, "*S K V"] | None = None) -> TokenPolicy:
        def denoise(params: PrefixedParams) -> Denoise:
            open_to_all = transformers.denoiser(params.trunk, config, prefix(params, obs))
            return sampling.sharpen(open_to_all, valid=valid)

        return TokenPolicy(vocab, length, init, denoise)

    return StatePolicy(vocab, length, init, given)


def make_state_writer(
    obs_shape: tuple[int, ...],
    vocab: int,
    length: int,
    *,
    width: int = 128,
    num_layers: int = 3,
    num_heads: int = 4,
    num_prefix: int = 4,
) -> StatePolicy:
    """Makes the autoregressive policy of the same trunk; arguments as `make_state_policy`.

    Raises:
        ValueError: as `make_state_policy`.
    """
    config = transformers.block_config(vocab, length, width, num_layers, num_heads)
    init, prefix = _prefixed(obs_shape, vocab, length, num_layers, num_prefix, config)

    def given(obs: Float[Array, "*S O"], valid: Bool[Array, "*S K V"] | None = None) -> Policy:
        return transformers.writer(
            vocab, length, init, lambda params: (params.trunk, prefix(params, obs)), config, valid
        )

    return StatePolicy(vocab, length, init, given)


def make_state_heads(
    obs_shape: tuple[int, ...], vocab: int, length: int, *, hidden: tuple[int, ...] = (128, 128)
) -> StatePolicy:
    """Makes K independent distributions in every state: a factored policy, drawn in one step.

    Args:
        obs_shape: see `StateEncoder`.
        vocab: V.
        length: K.
        hidden: widths of the hidden layers.

    Raises:
        ValueError: if a size is below 1, or states are neither vectors nor images.
    """
    check_sizes(vocab, length, *hidden)
    network: Any = StateEncoder(check_obs_shape(obs_shape), length * vocab, hidden)

    def init(key: jax.Array) -> Any:
        return network.init(key, jnp.zeros((math.prod(obs_shape),)))

    def given(obs: Float[Array, "*S O"], valid: Bool[Array, "*S K V"] | None = None) -> TokenPolicy:
        def denoise(params: Any) -> Denoise:
            logits = network.apply(params, obs).reshape(*obs.shape[:-1], length, vocab)
            return sampling.sharpen(
                lambda tokens, level: jnp.broadcast_to(logits, (*level.shape, length, vocab)),
                valid=valid,
            )

        return TokenPolicy(vocab, length, init, denoise)

    return StatePolicy(vocab, length, init, given)


def at_states(policy: StatePolicy, obs: Float[Array, "*S O"], mask: Any = ()) -> Policy:
    """Returns the policy over sequences at states, of the tokens that are allowed there.

    Args:
        policy: for every state.
        obs: `[*S, O]`.
        mask: `[*S, K V]` bool, what an environment says of its choices, see `State.action_mask`;
            `()` allows all.

    Raises:
        ValueError: if there is a mask, and the policy takes none.
    """
    if isinstance(mask, tuple):
        return policy.given(obs)
    if len(inspect.signature(policy.given).parameters) < 2:
        raise ValueError(
            "choices are ruled out by an action_mask, which the policy's given(obs) does not take; "
            "write given(obs, valid)"
        )
    return policy.given(obs, mask.reshape(*mask.shape[:-1], policy.length, policy.vocab))


def check_obs_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a state; refuses what is no vector or image, with a ValueError."""
    shape = tuple(shape)
    if len(shape) not in (1, 3) or min(shape) < 1 or (len(shape) == 3 and min(shape[:2]) < 3):
        raise ValueError(
            f"obs_shape must be (O,) or (H, W, C) with H and W at least 3, got {shape}"
        )
    return shape


def _prefixed(
    obs_shape: tuple[int, ...],
    vocab: int,
    length: int,
    num_layers: int,
    num_prefix: int,
    config: Any,
) -> tuple[Callable[[jax.Array], PrefixedParams], Callable[[PrefixedParams, Array], Array]]:
    """Returns `init(key) -> params` and `prefix(params, obs [*S, O]) -> [*S, P, D]`."""
    check_sizes(num_prefix)
    width = config.d_model
    encoder: Any = StateEncoder(check_obs_shape(obs_shape), num_prefix * width)

    def init(key: jax.Array) -> PrefixedParams:
        key_encoder, key_trunk = jax.random.split(key)
        return PrefixedParams(
            encoder.init(key_encoder, jnp.zeros((math.prod(obs_shape),))),
            transformers.init_trunk(key_trunk, vocab, length, num_layers, config),
        )

    def prefix(params: PrefixedParams, obs: Array) -> Array:
        return encoder.apply(params.encoder, obs).reshape(*obs.shape[:-1], num_prefix, width)

    return init, prefix
