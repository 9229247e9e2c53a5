"""Rivals in speed: a sampled learner as loops in NumPy, and IPPO over environments in Python.

All do what ours do. The first plays one run after the other, its 64 games side by side or one by
one. The last has environments that are Python objects, one for each episode, and calls a compiled
program to act and one to learn: its gradients are those of our own functions, so that only the loop
differs.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import envs, learning
from jaxlab.envs import particles
from jaxlab.learning import policy_gradient


def play(
    payoff: np.ndarray, beta: float, *, updates: int, num_games: int = 64, seed: int = 0
) -> np.ndarray:
    """Plays one run of `marl.make_tabular(critic="values")` on a matrix; returns policies `[2, A]`.

    Its rates are 0.02 and 0.05, and its z_max is 3, the defaults of ours.
    """
    random = np.random.default_rng(seed)
    logits, value = np.zeros((2, len(payoff))), np.zeros(2)
    eye = np.eye(len(payoff))
    for _ in range(updates):
        pi = np.exp(logits - logits.max(axis=1, keepdims=True))
        pi /= pi.sum(axis=1, keepdims=True)
        u = random.random((2, num_games, 1))
        action = (u >= np.cumsum(pi, axis=1)[:, None, :-1]).sum(axis=-1)
        error = payoff[action[0], action[1]] - value[:, None]
        weight = np.expm1(np.minimum(beta * error, 3.0)) / beta if beta else error
        logits += 0.02 * np.mean(weight[..., None] * (eye[action] - pi[:, None]), axis=1)
        value += 0.05 * weight.mean(axis=1)
    return pi


def play_one_by_one(
    payoff: np.ndarray, beta: float, *, updates: int, num_games: int = 64, seed: int = 0
) -> np.ndarray:
    """Does the same game by game, as agents that learn apart are usually written."""
    random = np.random.default_rng(seed)
    logits, value = np.zeros((2, len(payoff))), np.zeros(2)
    for _ in range(updates):
        pi = np.exp(logits - logits.max(axis=1, keepdims=True))
        pi /= pi.sum(axis=1, keepdims=True)
        push, change = np.zeros_like(logits), np.zeros_like(value)
        for _ in range(num_games):
            action = [random.choice(len(payoff), p=p) for p in pi]
            reward = payoff[action[0], action[1]]
            for agent, a in enumerate(action):
                error = reward - value[agent]
                weight = np.expm1(min(beta * error, 3.0)) / beta if beta else error
                push[agent] -= weight * pi[agent]
                push[agent, a] += weight
                change[agent] += weight
        logits += 0.02 * push / num_games
        value += 0.05 * change / num_games
    return pi


class Spread:
    """Simple spread in NumPy, one episode at a time, begun anew every 25 steps."""

    def __init__(self, seed: int, num_agents: int = 3):
        self.random, self.num_agents = np.random.default_rng(seed), num_agents
        self.moves = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], np.float64)
        self.reset()

    def reset(self) -> None:
        """Draws new places."""
        self.x, self.landmarks = self.random.uniform(-1.0, 1.0, (2, self.num_agents, 2))
        self.v, self.time = np.zeros_like(self.x), 0

    def observe(self) -> np.ndarray:
        """Returns `[N, 6 N]`."""
        N, rows = self.num_agents, []
        for i in range(N):
            others = [self.x[j] - self.x[i] for j in range(N) if j != i]
            seen = [self.v[i], self.x[i], *(self.landmarks - self.x[i]), *others]
            rows.append(np.concatenate([*seen, np.zeros(2 * (N - 1))]))
        return np.array(rows, np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Returns rewards `[N]`, what the step led to, and whether the episode was cut."""
        N, force = self.num_agents, 5.0 * self.moves[action]
        for i in range(N):
            for j in range(i + 1, N):
                apart = self.x[i] - self.x[j]
                distance = np.sqrt(apart @ apart)
                push = 0.1 * np.logaddexp(0.0, (0.3 - distance) / 1e-3) * apart / distance
                force[i] += push
                force[j] -= push
        self.x = self.x + 0.1 * self.v
        self.v = 0.75 * self.v + 0.1 * force
        away = np.linalg.norm(self.landmarks[:, None] - self.x[None], axis=-1)
        distances = np.linalg.norm(self.x[:, None] - self.x[None], axis=-1)
        touching = (distances < 0.3).sum(axis=1) - 1
        reward = -0.5 * away.min(axis=1).sum() - 0.5 * touching
        self.time += 1
        return reward, self.observe(), self.time == particles.STEPS


def host_ippo(
    *,
    num_envs: int,
    num_steps: int,
    num_epochs: int,
    num_minibatches: int,
    hidden: tuple[int, ...] = (64, 64),
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
) -> Iterator[float]:
    """Yields the mean reward after each update of IPPO on simple spread, and never ends."""
    like = envs.make_env(envs.simple_spread(), num_envs)
    nets = learning.make_networks(like, hidden=hidden)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(7e-4, eps=1e-5))
    given = {"clip_eps": 0.2, "value_coef": 0.5, "entropy_coef": 0.01}
    settings = {name: jnp.asarray(x) for name, x in given.items()}

    @jax.jit
    def act(key: jax.Array, params: dict, obs: jax.Array) -> tuple:
        action, logp = nets.sample(key, params, obs, ())
        return action, logp, nets.value(params, obs)

    @jax.jit
    def update(params: Any, opt_state: Any, batch: tuple) -> tuple:
        def loss(params: dict) -> tuple:
            obs, action, then = batch
            logp, entropy = nets.evaluate(params, obs, (), action)
            now = learning.Outputs(logp, entropy, nets.value(params, obs))
            return policy_gradient.ppo_loss(now, then, settings)

        grads, _ = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    worth = jax.jit(nets.value)
    key, key_policy, key_value = jax.random.split(jax.random.key(0), 3)
    params = nets.init(key_policy, key_value)
    opt_state, random = optimizer.init(params), np.random.default_rng(0)
    worlds = [Spread(seed) for seed in range(num_envs)]
    obs = np.stack([world.observe() for world in worlds])
    while True:
        kept: list[tuple] = []
        for _ in range(num_steps):
            key, key_act = jax.random.split(key)
            action, logp, value = map(np.asarray, act(key_act, params, obs))
            stepped = [world.step(a) for world, a in zip(worlds, action, strict=True)]
            reward, after, cut = map(np.array, zip(*stepped, strict=True))
            next_obs = after.copy()
            for i in np.flatnonzero(cut):
                worlds[i].reset()
                next_obs[i] = worlds[i].observe()
            kept.append((obs, action, logp, value, reward.astype(np.float32), after, cut))
            obs = next_obs
        seen, action, logp, value, reward, after, cut = map(np.stack, zip(*kept, strict=True))
        next_value = np.asarray(worth(params, after))
        advantage, running = np.zeros_like(reward), np.zeros_like(reward[0])
        for t in reversed(range(num_steps)):
            error = reward[t] + gamma * next_value[t] - value[t]
            running = error + gamma * gae_lambda * np.where(cut[t][:, None], 0.0, running)
            advantage[t] = running
        then: list[Any] = [logp, value, value + advantage, advantage]
        samples = learning.Samples(*map(jnp.asarray, then), choice_mask=None)
        for _ in range(num_epochs):
            for index in random.permutation(num_envs).reshape(num_minibatches, -1):
                batch = jax.tree.map(lambda x, i=index: x[:, i], (seen, action, samples))
                params, opt_state = update(params, opt_state, batch)
        yield float(reward.mean())
