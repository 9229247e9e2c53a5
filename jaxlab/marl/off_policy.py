"""Optimism off-policy: every agent's values of its own actions, from a replay.

Q_i(o_i, a_i) is the root of E weight(r + gamma V_i(o'_i) - Q_i) = 0 for the weight of a style,
found by its loss; V_i is the same measure of Q_i under the agent's own policy, of slow copies in
targets. The actor climbs V_i over all its actions. A transition shows what the partners did then:
the replay should be short.

Zhang et al. 2025, arXiv:2509.24047. As all critics that see no partner these are optimistic about
luck too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxlab import envs
from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.envs import spaces
from jaxlab.learning import actor_critic
from jaxlab.learning import replay as replay_lib
from jaxlab.learning import settings as settings_lib
from jaxlab.learning.actor_critic import Networks
from jaxlab.learning.settings import Settings
from jaxlab.marl import experience, joint_critic, optimism
from jaxlab.marl.experience import Batch
from jaxlab.marl.optimism import Optimism
from jaxlab.nn import Mlp


class OffPolicyState(NamedTuple):
    """All that evolves, and the settings.

    Attributes:
        params: parameters of the policies, see `Networks`.
        critic_params: of the critics, one network for all agents.
        target_critic_params: their slow average, which targets are made with.
        opt_state, critic_opt_state: states of both optimizers.
        env: the environments.
        replay: ring of `Batch`, the oldest written over.
        returns: `[E]` rewards of the running episodes, added up.
        failures: steps of the environments that have failed so far.
        settings: see `Settings`.
        key: PRNG key of all draws to come.
    """

    params: PyTree
    critic_params: PyTree
    target_critic_params: PyTree
    opt_state: PyTree
    critic_opt_state: PyTree
    env: envs.State
    replay: replay_lib.Replay
    returns: Float[Array, " E"]
    failures: Int[Array, ""]
    settings: Settings
    key: Array


def make_off_policy(
    env: envs.Env,
    nets: Networks | None = None,
    *,
    style: Optimism | None = None,
    beta: float | None = None,
    capacity: int = 65_536,
    critic_hidden: tuple[int, ...] = (64, 64),
    num_steps: int = 4,
    num_updates: int = 4,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    policy_learning_rate: float = 3e-4,
    gamma: float = 0.99,
    tau: float = 0.005,
    entropy_coef: float = 0.01,
    max_grad_norm: float = 10.0,
    reward_scale: float = 1.0,
) -> Algorithm:
    """Makes the actor-critic; one step is `num_steps` of every environment and `num_updates`.

    Args:
        env: environments whose agents have one choice each; of agents' own rewards the mean counts.
        nets: of which the policies are used, by default two hidden layers of 64, one for all.
        style: how errors are judged: `optimism.entropic()` by default, `expectile()`, `neutral()`.
        beta: its parameter, in units of 1 over the scaled reward; by default that of the mean.
        capacity: transitions in the replay, a multiple of the environments.
        critic_hidden: widths of the hidden layers of the critic.
        num_steps: steps of each environment between updates.
        num_updates: gradient steps of critic and policies.
        batch_size: transitions of each.
        learning_rate, policy_learning_rate: of Adam for critic and policies.
        gamma: discount.
        tau: share of the new critic in its slow average, at each gradient step.
        entropy_coef: weight of the policies' entropy.
        max_grad_norm: both gradients are shortened to this.
        reward_scale: factor of rewards.

    Returns:
        The algorithm; its `init(key, settings)` takes other numbers for `beta` and those from
        `learning_rate` on. Metrics: `critic/loss`, `critic/weight`, the mean weight of errors, near
        0 where the critic has caught up, `critic/excess`, the share of errors held back by a limit,
        `policy/value`, the optimistic value, `policy/entropy`, `env/return`, `env/failed`.

    Raises:
        ValueError: if agents do not have one choice each, or counts or numbers are out of range.

    Example:
        >>> env = envs.make_env(envs.game_task(envs.climbing()), num_envs=64)
        >>> algorithm = make_off_policy(env, beta=0.3)
    """
    E = env.num_envs
    _, A = experience.check_choices(env, "a critic of actions")
    counts = {
        "capacity": capacity,
        "num_steps": num_steps,
        "num_updates": num_updates,
        "batch_size": batch_size,
    }
    for name, count in counts.items():
        if not spaces.is_count(count):
            raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")
    if capacity % E:
        raise ValueError(f"capacity must be a multiple of the {E} environments, got {capacity}")
    style = optimism.style_or(style)
    numbers = {
        "beta": style.default if beta is None else beta,
        "learning_rate": learning_rate,
        "policy_learning_rate": policy_learning_rate,
        "gamma": gamma,
        "tau": tau,
        "entropy_coef": entropy_coef,
        "max_grad_norm": max_grad_norm,
        "reward_scale": reward_scale,
    }
    rules = joint_critic.RULES | {"beta": style.rule}
    settings_lib.fill(None, numbers, rules)

    def check(settings: Any) -> None:
        settings_lib.check_given(settings, numbers, rules)
        optimism.check_parameters(style.measure, settings)

    check({"beta": numbers["beta"]})
    policies = actor_critic.make_networks(env, hidden=(64, 64)) if nets is None else nets
    network, act = Mlp(critic_hidden, A), experience.acting(env, policies)

    def q_of(params: PyTree, obs: PyTree) -> Float[Array, "B N A"]:
        out: Any = network.apply(params, envs.actor_obs(env, obs))
        return out

    def init(key: jax.Array, settings: Mapping[str, Any] | None = None) -> OffPolicyState:
        given = settings_lib.fill(settings, numbers, rules)
        key, key_policy, key_value, key_critic, key_env = jax.random.split(key, 5)
        params = policies.init(key_policy, key_value)
        critic_params = network.init(key_critic, jnp.zeros((env.obs_size,)))
        state = OffPolicyState(
            params,
            critic_params,
            jax.tree.map(jnp.copy, critic_params),
            experience.optimizer(given, "policy_learning_rate").init(params),
            experience.optimizer(given, "learning_rate").init(critic_params),
            env.reset(key_env),
            (),  # pyright: ignore[reportArgumentType]
            jnp.zeros((E,), jnp.float32),
            jnp.zeros((), jnp.int32),
            given,
            key,
        )
        _, (seen, _) = jax.eval_shape(act, state, key)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), seen)
        return state._replace(replay=replay_lib.init(capacity, one, batch=E))

    def collect(state: OffPolicyState, key: jax.Array) -> tuple[OffPolicyState, Any]:
        state, (data, ended) = act(state, key)
        return state._replace(replay=replay_lib.add(state.replay, data)), ended

    def update(state: OffPolicyState, key: jax.Array) -> tuple[OffPolicyState, dict]:
        given = state.settings
        beta, risk = given["beta"], style.measure(given["beta"])
        batch: Batch = replay_lib.sample(key, state.replay, batch_size)[0]
        sound = batch.sound[:, None]

        def value(params: PyTree, obs: PyTree, log_pi: jax.Array) -> Float[Array, "B N"]:
            return risk.value(jax.lax.stop_gradient(q_of(params, obs)), jnp.exp(log_pi))

        next_log_pi = experience.log_probs(
            env, policies, state.params, batch.next_obs, batch.next_mask
        )
        next_value = value(state.target_critic_params, batch.next_obs, next_log_pi)
        target = batch.reward[:, None] + batch.discount[:, None] * next_value
        target = jax.lax.stop_gradient(target)

        def critic_loss(params: PyTree) -> tuple[jax.Array, dict]:
            q = jnp.take_along_axis(q_of(params, batch.obs), batch.action[..., None], axis=-1)
            error = jnp.where(sound, target - q[..., 0], 0.0)
            loss = jnp.mean(style.loss(error, beta))
            return loss, {
                "critic/loss": loss,
                "critic/weight": jnp.mean(style.critic_weight(error, beta)),
                "critic/excess": jnp.mean(style.excess(error, beta).astype(jnp.float32)),
            }

        def policy_loss(params: PyTree, critic: PyTree) -> tuple[jax.Array, dict]:
            log_pi = experience.log_probs(env, policies, params, batch.obs, batch.mask)
            v = value(critic, batch.obs, log_pi)
            entropy = experience.entropy(log_pi)
            loss = -jnp.mean(jnp.sum(v, axis=1)) - given["entropy_coef"] * v.shape[1] * entropy
            return loss, {"policy/value": jnp.mean(v), "policy/entropy": entropy}

        grads, metrics = jax.grad(critic_loss, has_aux=True)(state.critic_params)
        updates, critic_opt_state = experience.optimizer(given, "learning_rate").update(
            grads, state.critic_opt_state, state.critic_params
        )
        critic = optax.apply_updates(state.critic_params, updates)
        grads, more = jax.grad(policy_loss, has_aux=True)(state.params, critic)
        updates, opt_state = experience.optimizer(given, "policy_learning_rate").update(
            grads, state.opt_state, state.params
        )
        state = state._replace(
            params=optax.apply_updates(state.params, updates),
            critic_params=critic,
            target_critic_params=optax.incremental_update(
                critic, state.target_critic_params, given["tau"]
            ),
            opt_state=opt_state,
            critic_opt_state=critic_opt_state,
        )
        return state, metrics | more

    def step(state: OffPolicyState) -> tuple[OffPolicyState, Metrics]:
        key, key_act, key_learn = jax.random.split(state.key, 3)
        state, ended = jax.lax.scan(
            collect, state._replace(key=key), jax.random.split(key_act, num_steps)
        )
        state, metrics = jax.lax.scan(update, state, jax.random.split(key_learn, num_updates))
        metrics: Metrics = {name: jnp.mean(x) for name, x in metrics.items()}
        metrics["env/failed"] = state.failures.astype(jnp.float32)
        metrics["env/return"] = jax.tree.map(jnp.sum, ended)
        return state, metrics

    return Algorithm(init, step, check=check)
