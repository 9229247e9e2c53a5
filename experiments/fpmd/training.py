"""Training of one method on one task, seeds in one program, and what is looked at on the way."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.fpmd import Config, methods
from experiments.fpmd.methods import WEIGHTINGS, Method
from jaxlab import envs, rl
from jaxlab.core import logging, loop
from jaxlab.envs import small_tasks
from jaxlab.learning import replay
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import generators

NFES = (1, 2, 5, 10, 20)
"""Steps of one sample, of the curve of return against network evaluations."""
STATES, PARTICLES = 256, 16
"""States of the replay in which spread and gap are measured, and samples in each."""
Measured = Callable[[Callable[[Any], Any]], Any]
"""Looks at every seed at the end, with NaN for those that are lost."""
EVALUATION_KEY = 2**31 - 1
"""Seed of evaluations, apart from those of training."""


class Outcome(NamedTuple):
    """One method on one task.

    Attributes:
        final: `[seeds]` mean returns at the end, NaN for a seed that blew up, as everywhere.
        best: `[seeds]` mean returns of the best evaluation.
        curve: Transitions `[chunks]` and returns `[chunks, seeds]`.
        modes: Mean returns `[seeds]` by way of acting.
        by_steps: Mean returns `[seeds]` of flows, by the steps that one sample takes.
        course: By name `[chunks]`, means over seeds: what was logged of weights and values, and of
            a flow "spread" and "gap": root of the mean variance of its samples in a state, and
            distance of one step from all steps out of the same noise.
        weights: `[seeds, STATES]` logarithms of the weights at the end, of mirror descent; else
            empty.
        goals: `[seeds]` effective number of goals that episodes come to, 0 if none, and the share
            of episodes that do; empty but for the multi-goal task.
        seconds_per_step: What a step of the environments and the learning for it takes, all seeds
            together.
    """

    final: np.ndarray
    best: np.ndarray
    curve: tuple[np.ndarray, np.ndarray]
    modes: dict[rl.Mode, np.ndarray]
    by_steps: dict[int, np.ndarray]
    course: dict[str, np.ndarray]
    weights: np.ndarray
    goals: tuple[np.ndarray, np.ndarray]
    seconds_per_step: float


def settings(name: str, config: Config) -> dict[str, Any]:
    """All that an outcome depends on."""
    fields = {"of": name, **dataclasses.asdict(config)}
    for other in ("methods", "tasks", "parts", "theory_steps", "tuning_rates", "tuning_seeds"):
        del fields[other]
    return fields


def train(task: envs.Task, name: str, config: Config, folder: pathlib.Path) -> Outcome:
    """Trains all seeds, or goes on with the checkpoint that `folder` holds.

    A seed that blows up has NaN for its figures; if all do, there is nothing but that.
    """
    method = methods.make_method(name, envs.make_env(task, config.num_envs), config)
    num_steps = config.updates // method.steps
    judge = _over_seeds(method, _mean_return(task, method, config))
    looks = {k: _over_seeds(method, f) for k, f in _looks(task, method, config).items()}

    def evaluate(state: Any) -> dict[str, Any]:
        return {"eval/return": judge(state)} | {f"eval/{k}": f(state) for k, f in looks.items()}

    try:
        ended = loop.run(
            method.learner,
            jax.random.key(config.seed),
            num_steps=num_steps,
            chunk_size=max(num_steps // config.evaluations, 1),
            directory=folder,
            evaluate=evaluate,
            save_every=config.save_every,
            config=settings(name, config),
        )
    except loop.NonFiniteError:
        return _lost(config.num_seeds)
    records = logging.read_jsonl(folder / "metrics.jsonl")
    steps, returns = logging.series(records, "eval/return_seeds")
    warmup = 0 if method.actor is None else config.warmup
    speeds = logging.series(records, "perf/steps_per_second")[1]

    def measured(of_one: Callable[[Any], Any]) -> Any:
        found = jax.device_get(_over_seeds(method, of_one)(ended.state))
        return jax.tree.map(lambda x: _without(x, ended.frozen), found)

    modes, by_steps = _acting(task, method, config, measured, returns[-1])
    return Outcome(
        final=returns[-1],
        best=returns.max(axis=0),
        curve=(steps * method.steps * config.num_envs + warmup, returns),
        modes=modes,
        by_steps=by_steps,
        course=_course(records),
        weights=_weights(name, method, measured),
        goals=measured(_goals(method)) if task.name == "multi_goal" else (np.zeros(0), np.zeros(0)),
        seconds_per_step=1.0 / (float(np.median(speeds)) * method.steps),
    )


def _course(records: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Means over seeds of what was logged of them, NaN where nothing was."""
    names = dict.fromkeys(name for record in records for name in record)
    return {
        name: np.array([record.get(name, np.nan) for record in records])
        for name in names
        if name.startswith(("policy/", "eval/")) and f"{name}_seeds" in names
        if name != "eval/return"
    }


def _lost(num_seeds: int) -> Outcome:
    """What is left of a method of which no seed is."""
    gone, none = np.full(num_seeds, np.nan), np.zeros(0)
    return Outcome(gone, gone, (none, np.zeros((0, num_seeds))), {}, {}, {}, none, (none, none), 0)


def _without(x: np.ndarray, frozen: Mapping[int, int]) -> np.ndarray:
    x = np.array(x)
    x[list(frozen)] = np.nan
    return x


