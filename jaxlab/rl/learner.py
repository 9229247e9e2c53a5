"""One off-policy learner for every actor: critics, replay, targets, temperature, exploration.

A step of the algorithm acts in all environments, stores what happened, and makes gradient steps on
the critics; every few of them the policy, the temperature and the targets move. The whole of it,
environment included, is one pure function, so that a chunk of steps is one program on the device.
"""

import math
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxlab.core.types import Algorithm, Metrics, Transition
from jaxlab.envs import Env, State
from jaxlab.learning import normalization
from jaxlab.learning import replay as replay_lib
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import weights
from jaxlab.rl.critics import Critics
from jaxlab.rl.policy import Context, Policy


class TrainState(NamedTuple):
    """All that evolves.

    Attributes:
        policy, policy_average: parameters of the actor, and their running average.
        policy_opt: of its optimizer.
        critics, critics_target: stacked parameters.  critics_opt: of Adam.
        log_alpha: temperature.  alpha_opt: of Adam.
        stats: running mean and std of values.
        obs_stats: of the observations, see `normalization`; empty where they are taken as they are.
        replay: ring of `Transition`.
        env: of the environments.
        updates: int32, gradient steps of the critics.
        failures: int32, steps of environments that were not finite.
        returns: `[E]` of the running episodes.  finished: `[E]` of the last one that ended.
        key: of all draws.
    """

    policy_params: Any
    policy_average_params: Any
    policy_opt_state: Any
    critic_params: Any
    target_critic_params: Any
    critic_opt_state: Any
    log_alpha: Float[Array, ""]
    alpha_opt_state: Any
    stats: weights.Stats
    obs_stats: normalization.ObsStats | tuple[()]
    replay: replay_lib.Replay
    env: State
    updates: Int[Array, ""]
    failures: Int[Array, ""]
    returns: Float[Array, " E"]
    finished: Float[Array, " E"]
    key: Array


def _seed_axes() -> Any:
    state, ring = (typing.cast(Any, record) for record in (TrainState, replay_lib.Replay))
    axes = state(*(0,) * len(TrainState._fields))
    return axes._replace(replay=ring(0, None, None), updates=None)


SEED_AXES = _seed_axes()
"""Axes of seeds in a `TrainState` of several, as `jax.vmap` takes them. What all seeds share, the
count of updates and where the replay is written, is one number: a branch that is rarely taken is
skipped, and the replay is written in place."""


