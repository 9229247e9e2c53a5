"""Twin critics, stacked: two networks as one with a leading axis."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab.envs.spaces import Space
from jaxlab.learning.returns import td_target
from jaxlab.nn import Mlp, PixelEncoder, Trunk, mish

Q = Callable[[jax.Array, jax.Array], jax.Array]
"""`q(obs [..., O], action [..., A]) -> [...]`, the smaller of two; leading axes broadcast."""


class Transitions(NamedTuple):
    """What critics learn from.

    Attributes:
        obs: `[B, O]` observations that were acted on.
        action: `[B, A]` actions taken.
        reward: `[B]` rewards, scaled.
        terminated: `[B]` bool, the episode ended by the decision process.
        next_obs: `[B, F]` what the step led to, encoded, without gradient.
        next_action: `[B, A]` actions at `next_obs`, whose values are bootstrapped from.
        bonus: `[B]`, added to the next value: an entropy, or zero.
        duration: `[B]` int32, steps of the clock that the action took, or `()` for one each.
        action_mask: `[B, num_logits]` bool, choices that were allowed at `obs`; `()` without masks.
    """

    obs: Float[Array, "B O"]
    action: Float[Array, "B A"]
    reward: Float[Array, " B"]
    terminated: Bool[Array, " B"]
    next_obs: Float[Array, "B F"]
    next_action: Float[Array, "B A"]
    bonus: Float[Array, " B"]
    duration: Any = ()
    action_mask: Any = ()


class Critics(NamedTuple):
    """Two critics.

    Attributes:
        init: `init(key) -> params`.
        apply: `apply(params, features [..., F], action [..., A]) -> [2, ...]`, values.
        loss: `loss(key, params, target_params, transitions, gamma) -> (loss, values [2, B])`.
        encode: `encode(params, obs) -> features`, what critics and policy look at; states as they
            are by default. It learns from the critics' loss alone.
        action_space: The space that their networks know; None if any of that size will do.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array]
    loss: Callable[..., tuple[jax.Array, jax.Array]]
    encode: Callable[[Any, jax.Array], jax.Array] = lambda params, obs: obs
    action_space: Space | None = None