def _over_seeds(method: Method, of_one: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return jax.jit(jax.vmap(of_one, in_axes=(method.learner.axes,)))


def _mean_return(
    task: envs.Task,
    method: Method,
    config: Config,
    mode: rl.Mode = "bon",
    num_steps: int | None = None,
) -> Callable[[Any], jax.Array]:
    """Mean return of whole episodes, from the same starts for every method and seed."""
    env = envs.make_env(task, config.eval_episodes)

    def of_one(state: Any) -> jax.Array:
        def act(key: jax.Array, obs: jax.Array) -> jax.Array:
            if mode == "bon":  # the method's own way
                return method.act(state, key, obs, False)
            generator, params = _generator(method), state.policy_average_params
            return rl.act(key, generator, params, obs, mode=mode, num_steps=num_steps)

        return jnp.mean(rl.evaluate(jax.random.key(EVALUATION_KEY), act, env))

    return of_one


def _looks(
    task: envs.Task, method: Method, config: Config
) -> dict[str, Callable[[Any], jax.Array]]:
    """What is looked at during the training of a flow that takes several steps."""
    if not _is_flow(method) or _generator(method).num_steps == 1:
        return {}
    generator = _generator(method)

    def draw(state: rl.TrainState, num_steps: int) -> jax.Array:
        obs = _states(state)
        return generators.draw(
            jax.random.key(0),
            generator,
            state.policy_average_params,
            obs,
            num_particles=PARTICLES,
            num_steps=num_steps,
        )

    def spread(state: rl.TrainState) -> jax.Array:
        variance = jnp.var(draw(state, generator.num_steps), axis=0)
        return jnp.sqrt(jnp.mean(jnp.sum(variance, axis=-1)))

    def gap(state: rl.TrainState) -> jax.Array:
        away = draw(state, generator.num_steps) - draw(state, 1)  # out of the same noise
        return jnp.sqrt(jnp.mean(jnp.sum(away**2, axis=-1)))

    return {
        "spread": spread,
        "gap": gap,
        "one_step": _mean_return(task, method, config, "one_step"),
    }


def _acting(
    task: envs.Task, method: Method, config: Config, measured: Measured, whole: np.ndarray
) -> tuple[dict[rl.Mode, np.ndarray], dict[int, np.ndarray]]:
    """Returns by way of acting, of which `whole` is known, and by steps of one sample."""
    if method.actor is None or method.actor.generator is None:
        return {}, {}

    def returns(mode: rl.Mode, num_steps: int | None = None) -> np.ndarray:
        return measured(_mean_return(task, method, config, mode, num_steps))

    if not _is_flow(method):
        return {"bon": whole, "vanilla": returns("vanilla")}, {}
    usual = _generator(method).num_steps
    by_steps = {n: returns("vanilla", n) for n in sorted({*NFES, usual})}
    modes: dict[rl.Mode, np.ndarray] = {
        "bon": whole,
        "vanilla": by_steps[usual],
        "one_step": by_steps[1],
        "zero_noise": returns("zero_noise"),
    }
    return modes, by_steps


def _weights(name: str, method: Method, measured: Measured) -> np.ndarray:
    """Logarithms of the weights that the policy's own proposals have."""
    if name not in WEIGHTINGS or method.actor is None:
        return np.zeros(0)
    policy, critics, _ = method.actor

    def of_one(state: rl.TrainState) -> jax.Array:
        obs, q = _states(state), critics_lib.smaller(critics, state.critic_params)
        alpha = jnp.exp(state.log_alpha)
        key = jax.random.key(0)
        action = policy.propose(
            key, state.policy_params, state.policy_average_params, obs, q, alpha
        )[0]
        kind = WEIGHTINGS[name]
        return jnp.log(rl.importance_weights(q(obs, action), state.stats, alpha, kind)[0])

    return measured(of_one)


def _goals(method: Method) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
    """Exponential of the entropy of the goals that exploring episodes come to, and their share."""
    env = envs.make_env(envs.multi_goal(start_std=0.0), STATES)
    goals = jnp.asarray(small_tasks.GOALS)

    def of_one(state: Any) -> tuple[jax.Array, jax.Array]:
        def one(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            at, reached = carry
            action = jnp.clip(method.act(state, key, at.obs, True), -1.0, 1.0)
            at = env.step(at, action)
            away = jnp.linalg.norm(at.final_obs[:, None] - goals[None], axis=-1)
            first = (reached < 0) & at.terminated
            return (at, jnp.where(first, jnp.argmin(away, axis=1), reached)), None

        key_reset, key_steps = jax.random.split(jax.random.key(EVALUATION_KEY))
        start = (env.reset(key_reset), jnp.full((STATES,), -1))
        keys = jax.random.split(key_steps, env.time_limit)
        reached = jax.lax.scan(one, start, keys)[0][1]
        counts = jnp.sum(reached[:, None] == jnp.arange(len(goals))[None], axis=0)
        arrived = jnp.sum(counts)
        share = counts / jnp.maximum(arrived, 1)
        number = jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12))))
        return jnp.where(arrived > 0, number, 0.0), arrived / STATES

    return of_one


def _states(state: rl.TrainState) -> jax.Array:
    """Observations of the replay, the same rows for all."""
    return replay.sample(jax.random.key(EVALUATION_KEY), state.replay, STATES)[0].next_obs


def _generator(method: Method) -> rl.Generator:
    assert method.actor is not None and method.actor.generator is not None
    return method.actor.generator


def _is_flow(method: Method) -> bool:
    actor = method.actor
    return (
        actor is not None
        and actor.generator is not None
        and actor.generator.kind in ("flow", "mean_flow")
    )
