"""What learners with critics of actions share: transitions, odds of every action, an optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxlab import envs
from jaxlab.core.types import Mean, PyTree
from jaxlab.envs import spaces
from jaxlab.learning import collecting
from jaxlab.learning.actor_critic import Networks
from jaxlab.learning.settings import Settings


class Batch(NamedTuple):
    """Transitions, `[B, ...]`; of agents' own rewards the mean, and False where a step failed."""

    obs: PyTree
    mask: PyTree
    action: Int[Array, "B N"]
    reward: Float[Array, " B"]
    discount: Float[Array, " B"]
    next_obs: PyTree
    next_mask: PyTree
    sound: Bool[Array, " B"]


def check_choices(env: envs.Env, what: str) -> tuple[int, int]:
    """Returns the numbers of agents and actions.

    Raises:
        ValueError: if agents do not have one choice each; `what` needs them.
    """
    if env.num_agents is None or not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(
            f"{env.name}: {what} needs agents with one choice each, got num_agents "
            f"{env.num_agents} and {env.action_space}"
        )
    return env.num_agents, env.action_space.num


def acting(env: envs.Env, policies: Networks) -> Callable:
    """Makes `act(state, key) -> (state, (Batch, Mean))`, a step of all environments.

    The state of the learner has `params`, `env`, `returns`, `failures` and `settings`; the `Mean`
    is that of the returns of the episodes that ended.
    """

    def act(state: Any, key: jax.Array) -> tuple[Any, tuple[Batch, Mean]]:
        given, before = state.settings, state.env
        action, _ = policies.sample(key, state.params, before.obs, before.action_mask)
        after = env.step(before, action)
        reward = after.reward.astype(jnp.float32).reshape(env.num_envs, -1)
        data = Batch(
            before.obs,
            before.action_mask,
            action,
            given["reward_scale"] * jnp.mean(reward, axis=1),
            jnp.where(after.terminated, 0.0, given["gamma"]),
            after.final_obs,
            after.final_action_mask,
            ~after.failed,
        )
        returned, ended = collecting.add_rewards(state.returns, after)
        state = state._replace(
            env=after,
            returns=returned,
            failures=state.failures + jnp.sum(after.failed, dtype=jnp.int32),
        )
        return state, (data, ended)

    return act


def log_probs(
    env: envs.Env, policies: Networks, params: PyTree, obs: PyTree, mask: PyTree
) -> Float[Array, "B N A"]:
    """Returns the log-probabilities of all actions."""

    def of(action: jax.Array) -> jax.Array:
        seen = envs.actor_obs(env, obs)
        return policies.evaluate(params, obs, mask, jnp.full(seen.shape[:-1], action))[0]

    actions = jnp.arange(spaces.num_logits(env.action_space), dtype=jnp.int32)
    return jnp.moveaxis(jax.vmap(of)(actions), 0, -1)


def optimizer(given: Settings, rate: str) -> optax.GradientTransformation:
    """Makes Adam at the setting `rate`, with gradients cut at `max_grad_norm`."""
    return optax.chain(
        optax.clip_by_global_norm(given["max_grad_norm"]), optax.adam(given[rate], eps=1e-5)
    )


def entropy(log_pi: Float[Array, "B N A"]) -> Float[Array, ""]:
    """Returns the mean entropy of a batch."""
    safe = jnp.where(jnp.isfinite(log_pi), log_pi, 0.0)
    return -jnp.mean(jnp.sum(jnp.exp(log_pi) * safe, axis=-1))
