"""Optimism by a critic of joint actions: trained together, played apart.

The critic learns the mean of r + gamma V(s') for every joint action, so that luck is averaged; the
measure is applied to what the agents do, and to nothing else. The actors climb V(s), whose
derivative by their probabilities is the weight of the theorem (`core.risk` knows it), summed over
all actions. With all joint actions at hand any measure will do; where they are too many, the
entropic one is taken over samples of the partners, the same ones for all actions of an agent.

Zhang et al. 2025, arXiv:2509.24047. At infinite beta it is Pareto actor-critic (Christianos et al.
2023, arXiv:2209.14344).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxlab import envs
from jaxlab.core import risk as risk_lib
from jaxlab.core.risk import Risk
from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.envs import spaces
from jaxlab.learning import actor_critic
from jaxlab.learning import settings as settings_lib
from jaxlab.learning.actor_critic import Networks
from jaxlab.learning.settings import Settings
from jaxlab.marl import experience, optimism, values
from jaxlab.marl.experience import Batch
from jaxlab.nn import Mlp

MOST_JOINT = 256
"""Joint actions up to which all of them are looked at."""
RULES = {
    "beta": optimism.WITH_INFINITY,
    "learning_rate": settings_lib.POSITIVE,
    "policy_learning_rate": settings_lib.POSITIVE,
    "gamma": settings_lib.SHARE,
    "tau": settings_lib.POSITIVE_SHARE,
    "entropy_coef": settings_lib.NOT_NEGATIVE,
    "max_grad_norm": settings_lib.LIMIT,
    "reward_scale": settings_lib.POSITIVE,
}


class JointState(NamedTuple):
    """All that evolves, and the settings.

    Attributes:
        params: parameters of the policies, see `Networks`.
        critic_params: of the joint critic.
        target_critic_params: their slow average, which targets are made with.
        opt_state, critic_opt_state: states of both optimizers.
        env: the environments.
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
    returns: Float[Array, " E"]
    failures: Int[Array, ""]
    settings: Settings
    key: Array