def make_critics(
    obs_size: int,
    action_size: int,
    *,
    hidden: tuple[int, ...] = (256, 256, 256),
    activation: Callable[[jax.Array], jax.Array] = mish,
) -> Critics:
    """Makes critics of the mean return, fitted by squared errors to the smaller target.

    Widths and activation are those of the released code (three layers, Mish).
    """
    network: Any = Mlp(hidden, 1, activation)

    def apply(params: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        return jax.vmap(lambda p: network.apply(p, obs, action)[..., 0])(params)

    def loss(
        key: jax.Array, params: Any, target_params: Any, data: Transitions, gamma: float
    ) -> tuple[jax.Array, jax.Array]:
        del key
        q = apply(params, data.obs, data.action)
        return _squared_error(q, apply, target_params, data, gamma), q

    return Critics(_init_two(network, obs_size, action_size), apply, loss)


def make_gaussian_critics(
    obs_size: int,
    action_size: int,
    *,
    hidden: tuple[int, ...] = (256, 256, 256),
    activation: Callable[[jax.Array], jax.Array] = mish,
    std_range: tuple[float, float] = (1e-2, 1e2),
    clip_stds: float = 3.0,
) -> Critics:
    """Makes critics of the distribution of returns: a normal one, fitted by likelihood.

    The target is r + gamma z with z drawn from the target critic of the smaller mean; it is kept
    within `clip_stds` standard deviations of the critic's own mean, and the gradient of the mean is
    divided by the variance, so that no outlier moves it far.

    Args:
        std_range: bounds of the standard deviation.

    Source: distributional soft actor-critic, Duan et al. 2021, arXiv:2001.02811, as DACER uses it.
    """
    network: Any = Mlp(hidden, 2, activation)

    def distribution(params: Any, obs: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = jax.vmap(lambda p: network.apply(p, obs, action))(params)
        return out[..., 0], jnp.clip(jax.nn.softplus(out[..., 1]), *std_range)

    def apply(params: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        return distribution(params, obs, action)[0]

    def loss(
        key: jax.Array, params: Any, target_params: Any, data: Transitions, gamma: float
    ) -> tuple[jax.Array, jax.Array]:
        means, stds = distribution(target_params, data.next_obs, data.next_action)
        lower = jnp.argmin(means, axis=0)[None]
        next_mean, next_std = (
            jnp.take_along_axis(x, lower, axis=0)[0] + (0.0 if i else data.bonus)
            for i, x in enumerate((means, stds))
        )
        mean, std = distribution(params, data.obs, data.action)
        center, spread = jax.lax.stop_gradient(mean), jax.lax.stop_gradient(std)
        drawn = next_mean + next_std * jax.random.normal(key, next_mean.shape)
        each = discount(data, gamma)
        sampled = td_target(drawn, data.reward, each)[None]
        limit = clip_stds * spread
        sampled = jnp.clip(sampled, center - limit, center + limit)
        target = td_target(next_mean, data.reward, each)[None]
        # The mean follows the mean target, which has less noise; the spread the drawn one.
        of_mean = 0.5 * ((target - mean) / spread) ** 2
        of_std = 0.5 * ((sampled - center) / std) ** 2 + jnp.log(std)
        return jnp.sum(jnp.mean(of_mean + of_std, axis=1)), mean

    return Critics(_init_two(network, obs_size, action_size), apply, loss)


class _PixelHead(nn.Module):
    hidden: tuple[int, ...]
    trunk: int

    @nn.compact
    def __call__(self, features: jax.Array, action: jax.Array) -> jax.Array:
        return Mlp(self.hidden, 1)(Trunk(self.trunk)(features), action)


def make_pixel_critics(
    shape: tuple[int, int, int],
    action_size: int,
    *,
    hidden: tuple[int, ...] = (256, 256, 256),
    trunk: int = 50,
) -> Critics:
    """Makes critics of flat images: one encoder for both and for the policy, a head each.

    The encoder learns from the loss at the observation; features of the next one carry no gradient,
    and the target critics have heads of their own, but no encoder.

    Args:
        shape: (H, W, C) of the images.
        trunk: size that a head brings the features to.

    Source: arXiv:2507.23675, version 2, its visual tasks.
    """
    encoder: Any = PixelEncoder(shape)
    head: Any = _PixelHead(hidden, trunk)

    def init(key: jax.Array) -> Any:
        key_encoder, key_heads = jax.random.split(key)
        obs = jnp.zeros((math.prod(shape),))
        params = encoder.init(key_encoder, obs)
        features, action = encoder.apply(params, obs), jnp.zeros((action_size,))
        heads = jax.vmap(lambda k: head.init(k, features, action))(jax.random.split(key_heads))
        return {"encoder": params, "heads": heads}

    def apply(params: Any, features: jax.Array, action: jax.Array) -> jax.Array:
        return jax.vmap(lambda p: head.apply(p, features, action)[..., 0])(params["heads"])

    def encode(params: Any, obs: jax.Array) -> jax.Array:
        return encoder.apply(params["encoder"], obs)

    def loss(
        key: jax.Array, params: Any, target_params: Any, data: Transitions, gamma: float
    ) -> tuple[jax.Array, jax.Array]:
        del key
        q = apply(params, encode(params, data.obs), data.action)
        return _squared_error(q, apply, target_params, data, gamma), q

    return Critics(init, apply, loss, encode)


def _squared_error(
    q: Float[Array, "2 B"], apply: Callable, target_params: Any, data: Transitions, gamma: float
) -> Float[Array, ""]:
    """Of both critics, to the smaller target at the next observation."""
    next_q = jnp.min(apply(target_params, data.next_obs, data.next_action), axis=0)
    target = td_target(next_q + data.bonus, data.reward, discount(data, gamma))
    return jnp.sum(jnp.mean((q - target[None]) ** 2, axis=1))


def discount(data: Transitions, gamma: float | Float[Array, ""]) -> Float[Array, " B"]:
    """Returns gamma^duration (1 - terminated); a truncated episode bootstraps like any."""
    if not isinstance(data.duration, tuple):
        gamma = gamma ** data.duration.astype(data.reward.dtype)
    return gamma * (1.0 - data.terminated.astype(data.reward.dtype))


def _init_two(network: Any, obs_size: int, action_size: int) -> Callable[[jax.Array], Any]:
    def init(key: jax.Array) -> Any:
        obs, action = jnp.zeros((obs_size,)), jnp.zeros((action_size,))
        return jax.vmap(lambda k: network.init(k, obs, action))(jax.random.split(key))

    return init


def smaller(critics: Critics, params: Any) -> Q:
    """Returns the function min(Q1, Q2)."""
    return lambda obs, action: jnp.min(critics.apply(params, obs, action), axis=0)


def choose(q: Q, obs: Float[Array, "B O"], actions: Float[Array, "K B A"]) -> Float[Array, "B A"]:
    """Returns the best of K actions by the critics; a single one as it is, judged by nobody."""
    return actions[0] if actions.shape[0] == 1 else best_of(q, obs, actions)[0]


def check_particles(num_particles: int) -> None:
    """Refuses a number of candidates below 1."""
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, got {num_particles}")


def best_of(
    q: Q, obs: Float[Array, "B O"], actions: Float[Array, "K B A"]
) -> tuple[Float[Array, "B A"], Float[Array, "K B"]]:
    """Returns the candidate with the largest value in each state, clipped to [-1, 1].

    Candidates are valued as they come and clipped afterwards, as in the released code.

    Returns:
        `(action [B, A], values [K, B])`.
    """
    values = q(obs[None], actions)
    best = jnp.argmax(values, axis=0)
    chosen = jnp.take_along_axis(actions, best[None, ..., None], axis=0)[0]
    return jnp.clip(chosen, -1.0, 1.0), values
