"""Gradient steps of the learner: of the critics, and of the policy with all that follows it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxlab.core.types import Metrics, PyTree, Transition
from jaxlab.learning import collecting, normalization
from jaxlab.learning import replay as replay_lib
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import weights
from jaxlab.rl.critics import Critics
from jaxlab.rl.policy import Context, Policy
from jaxlab.rl.train_state import TrainState


class Batch(NamedTuple):
    """What the policy learns from: the batch of the critics' last step.

    Attributes:
        transitions: `[B, ...]` of the replay, observations as critics and policy see them.
        index: `[B]` int32, where they lie in the replay.
        next_action: `[B, ...]`, the action whose value was the critics' target.
    """

    transitions: Transition
    index: Int[Array, " B"]
    next_action: jax.Array


class Updates(NamedTuple):
    """Gradient steps.

    Attributes:
        critics: `critics(state, key) -> (state, (Batch, metrics))`, one step of the critics.
        policy: `policy(state, key, batch) -> (state, metrics)`, one step of the policy, then
            temperature, targets and statistics.
    """

    critics: Callable[[TrainState, jax.Array], tuple[TrainState, tuple[Batch, Metrics]]]
    policy: Callable[[TrainState, jax.Array, Batch], tuple[TrainState, Metrics]]


def make_updates(
    policy: Policy,
    critics: Critics,
    *,
    see: Callable[[Any], jax.Array],
    batch_size: int,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None,
    double_critic_step: bool,
) -> Updates:
    """Makes the gradient steps; arguments are as `learner.make_learner` takes them, or its state.

    Args:
        see: `see(obs) -> [B, F]`, an observation as one array.
    """

    def update_critics(
        state: TrainState, key: jax.Array
    ) -> tuple[TrainState, tuple[Batch, Metrics]]:
        key_batch, key_augment, key_action, key_target = jax.random.split(key, 4)
        batch, index = replay_lib.sample(key_batch, state.replay, batch_size)
        obs, next_obs = (collecting.widen(x, state.env.obs) for x in (batch.obs, batch.next_obs))
        if augment is not None:
            keys = jax.random.split(key_augment)
            obs, next_obs = augment(keys[0], obs), augment(keys[1], next_obs)
        obs, next_obs = (
            see(normalization.normalize_obs(state.obs_stats, x)) for x in (obs, next_obs)
        )
        batch = batch._replace(obs=obs, next_obs=next_obs)
        next_features = jax.lax.stop_gradient(critics.encode(state.critic_params, next_obs))
        next_action, bonus, metrics = policy.propose(
            key_action,
            state.policy_params,
            state.policy_average_params,
            next_features,
            critics_lib.smaller(critics, state.critic_params),
            jnp.exp(state.log_alpha),
            **masked(batch.next_action_mask),
        )
        next_action = jax.lax.stop_gradient(next_action)
        gamma, reward_scale = (
            state.settings[name].astype(batch.reward.dtype) for name in ("gamma", "reward_scale")
        )
        data = critics_lib.Transitions(
            obs,
            batch.action,
            reward_scale * batch.reward,
            batch.terminated,
            next_features,
            next_action,
            jax.lax.stop_gradient(bonus),
            batch.duration,
            batch.action_mask,
        )
        (loss, values), grads = jax.value_and_grad(critics.loss, argnums=1, has_aux=True)(
            key_target, state.critic_params, state.target_critic_params, data, gamma
        )
        params, opt_state = state.critic_params, state.critic_opt_state
        optimizer = optax.adam(state.settings["critic_learning_rate"])
        for _ in range(2 if double_critic_step else 1):
            steps, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, steps)
        state = state._replace(
            critic_params=params, critic_opt_state=opt_state, updates=state.updates + 1
        )
        metrics = {"critic/loss": loss, "critic/q": jnp.mean(values), **metrics}
        return state, (Batch(batch, index, next_action), metrics)

    def update_policy(
        state: TrainState, key: jax.Array, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        key_loss, key_refine = jax.random.split(key)
        context = _context(state, batch)
        if policy.refine is not None:
            extras = policy.refine(key_refine, state.policy_params, context)
            context = context._replace(extras=extras)
            state = _write_extras(state, batch.index, extras)
        (loss, found), grads = jax.value_and_grad(policy.loss, argnums=1, has_aux=True)(
            key_loss, state.policy_params, context
        )
        steps, policy_opt_state = policy.optimizer.update(
            grads, state.policy_opt_state, state.policy_params
        )
        faster = state.settings["policy_rate_factor"]
        steps = jax.tree.map(lambda x: x * faster.astype(x.dtype), steps)
        params = optax.apply_updates(state.policy_params, steps)
        log_alpha, alpha_opt_state = _cool(state, found.entropy_gap)
        tau = state.settings["tau"]
        state = state._replace(
            policy_params=params,
            policy_average_params=_average(state, params),
            policy_opt_state=policy_opt_state,
            target_critic_params=_follow(state.critic_params, state.target_critic_params, tau),
            log_alpha=log_alpha,
            alpha_opt_state=alpha_opt_state,
            stats=weights.update_stats(state.stats, found.values, count=policy.policy_every),
        )
        return state, {
            "policy/loss": loss,
            "policy/q_mean": jnp.mean(found.values),
            "policy/q_std": jnp.std(found.values),
            "policy/alpha": jnp.exp(log_alpha),
            **found.metrics,
        }

    def _context(state: TrainState, batch: Batch) -> Context:
        data = batch.transitions
        obs, next_obs = (
            jax.lax.stop_gradient(critics.encode(state.critic_params, x))
            for x in (data.obs, data.next_obs)
        )
        return Context(
            obs=obs,
            action=data.action,
            next_obs=next_obs,
            terminated=data.terminated,
            next_action=batch.next_action,
            extras=data.extras,
            q=critics_lib.smaller(critics, state.critic_params),
            q_first=lambda obs, action: critics.apply(state.critic_params, obs, action)[0],
            q_target=critics_lib.smaller(critics, state.target_critic_params),
            alpha=jnp.exp(state.log_alpha),
            stats=state.stats,
            updates=state.updates,
            action_mask=data.action_mask,
            next_action_mask=data.next_action_mask,
            settings=state.settings,
            average_params=state.policy_average_params,
        )

    def _average(state: TrainState, params: PyTree) -> PyTree:
        """Follows the parameters, or becomes them when the policy has made its steps."""
        if not policy.renew_every:
            return _follow(params, state.policy_average_params, state.settings["tau"])
        due = (state.updates // policy.policy_every) % policy.renew_every == 0
        return jax.tree.map(
            lambda new, old: jnp.where(due, new, old), params, state.policy_average_params
        )

    def _cool(state: TrainState, gap: jax.Array) -> tuple[jax.Array, Any]:
        """Moves the temperature when as many critic updates have passed as it waits for."""
        if not policy.alpha_every:
            return state.log_alpha, state.alpha_opt_state
        before = state.updates - policy.policy_every
        due = state.updates // policy.alpha_every > before // policy.alpha_every
        gap = gap.astype(state.log_alpha.dtype)
        still = (state.log_alpha, state.alpha_opt_state)
        optimizer = optax.adam(state.settings["alpha_learning_rate"])
        step, opt_state = optimizer.update(gap, state.alpha_opt_state, state.log_alpha)
        moved = (optax.apply_updates(state.log_alpha, step), opt_state)
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), moved, still)

    return Updates(update_critics, update_policy)


def masked(mask: Any) -> dict[str, jax.Array]:
    """Returns the keyword `mask` of a policy where there are masks, and nothing elsewhere."""
    return {} if isinstance(mask, tuple) else {"mask": mask}


def _follow(online: PyTree, target: PyTree, tau: jax.Array) -> PyTree:
    """Moves parameters by a share tau towards others, in their own precision."""

    def move(new: jax.Array, old: jax.Array) -> jax.Array:
        share = tau.astype(old.dtype)
        return share * new + (1.0 - share) * old

    return jax.tree.map(move, online, target)


def _write_extras(state: TrainState, index: jax.Array, extras: Any) -> TrainState:
    data = state.replay.data
    of_extras = replay_lib.write(state.replay._replace(data=data.extras), index, extras)
    data = data._replace(extras=of_extras.data)
    return state._replace(replay=state.replay._replace(data=data))
