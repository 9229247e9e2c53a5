"""Training of one method on one task, seeds in one program, and its four ways of acting."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.fpmd import Config
from experiments.fpmd.methods import Method
from jaxlab import envs, rl
from jaxlab.core import logging, loop
from jaxlab.core.types import Algorithm, Metrics
from jaxlab.rl import critics as critics_lib

CHUNKS = 20
NFES = (1, 2, 5, 10, 20)
"""Steps of one sample, of the curve of return against network evaluations."""


class Outcome(NamedTuple):
    """One method on one task.

    Attributes:
        final, best: `[seeds]` mean returns at the end, and of the best evaluation.
        curve: transitions `[chunks]` and returns `[chunks, seeds]`.
        modes: mean returns `[seeds]` by way of acting.
        by_steps: mean returns `[seeds]` by steps of one sample, of flows.
        metrics: of the last chunk.
        seconds_per_update: of all seeds together, environment included.
    """

    final: np.ndarray
    best: np.ndarray
    curve: tuple[np.ndarray, np.ndarray]
    modes: dict[str, np.ndarray]
    by_steps: dict[int, np.ndarray]
    metrics: dict[str, float]
    seconds_per_update: float


def train(task: envs.Task, method: Method, config: Config, folder: pathlib.Path) -> Outcome:
    """Trains all seeds, or goes on with what `folder` holds."""
    env = envs.make_env(task, config.num_envs)
    policy = method.policy
    learner = rl.make_learner(
        env, policy, critics=method.critics, batch_size=config.batch_size,
        capacity=config.capacity, warmup=config.warmup, critic_learning_rate=config.learning_rate,
    )  # fmt: skip
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.key(config.seed), jnp.arange(config.num_seeds)
    )
    num_steps = config.updates // rl.updates_per_step(policy)
    chunk = max(num_steps // CHUNKS, 1)
    judge = jax.jit(jax.vmap(functools.partial(_judge, task, method, config, "bon")))

    def evaluate(state: rl.TrainState) -> dict[str, Any]:
        returns = jnp.mean(judge(state), axis=1)
        return {f"eval/return_{i}": x for i, x in enumerate(returns)}

    ended = loop.run(
        Algorithm(lambda _: jax.vmap(learner.init)(keys), _mean(learner)), keys[0],
        num_steps=num_steps, chunk_size=chunk, directory=folder, evaluate=evaluate, save_every=5,
        config={"seeds": config.num_seeds, "updates": config.updates},
    )  # fmt: skip
    records = logging.read_jsonl(folder / "metrics.jsonl")
    names = [f"eval/return_{i}" for i in range(config.num_seeds)]
    returns = np.array([[record[name] for name in names] for record in records])
    per_step = rl.env_steps_per_step(env, policy)
    speeds = [r["perf/steps_per_second"] for r in records if "perf/steps_per_second" in r]
    return Outcome(
        final=returns[-1],
        best=returns.max(axis=0),
        curve=(np.array([r["step"] * per_step + config.warmup for r in records]), returns),
        modes=_modes(task, method, config, ended.state),
        by_steps=_by_steps(task, method, config, ended.state),
        metrics=dict(ended.metrics),
        seconds_per_update=1.0 / (float(np.median(speeds)) * rl.updates_per_step(policy)),
    )


def _judge(
    task: envs.Task, method: Method, config: Config, mode: str, state: rl.TrainState,
    num_steps: int | None = None,
) -> jax.Array:  # fmt: skip
    """Returns of whole episodes, `[episodes]`, the same starts for every method and seed."""
    policy = method.policy
    params = state.policy_average if policy.act_with_average else state.policy
    q = critics_lib.smaller(method.critics, state.critics)
    alpha = jnp.exp(state.log_alpha)

    def act(key: jax.Array, obs: jax.Array) -> jax.Array:
        if mode == "bon":  # the method's own way
            return policy.act(params, key, obs, q, alpha, False)
        assert method.generator is not None
        return rl.act(method.generator, params, key, obs, q, mode=mode, num_steps=num_steps)

    env = envs.make_env(task, config.eval_episodes)
    return rl.evaluate(act, env, jax.random.key(2**31 - 1))


def _modes(
    task: envs.Task, method: Method, config: Config, state: rl.TrainState
) -> dict[str, np.ndarray]:
    if method.generator is None:
        return {}
    flows = method.generator.kind != "diffusion"
    names = rl.MODES if flows else ("bon", "vanilla")
    return {
        mode: np.asarray(
            jax.jit(jax.vmap(functools.partial(_judge, task, method, config, mode)))(state)
        ).mean(axis=1)
        for mode in names
    }


def _by_steps(
    task: envs.Task, method: Method, config: Config, state: rl.TrainState
) -> dict[int, np.ndarray]:
    if method.generator is None or method.generator.kind == "diffusion":
        return {}
    judge = functools.partial(_judge, task, method, config, "vanilla")
    return {
        n: np.asarray(jax.jit(jax.vmap(functools.partial(judge, num_steps=n)))(state)).mean(axis=1)
        for n in NFES
    }


def _mean(learner: Algorithm):
    def step(state: Any) -> tuple[Any, Metrics]:
        state, metrics = jax.vmap(learner.step)(state)
        return state, jax.tree.map(jnp.mean, metrics)

    return step
