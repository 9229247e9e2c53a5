"""One off-policy learner for every actor: critics, replay, targets, temperature, exploration.

A step of the algorithm acts in all environments, stores what happened (`learning.collecting`), and
makes gradient steps on the critics; every few of them the policy, the temperature and the targets
move (`updating`). The whole of it, environment included, is one pure function, so that a chunk of
steps is one program on the device.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import types
from jaxlab.core.types import Algorithm, Mean, Metrics, PyTree
from jaxlab.envs import Env, spaces
from jaxlab.learning import collecting, normalization
from jaxlab.learning import settings as settings_lib
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import updating, weights
from jaxlab.rl.critics import Critics
from jaxlab.rl.policy import Policy
from jaxlab.rl.train_state import SEED_AXES, TrainState

RULES = {
    "gamma": settings_lib.SHARE,
    "tau": settings_lib.POSITIVE_SHARE,
    "reward_scale": settings_lib.POSITIVE,
    "critic_learning_rate": settings_lib.POSITIVE,
    "policy_rate_factor": settings_lib.NOT_NEGATIVE,
    "alpha_init": settings_lib.POSITIVE,
    "alpha_learning_rate": settings_lib.NOT_NEGATIVE,
    "temperature": settings_lib.POSITIVE,
}
"""What the numbers must be that may be swept."""


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
    `env_steps_per_step`. Metrics: `env/return` is the mean return of the episodes that ended in the
    step, without those that a failed step cut off; `env/failed` counts steps of environments that
    were not finite, since the start.

    Args:
        env: a batch of environments without an agent axis. Where its observation is a dict, critics
            see all parts as one array (`join_obs`) and the actor its own part, which comes first.
        policy: the actor, of floats in [-1, 1] for a box, of integers for choices.
        critics: three layers of 256 with Mish by default; of a box alone.
        gamma: discount.
        tau: share of the online parameters that targets take at each move.
        batch_size: transitions of a gradient step.
        capacity: transitions that the replay holds; a multiple of the environments.
        warmup: transitions by uniform actions before the first update, of those that are allowed.
        num_updates: gradient steps of the critics for each step of the environments. With E
            environments the ratio is num_updates / E a transition: 1 / 5 in the paper.
        reward_scale: factor of rewards.
        critic_learning_rate: learning rate of the critics' Adam.
        augment: `augment(key, obs [B, O]) -> [B, O]` of the observations of a batch, such as
            `functools.partial(nn.random_shift, shape=(H, W, C))` for images.
        double_critic_step: apply each gradient of the critics twice, as the released code does
            with flows and DPMD (its quirk, off by default).
        store_clipped: the replay holds the action of a box clipped to [-1, 1], which is what the
            environment gets in any case; else the one before the clip.
        normalize_obs: critics and policy see observations less their running mean, over their
            running standard deviation; so must what acts with the result, by
            `rl.normalize_obs(state.obs_stats, obs)`.
        obs_dtype: that the replay holds observations in, such as uint8 for images of whole numbers;
            theirs by default. See `collecting.make_collector`.

    Returns:
        The algorithm; its `init(key, settings)` takes other numbers by name: `gamma`, `tau`,
        `reward_scale` and `critic_learning_rate`; the policy's `alpha_init`, `alpha_learning_rate`
        and what it has in `loss_settings`, such as a `temperature`; and `policy_rate_factor`, which
        multiplies the learning rate of the policy's optimizer, 1 by default. A sweep is
        `learning.over_seeds(learner, 2, settings={"gamma": jnp.array([0.9, 0.99])})`.

    Raises:
        ValueError: if a number is out of range, the warm-up holds less than a batch or more than
            the replay, the replay does not divide into the environments' steps, updates and
            `policy.policy_every` do not divide each other, the policy or the critics
            are for another space of actions, the policy ignores masks that there are, or is for
            another size of observation, critics for choices are missing, the environment has
            agents, or observations do not fit into `obs_dtype`.
    """
    _check(env, policy, gamma, tau, batch_size, capacity, warmup, num_updates)
    numbers = {
        "gamma": gamma,
        "tau": tau,
        "reward_scale": reward_scale,
        "critic_learning_rate": critic_learning_rate,
        "policy_rate_factor": 1.0,
        "alpha_init": policy.alpha_init,
        "alpha_learning_rate": policy.alpha_learning_rate,
    }
    if taken := numbers.keys() & policy.loss_settings.keys():
        raise ValueError(
            "loss_settings of the policy must have names of their own, got "
            f"{', '.join(sorted(taken))}"
        )
    numbers |= policy.loss_settings
    settings_lib.fill(None, numbers, RULES)
    if critics is None:
        if not isinstance(env.action_space, spaces.Box):
            raise ValueError(f"give critics for the choices of {env.name}, {env.action_space}")
        critics = critics_lib.make_critics(joined_size(env), env.action_size)
    _check_sizes(env, policy, critics)
    collector = collecting.make_collector(
        env,
        capacity=capacity,
        extras=policy.extras,
        normalize_obs=normalize_obs,
        obs_dtype=obs_dtype,
        store_clipped=store_clipped,
    )
    updates = updating.make_updates(
        policy,
        critics,
        see=lambda obs: join_obs(env, obs),
        batch_size=batch_size,
        augment=augment,
        double_critic_step=double_critic_step,
    )
    acts, blocks, each = _division(policy.policy_every, num_updates)

    def init(key: jax.Array, settings: Mapping[str, Any] | None = None) -> TrainState:
        values = settings_lib.fill(settings, numbers, RULES)
        key, key_policy, key_critics, key_env, key_warmup = jax.random.split(key, 5)
        params, critic_params = policy.init(key_policy), critics.init(key_critics)
        log_alpha = jnp.log(values["alpha_init"])
        experience = collector.warm_up(key_warmup, collector.init(key_env), warmup)
        return TrainState(
            policy_params=params,
            policy_average_params=jax.tree.map(jnp.copy, params),
            policy_opt_state=policy.optimizer.init(params),
            critic_params=critic_params,
            target_critic_params=jax.tree.map(jnp.copy, critic_params),
            critic_opt_state=optax.adam(values["critic_learning_rate"]).init(critic_params),
            log_alpha=log_alpha,
            alpha_opt_state=optax.adam(values["alpha_learning_rate"]).init(log_alpha),
            stats=weights.init_stats(),
            updates=jnp.zeros((), jnp.int32),
            **experience._asdict(),
            settings=values,
            key=key,
        )

    def act(state: TrainState, key: jax.Array) -> tuple[TrainState, Mean]:
        """Acts once in all environments; returns what ended."""
        params = state.policy_average_params if policy.act_with_average else state.policy_params
        obs = join_obs(env, normalization.normalize_obs(state.obs_stats, state.env.obs))
        action = policy.act(
            key,
            params,
            critics.encode(state.critic_params, obs),
            critics_lib.smaller(critics, state.critic_params),
            jnp.exp(state.log_alpha),
            explore=True,
            **updating.masked(state.env.action_mask),
        )
        experience, ended = collector.collect(state.experience, action)
        return state.with_experience(experience), ended

    def block(state: TrainState, key: jax.Array) -> tuple[TrainState, tuple[Metrics, Mean]]:
        """Updates of the critics, of which the last one's batch improves the policy."""

        def one(state: TrainState, key: jax.Array) -> tuple[TrainState, tuple]:
            if acts == 1:
                state, found = updates.critics(state, key)
                return state, (*found, _nothing(state))
            key_act, key_updates = jax.random.split(key)
            state, ended = act(state, key_act)
            keys = jax.random.split(key_updates, each)
            state, found = jax.lax.scan(updates.critics, state, keys)
            return state, (*jax.tree.map(lambda x: x[-1], found), ended)

        count = acts if acts > 1 else policy.policy_every
        key_critics, key_policy = jax.random.split(key)
        state, found = jax.lax.scan(one, state, jax.random.split(key_critics, count))
        batches, metrics, ended = found
        state, improved = updates.policy(state, key_policy, jax.tree.map(lambda x: x[-1], batches))
        return state, ({**_mean(metrics), **improved}, _sum(ended))

    def step(state: TrainState) -> tuple[TrainState, Metrics]:
        key, key_act, key_blocks = jax.random.split(state.key, 3)
        state, ended = state._replace(key=key), _nothing(state)
        if acts == 1:
            state, ended = act(state, key_act)
        state, (metrics, more) = jax.lax.scan(block, state, jax.random.split(key_blocks, blocks))
        return state, {
            **_mean(metrics),
            "env/failed": state.failures.astype(jnp.float32),
            "env/return": jax.tree.map(jnp.add, ended, _sum(more)),
        }

    def check(settings: Any) -> None:
        settings_lib.check_given(settings, numbers, RULES)

    name = f"{types.name_of(policy.loss)} {policy.name}".rstrip()
    return Algorithm(init, step, seed_axes=SEED_AXES, check=check, name=name)


