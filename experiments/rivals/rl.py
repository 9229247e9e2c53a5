"""Rivals in speed: a learner driven by a Python loop with a replay on the host, and Brax's SAC.

The first is written in the style of the code released with arXiv:2507.23675: environments and
replay in NumPy, one jitted call to act and one to learn for each step. Its gradients are those of
our own policy records, so that only the loop differs.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import rl
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import weights


class Pendulums:
    """Pendulum-v1 in NumPy, many at once, started anew every 200 steps."""

    def __init__(self, num_envs: int, seed: int = 0):
        self.random = np.random.default_rng(seed)
        self.num_envs = num_envs
        self.reset()

    def reset(self) -> None:
        """Draws new angles and velocities."""
        self.angle = self.random.uniform(-np.pi, np.pi, self.num_envs)
        self.velocity = self.random.uniform(-1.0, 1.0, self.num_envs)
        self.time = 0

    def observe(self) -> np.ndarray:
        """Returns `[N, 3]`."""
        columns = (np.cos(self.angle), np.sin(self.angle), self.velocity)
        return np.stack(columns, axis=1).astype(np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns rewards `[N]` and what the step led to, `[N, 3]`."""
        torque = 2.0 * np.clip(action[:, 0], -1.0, 1.0)
        wrapped = np.mod(self.angle + np.pi, 2.0 * np.pi) - np.pi
        reward = -(wrapped**2 + 0.1 * self.velocity**2 + 0.001 * torque**2)
        moved = self.velocity + (15.0 * np.sin(self.angle) + 3.0 * torque) * 0.05
        self.velocity = np.clip(moved, -8.0, 8.0)
        self.angle = self.angle + 0.05 * self.velocity
        self.time += 1
        after = self.observe()
        if self.time == 200:
            self.reset()
        return reward.astype(np.float32), after


class _Learned(NamedTuple):
    policy_params: Any
    policy_average_params: Any
    policy_opt_state: Any
    critic_params: Any
    target_critic_params: Any
    critic_opt_state: Any
    log_alpha: jax.Array
    alpha_opt_state: Any
    stats: weights.Stats
    updates: jax.Array