def make_joint(
    env: envs.Env,
    nets: Networks | None = None,
    *,
    measure: Callable[[Any], Risk] = risk_lib.entropic,
    beta: float = 0.5,
    num_samples: int = 16,
    critic_hidden: tuple[int, ...] = (64, 64),
    num_steps: int = 16,
    num_epochs: int = 4,
    num_minibatches: int = 4,
    learning_rate: float = 2e-3,
    policy_learning_rate: float = 5e-4,
    gamma: float = 0.99,
    tau: float = 0.02,
    entropy_coef: float = 0.01,
    max_grad_norm: float = 10.0,
    reward_scale: float = 1.0,
) -> Algorithm:
    """Makes the actor-critic; one step is a rollout of `num_steps` and its epochs.

    Args:
        env: environments whose agents have one choice each; of agents' own rewards the mean counts.
        nets: of which the policies are used, by default two hidden layers of 64, one for all.
        measure: of what the agents do, made from `beta`. Others than `core.risk.entropic` need at
            most 256 joint actions.
        beta: its parameter, in units of 1 over the scaled reward where it is the entropic one;
            infinity is Pareto actor-critic.
        num_samples: K, joint actions that stand for all where they are more than 256. The value is
            then too low by about beta Var Q / (2 K).
        critic_hidden: widths of the hidden layers of the critic.
        num_steps, num_epochs, num_minibatches: of a rollout and its use; minibatches are of single
            transitions.
        learning_rate, policy_learning_rate: of Adam for critic and policies.
        gamma: discount.
        tau: share of the new critic in its slow average, at each gradient step.
        entropy_coef: weight of the policies' entropy.
        max_grad_norm: both gradients are shortened to this.
        reward_scale: factor of rewards.

    Returns:
        The algorithm; its `init(key, settings)` takes other numbers for `beta` and those from
        `learning_rate` on. Metrics: `critic/loss`, `policy/value`, the optimistic value,
        `policy/entropy`, `env/return`, `env/failed`.

    Raises:
        ValueError: if agents do not have one choice each, counts or numbers are out of range, or a
            measure meets too many joint actions.

    Example:
        >>> env = envs.make_env(envs.game_task(envs.climbing("fully")), num_envs=64)
        >>> algorithm = make_joint(env, beta=0.5)
    """
    E = env.num_envs
    N, A = experience.check_choices(env, "a joint critic")
    counts = {
        "num_samples": num_samples,
        "num_steps": num_steps,
        "num_epochs": num_epochs,
        "num_minibatches": num_minibatches,
    }
    for name, count in counts.items():
        if not spaces.is_count(count):
            raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")
    if num_steps * E % num_minibatches:
        raise ValueError(
            f"num_minibatches must divide the {num_steps * E} transitions, got {num_minibatches}"
        )
    enumerates = A**N <= MOST_JOINT
    if not enumerates and measure is not risk_lib.entropic:
        raise ValueError(
            f"{env.name}: there are {A**N} joint actions; a measure of samples must be "
            f"core.risk.entropic, others take {MOST_JOINT} at most"
        )
    numbers = {
        "beta": beta,
        "learning_rate": learning_rate,
        "policy_learning_rate": policy_learning_rate,
        "gamma": gamma,
        "tau": tau,
        "entropy_coef": entropy_coef,
        "max_grad_norm": max_grad_norm,
        "reward_scale": reward_scale,
    }
    settings_lib.fill(None, numbers, RULES)

    def check(settings: Any) -> None:
        settings_lib.check_given(settings, numbers, RULES)
        optimism.check_parameters(measure, settings)

    check({"beta": beta})
    policies = actor_critic.make_networks(env, hidden=(64, 64)) if nets is None else nets
    network, act = Mlp(critic_hidden, 1), experience.acting(env, policies)
    log_probs = functools.partial(experience.log_probs, env, policies)

    def q_of(params: PyTree, obs: PyTree, action: Int[Array, "B K N"]) -> Float[Array, "B K"]:
        seen = envs.actor_obs(env, obs)
        seen = seen.reshape(seen.shape[0], 1, -1)
        chosen = jax.nn.one_hot(action, A, dtype=jnp.float32)
        out: Any = network.apply(params, seen, chosen.reshape(*action.shape[:-1], -1))
        return out[..., 0]

    def optimistic(
        key: jax.Array, critic_params: PyTree, obs: PyTree, log_pi: jax.Array, risk: Risk
    ) -> Float[Array, "B N"]:
        """Every agent's V; its derivative by the agent's own policy is that of the theorem."""
        size = log_pi.shape[0]
        pi = jnp.exp(log_pi)
        if enumerates:
            every = jnp.stack(jnp.meshgrid(*[jnp.arange(A)] * N, indexing="ij"), axis=-1)
            every = jnp.broadcast_to(every.reshape(1, -1, N), (size, A**N, N))
            q = jax.lax.stop_gradient(q_of(critic_params, obs, every))
            joint = values.joint_policy([pi[:, i] for i in range(N)])
            v = values.state_values(q.reshape(size, *(A,) * N), joint, risk)
            return jnp.broadcast_to(v[:, None], (size, N))
        shape = (num_samples, size, N)
        drawn = jax.random.categorical(key, jax.lax.stop_gradient(log_pi), shape=shape)
        drawn = jnp.swapaxes(drawn, 0, 1).astype(jnp.int32)
        v = []
        for i in range(N):
            # The same partners for all actions of the agent.
            mine = jnp.broadcast_to(drawn[:, None], (size, A, num_samples, N))
            own = jnp.arange(A, dtype=jnp.int32)[None, :, None]
            mine = mine.at[..., i].set(jnp.broadcast_to(own, mine.shape[:-1]))
            q = q_of(critic_params, obs, mine.reshape(size, -1, N)).reshape(size, A, num_samples)
            v.append(risk.value(risk.value(jax.lax.stop_gradient(q)), pi[:, i]))
        return jnp.stack(v, axis=-1)

    def init(key: jax.Array, settings: Mapping[str, Any] | None = None) -> JointState:
        given = settings_lib.fill(settings, numbers, RULES)
        key, key_policy, key_value, key_critic, key_env = jax.random.split(key, 5)
        params, state = policies.init(key_policy, key_value), env.reset(key_env)
        critic_params = network.init(
            key_critic, jnp.zeros((N * env.obs_size,)), jnp.zeros((N * A,))
        )
        return JointState(
            params,
            critic_params,
            jax.tree.map(jnp.copy, critic_params),
            experience.optimizer(given, "policy_learning_rate").init(params),
            experience.optimizer(given, "learning_rate").init(critic_params),
            state,
            jnp.zeros((E,), jnp.float32),
            jnp.zeros((), jnp.int32),
            given,
            key,
        )

    @jax.jit
    def learn(state: JointState, key: jax.Array, data: Batch) -> tuple[JointState, dict]:
        """All epochs over one rollout."""
        given = state.settings
        risk = measure(given["beta"])
        flat = jax.tree.map(lambda x: x.reshape(num_steps * E, *x.shape[2:]), data)

        def critic_loss(critic_params: PyTree, target: jax.Array, batch: Batch) -> jax.Array:
            q = q_of(critic_params, batch.obs, batch.action[:, None])[:, 0]
            error = jnp.where(batch.sound, q - target, 0.0)
            return 0.5 * jnp.mean(error**2)

        def policy_loss(params: PyTree, key: jax.Array, critic: PyTree, batch: Batch) -> tuple:
            log_pi = log_probs(params, batch.obs, batch.mask)
            v = optimistic(key, critic, batch.obs, log_pi, risk)
            # With all joint actions every agent has the one V; else each has its own estimate.
            gain = jnp.mean(v[:, 0]) if enumerates else jnp.mean(jnp.sum(v, axis=1))
            entropy = experience.entropy(log_pi)
            return -gain - given["entropy_coef"] * N * entropy, (jnp.mean(v), entropy)

        def minibatch(carry: tuple, inputs: tuple) -> tuple[tuple, dict]:
            params, critic, target_critic, opt_state, critic_opt_state = carry
            key, index = inputs
            key_next, key_now = jax.random.split(key)
            batch = jax.tree.map(lambda x: x[index], flat)
            next_log_pi = log_probs(params, batch.next_obs, batch.next_mask)
            v = optimistic(key_next, target_critic, batch.next_obs, next_log_pi, risk)
            target = batch.reward + batch.discount * jnp.mean(v, axis=1)
            target = jax.lax.stop_gradient(target)
            loss, grads = jax.value_and_grad(critic_loss)(critic, target, batch)
            updates, critic_opt_state = experience.optimizer(given, "learning_rate").update(
                grads, critic_opt_state, critic
            )
            critic = optax.apply_updates(critic, updates)
            target_critic = optax.incremental_update(critic, target_critic, given["tau"])
            grads, (value, entropy) = jax.grad(policy_loss, has_aux=True)(
                params, key_now, critic, batch
            )
            updates, opt_state = experience.optimizer(given, "policy_learning_rate").update(
                grads, opt_state, params
            )
            params = optax.apply_updates(params, updates)
            metrics = {"critic/loss": loss, "policy/value": value, "policy/entropy": entropy}
            return (params, critic, target_critic, opt_state, critic_opt_state), metrics

        def epoch(carry: tuple, key: jax.Array) -> tuple[tuple, dict]:
            key_order, key_batches = jax.random.split(key)
            order = jax.random.permutation(key_order, num_steps * E)
            keys = jax.random.split(key_batches, num_minibatches)
            return jax.lax.scan(minibatch, carry, (keys, order.reshape(num_minibatches, -1)))

        carry, metrics = jax.lax.scan(epoch, state[:5], jax.random.split(key, num_epochs))
        state = JointState(*carry, *state[5:])
        return state, {name: jnp.mean(x) for name, x in metrics.items()}

    def step(state: JointState) -> tuple[JointState, Metrics]:
        key, key_rollout, key_epochs = jax.random.split(state.key, 3)
        keys = jax.random.split(key_rollout, num_steps)
        state, (data, ended) = jax.lax.scan(act, state._replace(key=key), keys)
        state, metrics = learn(state, key_epochs, data)
        metrics["env/failed"] = state.failures.astype(jnp.float32)
        metrics["env/return"] = jax.tree.map(jnp.sum, ended)
        return state, metrics

    return Algorithm(init, step, check=check)