def join_obs(env: Env, obs: PyTree) -> jax.Array:
    """Returns an observation as one array `[B, F]`: the actor's part, then all others by name.

    An observation that is one array stays as it is.
    """
    if env.actor_part is None:
        return obs
    parts = [obs[name] for name in (env.actor_part, *sorted(obs.keys() - {env.actor_part}))]
    lead, widest = parts[0].shape[:-1], max((x.dtype for x in parts), key=lambda d: d.itemsize)
    return jnp.concatenate([x.reshape(*lead, -1).astype(widest) for x in parts], axis=-1)


def joined_size(env: Env) -> int:
    """Returns F of `join_obs`, the size of what critics see; the actor sees `env.obs_size`."""
    obs = jax.eval_shape(env.reset, jax.random.key(0)).obs
    return sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(obs))


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


def _nothing(state: TrainState) -> Mean:
    zero = jnp.zeros((), state.returns.dtype)
    return Mean(zero, zero)


def _sum(ended: Mean) -> Mean:
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), ended)


def _mean(metrics: Metrics) -> dict[str, Any]:
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), dict(metrics))


def _check_sizes(env: Env, policy: Policy, critics: Critics) -> None:
    """Compares what networks were made for with what they will see, without running anything."""
    if critics.action_space not in (None, env.action_space):
        raise ValueError(
            f"the critics are for {critics.action_space}, {env.name} takes {env.action_space}"
        )
    if policy.obs_size is None:
        return
    seen = env.obs_size
    if env.actor_part is None:
        key = jax.random.key(0)
        params, obs = jax.eval_shape(critics.init, key), jax.eval_shape(env.reset, key).obs
        seen = jax.eval_shape(critics.encode, params, obs).shape[-1]
    if policy.obs_size != seen:
        raise ValueError(
            f"the policy is for observations of {policy.obs_size} numbers, in {env.name} it sees "
            f"{seen}"
        )