def host_loop(
    policy: rl.Policy, critics: rl.Critics, *, num_envs: int, batch_size: int, learning_rate: float
) -> Iterator[None]:
    """Yields after each gradient step on pendulums, and never ends; the caller's clock runs."""
    critic_optimizer, alpha_optimizer = optax.adam(learning_rate), optax.adam(7e-3)

    def init(key: jax.Array) -> _Learned:
        key_policy, key_critics = jax.random.split(key)
        params, q = policy.init(key_policy), critics.init(key_critics)
        log_alpha = jnp.log(jnp.asarray(policy.alpha_init, jnp.float32))
        return _Learned(
            params,
            jax.tree.map(jnp.copy, params),
            policy.optimizer.init(params),
            q,
            jax.tree.map(jnp.copy, q),
            critic_optimizer.init(q),
            log_alpha,
            alpha_optimizer.init(log_alpha),
            weights.init_stats(),
            jnp.zeros((), jnp.int32),
        )

    def update(state: _Learned, key: jax.Array, batch: dict[str, jax.Array]) -> _Learned:
        key_propose, key_critics, key_policy = jax.random.split(key, 3)
        alpha, ended = jnp.exp(state.log_alpha), jnp.zeros((batch_size,), bool)
        action, bonus, _ = policy.propose(
            key_propose,
            state.policy_params,
            state.policy_average_params,
            batch["next_obs"],
            critics_lib.smaller(critics, state.critic_params),
            alpha,
        )
        data = critics_lib.Transitions(
            batch["obs"],
            batch["action"],
            0.2 * batch["reward"],
            ended,
            batch["next_obs"],
            action,
            bonus,
        )
        grads = jax.grad(critics.loss, argnums=1, has_aux=True)(
            key_critics, state.critic_params, state.target_critic_params, data, 0.99
        )[0]
        steps, critic_opt_state = critic_optimizer.update(grads, state.critic_opt_state)
        state = state._replace(
            critic_params=optax.apply_updates(state.critic_params, steps),
            critic_opt_state=critic_opt_state,
            updates=state.updates + 1,
        )

        def improve(state: _Learned) -> _Learned:
            q = critics_lib.smaller(critics, state.critic_params)
            context = rl.Context(
                batch["obs"],
                batch["action"],
                batch["next_obs"],
                ended,
                action,
                (),
                q,
                q,
                critics_lib.smaller(critics, state.target_critic_params),
                alpha,
                state.stats,
                state.updates,
            )
            grads, found = jax.grad(policy.loss, argnums=1, has_aux=True)(
                key_policy, state.policy_params, context
            )
            steps, policy_opt_state = policy.optimizer.update(
                grads, state.policy_opt_state, state.policy_params
            )
            params = optax.apply_updates(state.policy_params, steps)
            cooled, alpha_opt_state = alpha_optimizer.update(
                found.entropy_gap, state.alpha_opt_state
            )
            return state._replace(
                policy_params=params,
                policy_opt_state=policy_opt_state,
                alpha_opt_state=alpha_opt_state,
                policy_average_params=optax.incremental_update(
                    params, state.policy_average_params, 0.005
                ),
                target_critic_params=optax.incremental_update(
                    state.critic_params, state.target_critic_params, 0.005
                ),
                log_alpha=optax.apply_updates(state.log_alpha, cooled),
                stats=weights.update_stats(state.stats, found.values),
            )

        due = state.updates % policy.policy_every == 0
        return jax.lax.cond(due, improve, lambda state: state, state)

    def act(state: _Learned, key: jax.Array, obs: jax.Array) -> jax.Array:
        q = critics_lib.smaller(critics, state.critic_params)
        return policy.act(
            key, state.policy_average_params, obs, q, jnp.exp(state.log_alpha), explore=True
        )

    act_, update_ = jax.jit(act), jax.jit(update, donate_argnums=0)
    state, env = jax.jit(init)(jax.random.key(0)), Pendulums(num_envs)
    random, key = np.random.default_rng(0), jax.random.key(1)
    capacity, size = 100_000, 0
    memory = {
        "obs": np.zeros((capacity, 3), np.float32),
        "action": np.zeros((capacity, 1), np.float32),
        "reward": np.zeros((capacity,), np.float32),
        "next_obs": np.zeros((capacity, 3), np.float32),
    }
    while True:
        key, key_act, key_update = jax.random.split(key, 3)
        obs = env.observe()
        if size < batch_size:
            action = random.uniform(-1.0, 1.0, (num_envs, 1)).astype(np.float32)
        else:
            action = np.asarray(act_(state, key_act, obs))
        reward, next_obs = env.step(action)
        rows = (size + np.arange(num_envs)) % capacity
        new = (obs, action, reward, next_obs)
        for name, value in zip(memory, new, strict=True):
            memory[name][rows] = value
        size += num_envs
        if size < batch_size:
            continue
        index = random.integers(min(size, capacity), size=batch_size)
        state = update_(state, key_update, {name: x[index] for name, x in memory.items()})
        yield None


def brax_sac(
    env: Any, *, num_envs: int, grad_updates: int, hidden: tuple[int, ...], steps: int, epochs: int
) -> list[float]:
    """Trains Brax's SAC and returns seconds for each `steps` transitions, of all epochs but one.

    The first epoch compiles. Brax 0.14.2 calls `jax.device_put_replicated`, which newer versions
    of JAX do not have; it is put back here for the time of the call.
    """
    from brax.training.agents.sac import networks, train

    def replicate(tree: Any, devices: list) -> Any:
        return jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)

    times: list[float] = []
    had = hasattr(jax, "device_put_replicated")
    if not had:
        setattr(jax, "device_put_replicated", replicate)  # noqa: B010  (it is not an attribute)
    try:
        train.train(
            env,
            num_timesteps=steps * (epochs + 1) + num_envs * 64,
            episode_length=200,
            num_envs=num_envs,
            num_eval_envs=1,
            num_evals=epochs + 2,
            batch_size=256,
            discounting=0.99,
            learning_rate=3e-4,
            min_replay_size=num_envs * 64,
            max_replay_size=100_000,
            grad_updates_per_step=grad_updates,
            network_factory=_factory(networks, hidden),
            progress_fn=lambda _, metrics: times.append(float(metrics.get("training/sps", 0.0))),
        )
    finally:
        if not had:
            delattr(jax, "device_put_replicated")
    return [steps / rate for rate in times[2:]]


def _factory(networks: Any, hidden: tuple[int, ...]) -> Callable:
    def make(*args: Any, **options: Any) -> Any:
        return networks.make_sac_networks(*args, **options, hidden_layer_sizes=hidden)

    return make


def seconds(loop: Iterator[None], count: int) -> float:
    """Returns the seconds that `count` turns of a loop take."""
    start = time.perf_counter()
    for _ in range(count):
        next(loop)
    return time.perf_counter() - start