def make_learner(
    env: Env,
    policy: Policy,
    *,
    critics: Critics | None = None,
    gamma: float = 0.99,
    tau: float = 0.005,
    batch_size: int = 256,
    capacity: int = 1_000_000,
    warmup: int = 30_000,
    num_updates: int = 1,
    reward_scale: float = 0.2,
    critic_learning_rate: float = 3e-4,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    double_critic_step: bool = False,
    store_clipped: bool = True,
    normalize_obs: bool = False,
    obs_dtype: Any = None,
) -> Algorithm:
    """Makes the learner; the defaults are those of the released code of arXiv:2507.23675.

    A step of the algorithm holds one update of the policy and of the targets, or several: it acts
    `policy.policy_every / num_updates` times where that is more than once, see
    `env_steps_per_step`.

    Args:
        env: a batch of environments.
        policy: the actor.
        critics: three layers of 256 with Mish by default.
        gamma: discount.  tau: share of the online parameters that targets take at each move.
        batch_size: transitions of a gradient step.
        capacity: transitions that the replay holds; a multiple of the environments.
        warmup: transitions by uniform actions before the first update.
        num_updates: gradient steps of the critics for each step of the environments. With E
            environments the ratio is num_updates / E a transition: 1 / 5 in the paper.
        reward_scale: factor of rewards.
        critic_learning_rate: of Adam.
        augment: `augment(key, obs [B, O]) -> [B, O]` of the observations of a batch, such as
            `functools.partial(nn.random_shift, shape=(H, W, C))` for images.
        double_critic_step: apply each gradient of the critics twice, as the released code does
            with flows and DPMD (its quirk, off by default).
        store_clipped: the replay holds the action clipped to [-1, 1], which is what the environment
            gets in any case; else the one before the clip.
        normalize_obs: critics and policy see observations less their running mean, over their
            running standard deviation; so must what acts with the result, by
            `rl.normalize_obs(state.obs_stats, obs)`.
        obs_dtype: that the replay holds observations in, such as uint8 for images; theirs by
            default.

    Raises:
        ValueError: if a number is out of range, the warm-up holds less than a batch or more than
            the replay, the replay does not divide into the environments' steps, updates and
            `policy.policy_every` do not divide each other, or the policy is for another size of
            action.
    """
    E = env.num_envs
    _check(env, policy, gamma, tau, batch_size, capacity, warmup, num_updates)
    if critic_learning_rate <= 0.0 or not 0.0 < reward_scale < math.inf:
        raise ValueError(
            "critic_learning_rate and reward_scale must be positive, got "
            f"{critic_learning_rate}, {reward_scale}"
        )
    critics = (
        critics_lib.make_critics(env.obs_size, env.action_size) if critics is None else critics
    )
    critic_optimizer = optax.adam(critic_learning_rate)
    alpha_optimizer = optax.adam(policy.alpha_learning_rate)
    acts, blocks, each = _division(policy.policy_every, num_updates)

    def init(key: jax.Array) -> TrainState:
        key, key_policy, key_critics, key_env, key_warmup = jax.random.split(key, 5)
        params, critic_params = policy.init(key_policy), critics.init(key_critics)
        log_alpha = jnp.log(jnp.asarray(policy.alpha_init, jnp.float32))
        env_state = env.reset(key_env)
        seen = env_state.obs[0].astype(obs_dtype or env_state.obs.dtype)
        example = Transition(
            obs=seen,
            action=jnp.zeros((env.action_size,)),
            reward=jnp.zeros(()),
            terminated=jnp.zeros((), bool),
            truncated=jnp.zeros((), bool),
            next_obs=seen,
            extras=_extras(jnp.zeros((1, env.action_size)), first=True),
        )
        state = TrainState(
            policy_params=params,
            policy_average_params=jax.tree.map(jnp.copy, params),
            policy_opt_state=policy.optimizer.init(params),
            critic_params=critic_params,
            target_critic_params=jax.tree.map(jnp.copy, critic_params),
            critic_opt_state=critic_optimizer.init(critic_params),
            log_alpha=log_alpha,
            alpha_opt_state=alpha_optimizer.init(log_alpha),
            stats=weights.init_stats(),
            obs_stats=normalization.init_obs_stats(env.obs_size) if normalize_obs else (),
            replay=replay_lib.init(capacity, example, batch=E),
            env=env_state,
            updates=jnp.zeros((), jnp.int32),
            failures=jnp.zeros((), jnp.int32),
            returns=jnp.zeros((E,)),
            finished=jnp.zeros((E,)),
            key=key,
        )

        def random_step(state: TrainState, key: jax.Array) -> tuple[TrainState, None]:
            shape = (E, env.action_size)
            action = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
            return collect(state, action), None

        keys = jax.random.split(key_warmup, -(-warmup // E))
        return jax.lax.scan(random_step, state, keys)[0]

    def _extras(action: jax.Array, *, first: bool = False) -> Any:
        if policy.extras is None:
            return ()
        stored = policy.extras(action)
        return jax.tree.map(lambda x: x[0], stored) if first else stored

    def collect(state: TrainState, action: jax.Array) -> TrainState:
        """Steps all environments and stores what happened."""
        clipped = jnp.clip(action, -1.0, 1.0)
        after = env.step(state.env, clipped)
        stored = clipped if store_clipped else action
        transition = Transition(
            obs=state.env.obs,
            action=stored,
            reward=after.reward,
            terminated=after.terminated,
            truncated=after.truncated,
            next_obs=after.final_obs,
            extras=_extras(stored),
        )
        if isinstance(state.obs_stats, normalization.ObsStats):
            seen = normalization.update_obs_stats(state.obs_stats, after.final_obs)
            state = state._replace(obs_stats=seen)
        state = state._replace(failures=state.failures + jnp.sum(after.failed, dtype=jnp.int32))
        transition = _without_failed(transition, after.failed)
        returns = state.returns + after.reward
        done = after.terminated | after.truncated
        state = state._replace(
            replay=replay_lib.add(state.replay, transition),
            env=after,
            returns=jnp.where(done, 0.0, returns),
            finished=jnp.where(done, returns, state.finished),
        )
        return state

    def act(state: TrainState, key: jax.Array) -> jax.Array:
        params = state.policy_average_params if policy.act_with_average else state.policy_params
        q = critics_lib.smaller(critics, state.critic_params)
        obs = normalization.normalize_obs(state.obs_stats, state.env.obs)
        features = critics.encode(state.critic_params, obs)
        return policy.act(key, params, features, q, jnp.exp(state.log_alpha), explore=True)

    def update_critics(state: TrainState, key: jax.Array) -> tuple[TrainState, tuple]:
        """One gradient step; returns what the policy's own step needs."""
        key_batch, key_augment, key_action, key_target = jax.random.split(key, 4)
        batch, index = replay_lib.sample(key_batch, state.replay, batch_size)
        dtype = state.env.obs.dtype
        batch = batch._replace(obs=batch.obs.astype(dtype), next_obs=batch.next_obs.astype(dtype))
        if augment is not None:
            keys = jax.random.split(key_augment)
            batch = batch._replace(
                obs=augment(keys[0], batch.obs), next_obs=augment(keys[1], batch.next_obs)
            )
        batch = batch._replace(
            obs=normalization.normalize_obs(state.obs_stats, batch.obs),
            next_obs=normalization.normalize_obs(state.obs_stats, batch.next_obs),
        )
        next_features = jax.lax.stop_gradient(critics.encode(state.critic_params, batch.next_obs))
        q = critics_lib.smaller(critics, state.critic_params)
        next_action, bonus, metrics = policy.propose(
            key_action,
            state.policy_params,
            state.policy_average_params,
            next_features,
            q,
            jnp.exp(state.log_alpha),
        )
        next_action = jax.lax.stop_gradient(next_action)
        data = critics_lib.Transitions(
            batch.obs,
            batch.action,
            reward_scale * batch.reward,
            batch.terminated,
            next_features,
            next_action,
            jax.lax.stop_gradient(bonus),
        )
        (loss, values), grads = jax.value_and_grad(critics.loss, argnums=1, has_aux=True)(
            key_target, state.critic_params, state.target_critic_params, data, gamma
        )
        params, opt_state = state.critic_params, state.critic_opt_state
        for _ in range(2 if double_critic_step else 1):
            steps, opt_state = critic_optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, steps)
        state = state._replace(
            critic_params=params, critic_opt_state=opt_state, updates=state.updates + 1
        )
        metrics = {"critic/loss": loss, "critic/q": jnp.mean(values), **metrics}
        return state, (batch, index, next_action, metrics)

    def update_policy(
        state: TrainState,
        key: jax.Array,
        batch: Transition,
        index: jax.Array,
        next_action: jax.Array,
    ) -> tuple[TrainState, dict[str, Any]]:
        """One gradient step of the policy, then temperature, targets and statistics."""
        key_loss, key_refine = jax.random.split(key)
        obs, next_obs = (
            jax.lax.stop_gradient(critics.encode(state.critic_params, x))
            for x in (batch.obs, batch.next_obs)
        )
        context = Context(
            obs=obs,
            action=batch.action,
            next_obs=next_obs,
            terminated=batch.terminated,
            next_action=next_action,
            extras=batch.extras,
            q=critics_lib.smaller(critics, state.critic_params),
            q_first=lambda obs, action: critics.apply(state.critic_params, obs, action)[0],
            q_target=critics_lib.smaller(critics, state.target_critic_params),
            alpha=jnp.exp(state.log_alpha),
            stats=state.stats,
            updates=state.updates,
        )
        if policy.refine is not None:
            extras = policy.refine(key_refine, state.policy_params, context)
            context = context._replace(extras=extras)
            data = state.replay.data
            of_extras = replay_lib.write(state.replay._replace(data=data.extras), index, extras)
            data = data._replace(extras=of_extras.data)
            state = state._replace(replay=state.replay._replace(data=data))
        (loss, found), grads = jax.value_and_grad(policy.loss, argnums=1, has_aux=True)(
            key_loss, state.policy_params, context
        )
        steps, policy_opt_state = policy.optimizer.update(
            grads, state.policy_opt_state, state.policy_params
        )
        params = optax.apply_updates(state.policy_params, steps)
        log_alpha, alpha_opt_state = _cool(state, found.entropy_gap)
        state = state._replace(
            policy_params=params,
            policy_average_params=optax.incremental_update(
                params, state.policy_average_params, tau
            ),
            policy_opt_state=policy_opt_state,
            target_critic_params=optax.incremental_update(
                state.critic_params, state.target_critic_params, tau
            ),
            log_alpha=log_alpha,
            alpha_opt_state=alpha_opt_state,
            stats=weights.update_stats(state.stats, found.values, count=policy.policy_every),
        )
        metrics = {
            "policy/loss": loss,
            "policy/q_mean": jnp.mean(found.values),
            "policy/q_std": jnp.std(found.values),
            "policy/alpha": jnp.exp(log_alpha),
            **found.metrics,
        }
        return state, metrics

    def _cool(state: TrainState, gap: jax.Array) -> tuple[jax.Array, Any]:
        """Moves the temperature when as many critic updates have passed as it waits for."""
        if not policy.alpha_every:
            return state.log_alpha, state.alpha_opt_state
        before = state.updates - policy.policy_every
        due = state.updates // policy.alpha_every > before // policy.alpha_every
        gap = gap.astype(state.log_alpha.dtype)
        step, alpha_opt_state = alpha_optimizer.update(gap, state.alpha_opt_state, state.log_alpha)
        moved = (optax.apply_updates(state.log_alpha, step), alpha_opt_state)
        return jax.tree.map(
            lambda new, old: jnp.where(due, new, old),
            moved,
            (state.log_alpha, state.alpha_opt_state),
        )

    def block(state: TrainState, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Updates of the critics, of which the last one's batch improves the policy."""

        def one(state: TrainState, key: jax.Array) -> tuple[TrainState, tuple]:
            if acts == 1:
                state, found = update_critics(state, key)
                return state, found
            key_act, key_updates = jax.random.split(key)
            state = collect(state, act(state, key_act))
            state, found = jax.lax.scan(update_critics, state, jax.random.split(key_updates, each))
            return state, jax.tree.map(lambda x: x[-1], found)

        count = acts if acts > 1 else policy.policy_every
        key_critics, key_policy = jax.random.split(key)
        state, found = jax.lax.scan(one, state, jax.random.split(key_critics, count))
        batch, index, next_action = jax.tree.map(lambda x: x[-1], found[:3])
        state, improved = update_policy(state, key_policy, batch, index, next_action)
        return state, _mean(found[3]) | improved

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        key, key_act, key_blocks = jax.random.split(state.key, 3)
        state = state._replace(key=key)
        if acts == 1:
            state = collect(state, act(state, key_act))
        state, metrics = jax.lax.scan(block, state, jax.random.split(key_blocks, blocks))
        metrics = _mean(metrics)
        metrics["env/failed"] = state.failures.astype(jnp.float32)
        metrics["env/return"] = jnp.mean(state.finished)
        return state, metrics

    return Algorithm(init, step, seed_axes=SEED_AXES)


def env_steps_per_step(env: Env, policy: Policy, *, num_updates: int = 1) -> int:
    """Returns the transitions that one step of the learner collects."""
    return env.num_envs * _division(policy.policy_every, num_updates)[0]


def updates_per_step(policy: Policy, *, num_updates: int = 1) -> int:
    """Returns the critics' gradient steps in one step of the learner."""
    return max(policy.policy_every, num_updates)


def _division(policy_every: int, num_updates: int) -> tuple[int, int, int]:
    """Returns steps of the environments, blocks, and critic updates after each act of a block."""
    if num_updates % policy_every == 0:
        return 1, num_updates // policy_every, policy_every
    return policy_every // num_updates, 1, num_updates


def _without_failed(transition: Transition, failed: jax.Array) -> Transition:
    """Puts another environment's transition where a step failed; where all did, an end."""
    rows = jnp.where(failed, jnp.argmin(failed), jnp.arange(failed.size))
    kept = jax.tree.map(lambda x: x[rows], transition)
    return kept._replace(terminated=kept.terminated | jnp.all(failed))


def _mean(metrics: Any) -> dict[str, Any]:
    return {name: jnp.mean(x, axis=0) for name, x in metrics.items()}


def _check(
    env: Env,
    policy: Policy,
    gamma: float,
    tau: float,
    batch_size: int,
    capacity: int,
    warmup: int,
    num_updates: int,
) -> None:
    if policy.action_size != env.action_size:
        raise ValueError(
            f"the policy is for {policy.action_size} actions, {env.name} takes {env.action_size}"
        )
    if not (0.0 <= gamma <= 1.0 and 0.0 < tau <= 1.0):
        raise ValueError(f"gamma must lie in [0, 1] and tau in (0, 1], got {gamma} and {tau}")
    if min(batch_size, num_updates) < 1:
        raise ValueError(
            f"batch_size and num_updates must be at least 1, got {batch_size}, {num_updates}"
        )
    if not batch_size <= warmup <= capacity:
        raise ValueError(
            "the warm-up must fill a batch and fit into the replay: batch_size <= warmup <= "
            f"capacity, got {batch_size}, {warmup}, {capacity}"
        )
    if capacity % env.num_envs:
        raise ValueError(
            f"capacity must be a multiple of the {env.num_envs} environments, which are stored "
            f"together, got {capacity}"
        )
    larger, smaller = max(policy.policy_every, num_updates), min(policy.policy_every, num_updates)
    if larger % smaller:
        raise ValueError(
            f"num_updates {num_updates} and policy_every {policy.policy_every} must divide each "
            "other: a step holds whole updates of the policy"
        )
