"""PPO: on-policy, with a clipped ratio and generalized advantages.

Schulman et al. 2017, arXiv:1707.06347; advantages of Schulman et al. 2016, arXiv:1506.02438.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxlab.core.types import Algorithm, Metrics, Transition
from jaxlab.envs import Env, State
from jaxlab.learning import returns
from jaxlab.nn import Mlp


class PpoState(NamedTuple):
    """All that evolves.

    Attributes:
        params: of `{"policy", "log_std", "value"}`.  opt_state: of Adam.
        env: of the environments.  failures, returns, finished: see `learner.TrainState`.
        key: of all draws.
    """

    params: Any
    opt_state: Any
    env: State
    failures: Int[Array, ""]
    returns: Float[Array, " E"]
    finished: Float[Array, " E"]
    key: Array


def make_ppo(
    env: Env,
    *,
    hidden: tuple[int, ...] = (256, 256, 256),
    num_steps: int = 400,
    num_epochs: int = 10,
    num_minibatches: int = 32,
    learning_rate: float = 3e-4,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip_eps: float = 0.2,
    value_coef: float = 0.5,
    entropy_coef: float = 0.0,
    max_grad_norm: float = 0.5,
    reward_scale: float = 0.2,
) -> Algorithm:
    """Makes PPO; one step of the algorithm is a rollout of `num_steps` and its epochs.

    The Gaussian has a mean that depends on the observation and a standard deviation that does not;
    actions are clipped where they enter the environment.

    Raises:
        ValueError: if a number is out of range, or the transitions of a rollout do not divide into
            the minibatches.
    """
    E = env.num_envs
    total = num_steps * E
    if min(num_steps, num_epochs, num_minibatches) < 1 or total % num_minibatches:
        raise ValueError(
            f"a rollout of {num_steps} x {E} transitions must divide into num_minibatches, got "
            f"{num_minibatches}"
        )
    if not (0.0 <= gamma <= 1.0 and 0.0 <= gae_lambda <= 1.0):
        raise ValueError(f"gamma and gae_lambda must lie in [0, 1], got {gamma}, {gae_lambda}")
    if min(learning_rate, clip_eps, max_grad_norm, reward_scale) <= 0.0:
        raise ValueError(
            "learning_rate, clip_eps, max_grad_norm and reward_scale must be positive, got "
            f"{learning_rate}, {clip_eps}, {max_grad_norm}, {reward_scale}"
        )
    actor: Any = Mlp(hidden, env.action_size)
    critic: Any = Mlp(hidden, 1)
    optimizer = optax.chain(
        optax.clip_by_global_norm(max_grad_norm), optax.adam(learning_rate, eps=1e-5)
    )

    def value_of(params: Any, obs: jax.Array) -> jax.Array:
        return critic.apply(params["value"], obs)[..., 0]

    def logp_of(params: Any, obs: jax.Array, action: jax.Array) -> jax.Array:
        z = (action - actor.apply(params["policy"], obs)) * jnp.exp(-params["log_std"])
        log_std = params["log_std"] + 0.5 * math.log(2.0 * math.pi)
        return jnp.sum(-0.5 * z**2 - log_std, axis=-1)

    def init(key: jax.Array) -> PpoState:
        key, key_actor, key_critic, key_env = jax.random.split(key, 4)
        obs = jnp.zeros((env.obs_size,))
        params = {
            "policy": actor.init(key_actor, obs),
            "log_std": jnp.full((env.action_size,), -0.5),
            "value": critic.init(key_critic, obs),
        }
        zeros = jnp.zeros((E,))
        return PpoState(
            params,
            optimizer.init(params),
            env.reset(key_env),
            jnp.zeros((), jnp.int32),
            zeros,
            zeros,
            key,
        )

    def rollout(state: PpoState, key: jax.Array) -> tuple[PpoState, Transition]:
        def one(state: PpoState, key: jax.Array) -> tuple[PpoState, Transition]:
            obs = state.env.obs
            mean = actor.apply(state.params["policy"], obs)
            action = mean + jnp.exp(state.params["log_std"]) * jax.random.normal(key, mean.shape)
            after = env.step(state.env, jnp.clip(action, -1.0, 1.0))
            transition = Transition(
                obs,
                action,
                after.reward,
                after.terminated,
                after.truncated,
                after.final_obs,
                extras=logp_of(state.params, obs, action),
            )
            total_reward = state.returns + after.reward
            done = after.terminated | after.truncated
            state = state._replace(
                env=after,
                failures=state.failures + jnp.sum(after.failed, dtype=jnp.int32),
                returns=jnp.where(done, 0.0, total_reward),
                finished=jnp.where(done, total_reward, state.finished),
            )
            return state, transition

        return jax.lax.scan(one, state, jax.random.split(key, num_steps))

    def loss(params: Any, batch: tuple) -> tuple[jax.Array, Metrics]:
        data, advantage, target = batch
        advantage = (advantage - jnp.mean(advantage)) / (jnp.std(advantage) + 1e-8)
        log_ratio = logp_of(params, data.obs, data.action) - data.extras
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps)
        gain = jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))
        error = jnp.mean((value_of(params, data.obs) - target) ** 2)
        entropy = jnp.sum(params["log_std"] + 0.5 * math.log(2.0 * math.pi * math.e))
        outside = jnp.mean((jnp.abs(ratio - 1.0) > clip_eps).astype(ratio.dtype))
        return -gain + value_coef * error - entropy_coef * entropy, {
            "critic/loss": error,
            "policy/entropy": entropy,
            "policy/clipped": outside,
            "policy/kl": jnp.mean(ratio - 1.0 - log_ratio),
        }

    def step(state: PpoState) -> tuple[PpoState, Metrics]:
        key, key_rollout, key_epochs = jax.random.split(state.key, 3)
        state, data = rollout(state._replace(key=key), key_rollout)
        value, next_value = (value_of(state.params, x) for x in (data.obs, data.next_obs))
        advantage, target = returns.gae(
            reward_scale * data.reward,
            value,
            next_value,
            gamma * (1.0 - data.terminated.astype(jnp.float32)),
            data.terminated | data.truncated,
            gae_lambda=gae_lambda,
        )
        flat = jax.tree.map(lambda x: x.reshape(total, *x.shape[2:]), (data, advantage, target))

        def epoch(carry: tuple, key: jax.Array) -> tuple[tuple, dict[str, jax.Array]]:
            order = jax.random.permutation(key, total).reshape(num_minibatches, -1)

            def minibatch(carry: tuple, index: jax.Array) -> tuple[tuple, dict[str, jax.Array]]:
                params, opt_state = carry
                batch = jax.tree.map(lambda x: x[index], flat)
                grads, metrics = jax.grad(loss, has_aux=True)(params, batch)
                steps, opt_state = optimizer.update(grads, opt_state, params)
                return (optax.apply_updates(params, steps), opt_state), metrics

            return jax.lax.scan(minibatch, carry, order)

        carry = (state.params, state.opt_state)
        keys = jax.random.split(key_epochs, num_epochs)
        (params, opt_state), metrics = jax.lax.scan(epoch, carry, keys)
        metrics = {name: jnp.mean(x) for name, x in metrics.items()}
        metrics["env/failed"] = state.failures.astype(jnp.float32)
        metrics["env/return"] = jnp.mean(state.finished)
        return state._replace(params=params, opt_state=opt_state), metrics

    return Algorithm(init, step)


def act(env: Env, params: Any, obs: Float[Array, "B O"], *, hidden: tuple[int, ...]) -> jax.Array:
    """Returns PPO's mean action in [-1, 1]."""
    actor: Any = Mlp(hidden, env.action_size)
    return jnp.clip(actor.apply(params["policy"], obs), -1.0, 1.0)