def _takes_mask(policy: Policy) -> bool:
    given = inspect.signature(policy.act).parameters.values()
    return any(p.name == "mask" or p.kind is p.VAR_KEYWORD for p in given)


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
    if policy.action_space not in (None, env.action_space):
        raise ValueError(
            f"the policy is for {policy.action_space}, {env.name} takes {env.action_space}"
        )
    mask = jax.eval_shape(env.reset, jax.random.key(0)).action_mask
    if not isinstance(mask, tuple) and not _takes_mask(policy):
        raise ValueError(
            f"{env.name} rules choices out by an action_mask, which the policy ignores"
        )
    if not (0.0 <= gamma <= 1.0 and 0.0 < tau <= 1.0):
        raise ValueError(f"gamma must lie in [0, 1] and tau in (0, 1], got {gamma} and {tau}")
    counts = {"batch_size": batch_size, "num_updates": num_updates, "warmup": warmup}
    for name, count in counts.items():
        if not spaces.is_count(count):
            raise ValueError(f"{name} must be at least 1, got {count}; give an integer")
    if not batch_size <= warmup <= capacity:
        raise ValueError(
            "the warm-up must fill a batch and fit into the replay: batch_size <= warmup <= "
            f"capacity, got {batch_size}, {warmup}, {capacity}"
        )
    larger, smaller = max(policy.policy_every, num_updates), min(policy.policy_every, num_updates)
    if larger % smaller:
        raise ValueError(
            f"num_updates {num_updates} and policy_every {policy.policy_every} must divide each "
            "other: a step holds whole updates of the policy"
        )
